"""`gancli export`: a run's generator as a folder for other tools and for the Hugging Face Hub."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import torch

from gancli import config
from gancli.distributed.process_group import join_process_group
from gancli.errors import UserError, printable
from gancli.files.atomic import atomic_folder
from gancli.files.json_files import numbers_of
from gancli.files.user_paths import expand
from gancli.files.yaml_files import plain_yaml
from gancli.inference import export, loading
from gancli.inference.sampling import chosen_classes, classes_in_turn, generate, noise_rows
from gancli.reporting import image_grids
from gancli.reporting.streams import print_lines
from gancli.training.run_folder import RunFolder

log = logging.getLogger(__name__)
SCHEMA = {
    "run": str,
    "checkpoint": str | int,
    "weights": Literal["ema", "raw"],
    "formats": list[Literal["onnx", "graph"]],
    "out": str | None,
    "overwrite": bool,
    "trust": list[str],
}
_SHOWN = 64  # samples in the picture


def run(settings: dict[str, Any]) -> Path:
    """Writes the folder and returns it. Raises UserError, OSError. Of several processes, the main one does it all."""
    config.check(settings, SCHEMA)
    group = join_process_group()
    return Path(group.broadcast_from_main(lambda: str(_export(settings))))


def _export(settings: dict[str, Any]) -> Path:
    if "onnx" in settings["formats"]:
        export.require_onnx()
    folder = RunFolder(expand(settings["run"], key="run"))
    out = expand(settings["out"], key="out") if settings["out"] else folder.path / "export"
    _check_destination(out, overwrite=settings["overwrite"])
    folder.read_config()  # an export is no run, and says so
    loaded = loading.load(folder.path, **{name: settings[name] for name in ("checkpoint", "weights", "trust")})
    files: dict[str, bytes] = {loading.PICTURE: _picture(loaded)}
    about = {"images": str(loaded.images), "weights": loaded.weights, "library_name": "gancli"}
    files[loading.WEIGHTS] = export.safetensors_bytes(loaded.generator, about=about)
    files[loading.CONFIG] = export.config_json(loaded).encode()
    if settings["formats"]:
        graph = export.exported_program(loaded.generator)
        if "onnx" in settings["formats"]:
            files[loading.ONNX] = export.onnx_bytes(loaded.generator, graph)
        if "graph" in settings["formats"]:
            files[loading.GRAPH] = export.graph_bytes(graph)
    files[loading.CARD] = _card(folder, loaded, list(files)).encode()
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(out.resolve()) as target:
        for name, content in files.items():
            (target / name).write_bytes(content)
    for name in loading.FILES:
        if name in files:
            log.info("%-18s %s", name, _size(len(files[name])))
    log.info("to share it:  hf upload USER/NAME %s", out)
    print_lines([str(out)])
    return out


def _check_destination(out: Path, *, overwrite: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"out={out}: is a file, and an export is a folder")
    if out.resolve() == Path.cwd() or out.is_mount():
        raise UserError(f"out={out}: would be replaced as a whole, which it cannot be; give a folder in it")
    if not any(out.iterdir()):
        return
    strange = sorted(path.name for path in out.iterdir() if path.name not in loading.FILES or not path.is_file())
    if strange or not loading.is_export(out):
        held = f"holds {strange[0]}, which" if strange else "holds a model that"
        raise UserError(f"out={out}: {held} gancli did not export; choose another out")
    if not overwrite:
        raise UserError(
            f"out={out}: exists already; overwrite=true replaces it, with its README.md, or choose another out"
        )


def _picture(loaded: loading.Loaded) -> bytes:
    """Returns the grid that `gancli sample` makes of the same weights."""
    generator = loaded.generator.to(memory_format=torch.channels_last)
    classes = chosen_classes(None, generator.num_classes, loaded.class_names)
    labels = None if classes is None else classes_in_turn(classes, _SHOWN)
    samples = torch.cat(list(generate(generator, noise_rows(loaded.prior, _SHOWN, seed=0), labels)))
    limits = image_grids.limits(samples) if samples.ndim == 2 else None
    return image_grids.encode_png(image_grids.picture(samples, limits=limits))


def _card(folder: RunFolder, loaded: loading.Loaded, files: list[str]) -> str:
    settings, starts = folder.read_config(), folder.starts()
    seconds = [row["seconds"] for row in numbers_of(folder.read_metrics()) if row["images"] <= loaded.images]
    dataset = settings.get("dataset")
    facts = {
        "data set": _described(dataset),
        "images seen": f"{loaded.images:,}",
        "minutes of training": f"{max(seconds) / 60:.1f}" if seconds else "not recorded",
        "weights": "averaged over training (EMA)" if loaded.weights == "ema" else "as trained, not averaged",
        "classes": ", ".join(map(printable, loaded.class_names)) or str(loaded.generator.num_classes or "none"),
        "loss": _described(settings.get("loss")),
        "git commit": str(starts[-1].get("git_commit")) if starts else "not recorded",
    }
    of_these = {"images": loaded.images, "weights": loaded.weights}
    rows = [row for row in folder.read_evaluations() if row.items() >= of_these.items()]
    rows = [{**row, **numbers} for row in rows for numbers in numbers_of([row])]
    return export.card(
        loaded,
        title=printable(folder.path.resolve().name),
        facts=facts,
        evaluations=rows,
        settings=plain_yaml(_without_paths(settings)),
        files=files,
    )


def _described(node: Any) -> str:
    if not isinstance(node, dict):
        return "not recorded"
    settings = ", ".join(
        f"{key}={value}"
        for key, value in _without_paths(node).items()
        if key != "_target_" and isinstance(value, (bool, int, float, str, list))
    )
    name = str(node.get("_target_", "")).rpartition(".")[2]
    return printable(f"{name}({settings})")


def _without_paths(settings: Any) -> Any:
    """Returns the settings without the paths of this machine, which are nobody else's business."""
    if isinstance(settings, dict):
        hidden = ("root", "path", "cache", "resume", "init", "trust", "hydra")
        return {key: _without_paths(value) for key, value in settings.items() if key not in hidden}
    if isinstance(settings, list):
        return [_without_paths(value) for value in settings]
    return "…" if isinstance(settings, str) and settings.startswith(("/", "~", "\\")) else settings


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
