"""`gancli sample`: generates images from a run folder alone; only the nearest training images need the data set."""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gancli import config
from gancli.build import build
from gancli.commands.check_settings import MemoryChecked
from gancli.datasets.base import Dataset, to_bytes
from gancli.device import Runtime
from gancli.distributed.process_group import join_process_group
from gancli.errors import UserError, did_you_mean, printable, require_at_least, require_memory
from gancli.files.atomic import atomic_folder, atomic_write
from gancli.files.user_paths import cache_folder, expand
from gancli.game import eval_mode
from gancli.metrics.base import Samples
from gancli.metrics.features import Features
from gancli.metrics.memorisation import nearest_images
from gancli.priors import Prior
from gancli.progress import progress
from gancli.randomness import seeded
from gancli.reporting import image_grids
from gancli.reporting.streams import print_lines
from gancli.training.checkpoint import Checkpoints
from gancli.training.run_folder import RunFolder

log = logging.getLogger(__name__)
_FLOAT = 4  # bytes
BLOCK = 1024  # rows of noise drawn at once, so that row i of a seed is the same for every count and batch size
STOPS = 4  # rows of noise on each walk of a gif
FRAMES = 12  # of a gif, from one stop to the next
SCHEMA = {
    "run": str,
    "count": int,
    "seed": int,
    "labels": list[int | str] | int | str | None,
    "truncation": float | None,
    "checkpoint": str | int,
    "weights": Literal["ema", "raw"],
    "format": Literal["grid", "png", "npz", "gif"],
    "scale": int | None,
    "neighbours": int | None,
    "data": str | None,
    "out": str | None,
    "overwrite": bool,
    "batch_size": int,
    "trust": list[str],
}


def run(settings: dict[str, Any]) -> Path:
    """Writes what `settings` ask for and returns the file or folder. Raises UserError, OSError."""
    config.check(settings, SCHEMA)
    positive = ("count", "batch_size", "scale", "neighbours")
    require_at_least(1, **{name: settings[name] for name in positive})
    if settings["scale"] is not None and settings["format"] not in ("grid", "gif"):
        raise UserError(f"scale={settings['scale']}: only for format=grid and format=gif")
    near = settings["neighbours"]
    if near is not None and settings["format"] != "grid":
        raise UserError(f"neighbours={near}: only for format=grid")
    if settings["data"] is not None and near is None:
        raise UserError(f"data={settings['data']}: only for neighbours=…, which alone need the data set")
    folder = RunFolder(expand(settings["run"], key="run"))
    parts = ["prior", "network.generator", *([] if near is None else ["dataset", "metric.features", "evaluation"])]
    trained = folder.settings(trust=settings["trust"], parts=tuple(parts))
    file, state = Checkpoints(folder.checkpoints).pick(settings["checkpoint"])
    points = len(state["shape"]) != 3
    if points and settings["format"] in ("png", "gif"):
        raise UserError(f"format={settings['format']}: this run makes points, not images; choose grid or npz")
    if points and near is not None:
        raise UserError(f"neighbours={near}: this run makes points, which have no features; leave neighbours out")
    if points and settings["scale"] is not None:
        raise UserError(f"scale={settings['scale']}: this run makes points, which are plotted; leave scale out")
    if settings["scale"] is not None:
        pixels = settings["count"] * math.prod(state["shape"]) * settings["scale"] ** 2
        require_memory(pixels, scale=settings["scale"], count=settings["count"])
    classes = _classes(settings["labels"], state["num_classes"], folder.class_names())
    out = _destination(settings, folder, file, classes)
    runtime = build(settings["device"], key="device", process_group=join_process_group())
    write = _WRITERS[settings["format"]]
    if near is not None:
        write = partial(_write_neighbours, *_training_images(trained, settings, runtime, shape=tuple(state["shape"])))
    prior = build(trained["prior"], key="prior")
    generator = runtime.place(load_generator(trained, state, prior, weights=settings["weights"], file=file))

    labels = None if classes is None else torch.tensor(classes).repeat(math.ceil(settings["count"] / len(classes)))
    labels = None if labels is None else labels[: settings["count"]]
    noise = noise_rows(prior, settings["count"], seed=settings["seed"], truncation=settings["truncation"])
    if settings["format"] == "gif":
        noise = _walks(prior, noise, seed=settings["seed"], truncation=settings["truncation"])
        labels = None if labels is None else labels.repeat(len(noise) // len(labels))
    batches = generate(generator, runtime, noise, labels, batch_size=settings["batch_size"])
    if not runtime.process_group.is_main_process:
        list(batches)  # this process generates its share of them
        return out
    write(out, batches, noise, labels, settings)
    kind = f"walks of {STOPS * FRAMES} frames" if settings["format"] == "gif" else "samples"
    log.info("%s %s from %s:", f"{settings['count']:,}", kind, file.name)
    print_lines([str(out)])
    return out


def noise_rows(
    prior: Prior, count: int, *, seed: int, truncation: float | None = None, stream: str = "sample"
) -> Tensor:
    """Returns noise (count, dim) whose row i depends on (seed, stream, i) alone. Raises SettingError."""
    require_memory(2 * _FLOAT * count * prior.dim, count=count)  # the blocks, and all of them in one
    rng = seeded(seed, stream)
    blocks = [prior.sample(BLOCK, rng, truncation=truncation) for _ in range(math.ceil(count / BLOCK))]
    return torch.cat(blocks)[:count]


def generate(
    generator: Any, runtime: Runtime, noise: Tensor, labels: Tensor | None, *, batch_size: int
) -> Iterator[Tensor]:
    """Yields samples on the CPU, batch by batch, generated by all processes together. Raises SettingError."""
    per_sample = _FLOAT * (noise.shape[1] + math.prod(generator.image_shape))
    require_memory(batch_size * per_sample, batch_size=batch_size)

    def forward(rows: Tensor) -> Tensor:
        batch_labels = None if labels is None else labels[rows].to(runtime.device)
        with runtime.autocast():
            return generator(noise[rows].to(runtime.device), batch_labels).float()  # type: ignore[no-any-return]

    batches = runtime.process_group.map_batches(len(noise), batch_size, forward)
    with eval_mode(generator):
        for samples in progress(batches, title="samples", total=len(noise), size=len):
            yield samples.cpu()


def load_generator(trained: dict[str, Any], state: dict[str, Any], prior: Prior, *, weights: str, file: Path) -> Any:
    """Returns the generator of the checkpoint `file`, whose content is `state`.

    trained: the run's settings. weights: ema or raw. Raises UserError where they do not fit the checkpoint.
    """
    known = {"latent_dim": prior.dim, "image_shape": tuple(state["shape"]), "num_classes": state["num_classes"]}
    given = trained["network"]["generator"].items()
    sizes = {f"network.generator.{name}": value for name, value in given if isinstance(value, int)}
    with MemoryChecked({"prior.dim": prior.dim, **sizes}):
        generator = build(trained["network"]["generator"], key="network.generator", **known)
    try:
        generator.load_state_dict(state["ema" if weights == "ema" else "generator"])
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UserError(f"{file} holds another network than the run's config.yaml describes: {reason}") from None
    return generator


def _destination(settings: dict[str, Any], folder: RunFolder, file: Path, classes: Sequence[int] | None) -> Path:
    """Returns the file or folder to write, whose parent exists then. file: the checkpoint. Raises UserError."""
    kind = settings["format"]
    suffix = {"grid": ".png", "png": "", "npz": ".npz", "gif": ".gif"}[kind]
    if settings["out"] is not None:
        out = expand(settings["out"], key="out")
    else:
        out = folder.samples / (_default_name(settings, file, classes) + suffix)
    if suffix and out.suffix != suffix:
        raise UserError(f"out={out}: format={kind} writes a file that ends in {suffix}")
    in_use = out.exists() and not (out.is_dir() and not any(out.iterdir()))
    if in_use and not settings["overwrite"]:
        raise UserError(f"out={out}: exists already; overwrite=true replaces it, or choose another out")
    if kind == "png" and out.exists() and not out.is_dir():
        raise UserError(f"out={out}: is a file, and format=png writes a folder")
    if kind != "png" and out.is_dir():
        raise UserError(f"out={out}: is a folder, and format={kind} writes one file")
    if kind == "png" and out.is_dir():
        _check_replaceable(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    return out


def _default_name(settings: Mapping[str, Any], file: Path, classes: Sequence[int] | None) -> str:
    """Returns a name, without its ending, that holds every setting that the content depends on."""
    parts = [settings["format"], file.stem, settings["weights"], f"seed{settings['seed']}", f"count{settings['count']}"]
    if classes is not None and settings["labels"] is not None:
        labels = "_".join(map(str, classes))
        parts.append("labels" + (labels if len(labels) <= 40 else hashlib.sha256(labels.encode()).hexdigest()[:12]))
    parts += [f"{key}{settings[key]}" for key in ("truncation", "scale", "neighbours") if settings[key] is not None]
    return "-".join(parts)


def _check_replaceable(out: Path) -> None:
    """Raises UserError where more would be lost with the folder than samples of this command."""
    if out.is_mount() or out.resolve() == Path.cwd():
        raise UserError(f"out={out}: would be replaced as a whole, which it cannot be; give a folder in it")
    for path in out.iterdir():
        is_sample = re.fullmatch(r"\d{5,}\.png", path.name) and path.is_file() and not path.is_symlink()
        if not is_sample or not image_grids.is_by_gancli(path):
            raise UserError(f"out={out}: holds {path.name}, which is no sample of gancli; choose another out")


def _classes(chosen: list[int | str] | int | str | None, num_classes: int, names: Sequence[str]) -> list[int] | None:
    """Returns the chosen classes (all for None), which are sampled in turn; None for a run without labels.

    chosen: numbers, or some of `names`, those of all classes in order, where they have names. Raises UserError.
    """
    if not num_classes:
        if chosen is not None:
            raise UserError(f"labels={chosen}: this run was trained without labels; leave labels out")
        return None
    wanted = list(range(num_classes)) if chosen is None else chosen if isinstance(chosen, list) else [chosen]
    labels = [label if isinstance(label, int) else _label_of(label, names) for label in wanted]
    if not labels or not all(0 <= label < num_classes for label in labels):
        raise UserError(f"labels={chosen}: classes of this run are 0 to {num_classes - 1}")
    if chosen is not None and len(names) == num_classes:
        log.info("classes: %s", ", ".join(f"{label} ({printable(names[label])})" for label in dict.fromkeys(labels)))
    return labels


def _label_of(name: str, names: Sequence[str]) -> int:
    if name in names:
        return names.index(name)
    known = ", ".join(map(printable, names[:20])) + (", … (all in run.json)" if len(names) > 20 else "")
    has = f"; its classes are {known}" if names else ", whose classes have numbers only"
    raise UserError(f"labels={printable(name)}: no class of this run{has}{did_you_mean(name, names)}")


def _walks(prior: Prior, noise: Tensor, *, seed: int, truncation: float | None) -> Tensor:
    """Returns closed walks that start at the rows of `noise` (count, dim), frame by frame: (frames * count, dim)."""
    count = len(noise)
    streams = [f"stop {number}" for number in range(1, STOPS)]
    others = [noise_rows(prior, count, seed=seed, truncation=truncation, stream=stream) for stream in streams]
    stops = [noise, *others, noise]
    frames = [
        prior.between(stops[stop], stops[stop + 1], frame / FRAMES) for stop in range(STOPS) for frame in range(FRAMES)
    ]
    return torch.cat(frames)


def _write_grid(
    out: Path, batches: Iterator[Tensor], noise: Tensor, labels: Tensor | None, settings: Mapping[str, Any]
) -> None:
    samples = torch.cat(list(batches))
    limits = image_grids.limits(samples) if samples.ndim == 2 else None
    image_grids.write_png(out, image_grids.picture(samples, limits=limits, scale=settings["scale"]))


def _training_images(
    trained: Mapping[str, Any], settings: Mapping[str, Any], runtime: Runtime, *, shape: tuple[int, ...]
) -> tuple[Dataset, Samples]:
    """Returns the data set of a run, where it lies now, and no samples, with the features and cache of its metrics.

    shape: of the run's samples. Raises UserError.
    """
    near = settings["neighbours"]
    dataset: Dataset = build(config.moved(trained["dataset"], settings["data"]), key="dataset")
    if dataset.shape != shape:
        raise UserError(f"neighbours={near}: the data set has images of {dataset.shape}, not {shape}")
    scale = settings["scale"] or image_grids.default_scale(*shape[1:])
    cells = settings["count"] * (1 + min(near, len(dataset)))
    require_memory(2 * cells * math.prod(shape) * scale**2, neighbours=near, count=settings["count"])
    features: Features = build(trained["metric"]["features"], dataset, key="metric.features", device=runtime.device)
    cache = cache_folder(trained["evaluation"].get("cache"), key="evaluation.cache")
    log.info("neighbours among %s training images, in the features %s", f"{len(dataset):,}", features.name)
    return dataset, Samples(torch.empty(0), features=features, cache=cache)


def _write_neighbours(
    dataset: Dataset,
    like: Samples,
    out: Path,
    batches: Iterator[Tensor],
    noise: Tensor,
    labels: Tensor | None,
    settings: Mapping[str, Any],
) -> None:
    """Writes a row for each sample: itself, and the training images that are nearest to it, the nearest first."""
    samples = Samples(torch.cat([to_bytes(batch) for batch in batches]), features=like.extractor)
    images, headings = nearest_images(
        samples, like, dataset, count=len(samples), near=settings["neighbours"], splits=("train",)
    )
    image_grids.write_png(out, image_grids.table(images, headings=headings, scale=settings["scale"]))


def _write_pngs(
    out: Path, batches: Iterator[Tensor], noise: Tensor, labels: Tensor | None, settings: Mapping[str, Any]
) -> None:
    digits, number = max(5, len(str(len(noise) - 1))), 0
    with atomic_folder(out.resolve()) as folder:
        for batch in batches:
            for image in image_grids.to_uint8(batch):
                (folder / f"{number:0{digits}d}.png").write_bytes(image_grids.encode_png(image))
                number += 1


def _write_arrays(
    out: Path, batches: Iterator[Tensor], noise: Tensor, labels: Tensor | None, settings: Mapping[str, Any]
) -> None:
    import io

    # Images become bytes batch by batch, since those of all batches may not fit in memory as floats.
    parts = [batch.numpy() if batch.ndim == 2 else image_grids.to_uint8(batch) for batch in batches]
    arrays = {"points" if parts[0].ndim == 2 else "images": np.concatenate(parts), "z": noise.numpy()}
    arrays["labels"] = np.full(len(noise), -1) if labels is None else labels.numpy()
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    atomic_write(out, buffer.getbuffer())


def _write_gif(
    out: Path, batches: Iterator[Tensor], noise: Tensor, labels: Tensor | None, settings: Mapping[str, Any]
) -> None:
    images = np.concatenate([image_grids.to_uint8(batch) for batch in batches])
    frames = (image_grids.grid(frame, scale=settings["scale"]) for frame in np.split(images, STOPS * FRAMES))
    image_grids.write_gif(out, frames, milliseconds=60)


_WRITERS: dict[str, Callable[[Path, Iterator[Tensor], Tensor, Tensor | None, Mapping[str, Any]], None]] = {
    "grid": _write_grid,
    "png": _write_pngs,
    "npz": _write_arrays,
    "gif": _write_gif,
}
