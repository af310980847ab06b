"""`gancli sample`: images from a run folder alone, the data set is not needed."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from gancli import config
from gancli.atomic_files import atomic_write
from gancli.build import build
from gancli.device import Runtime
from gancli.distributed.process_group import join_process_group
from gancli.errors import UserError, require_at_least
from gancli.game import eval_mode
from gancli.priors import Prior
from gancli.randomness import seeded
from gancli.reporting import image_grids
from gancli.training.checkpoint import Checkpoints
from gancli.training.run_folder import RunFolder

log = logging.getLogger(__name__)
BLOCK = 1024  # rows of noise drawn at once: row i of a seed is the same for every count and batch size
FRAMES = 12  # of a gif between two stations
SCHEMA = {
    "run": str | int,
    "count": int,
    "seed": int,
    "labels": list[int] | int | None,
    "truncation": float | None,
    "checkpoint": str | int,
    "weights": Literal["ema", "raw"],
    "format": Literal["grid", "png", "npz", "gif"],
    "out": str | int | None,
    "overwrite": bool,
    "batch_size": int,
    "trust": list[str],
}


def run(settings: dict[str, Any]) -> Path:
    """Writes what `settings` ask for and returns where. Raises UserError, OSError."""
    config.check(settings, SCHEMA)
    require_at_least(1, count=settings["count"], batch_size=settings["batch_size"])
    folder = RunFolder(Path(str(settings["run"])).expanduser())
    trained = folder.settings(trust=settings["trust"], parts=("prior", "network.generator"))
    file, state = Checkpoints(folder.checkpoints).pick(settings["checkpoint"])
    out = _destination(settings, folder, file)
    runtime = build(settings["device"], key="device", process_group=join_process_group())
    prior = build(trained["prior"], key="prior")
    generator = runtime.place(generator_of(trained, state, prior, which=settings["weights"], file=file))
    points = len(state["shape"]) != 3
    if points and settings["format"] in ("png", "gif"):
        raise UserError(f"format={settings['format']}: this run makes points, not images; say grid or npz")

    labels = labels_for(settings["labels"], settings["count"], generator.num_classes)
    noise = noise_rows(prior, settings["count"], seed=settings["seed"], truncation=settings["truncation"])
    if settings["format"] == "gif":
        noise, labels = _walk(prior, noise, labels)
    batches = generated(generator, runtime, noise, labels, batch_size=settings["batch_size"])
    if not runtime.process_group.is_main_process:
        list(batches)  # its share of them
        return out
    _WRITERS[settings["format"]](out, batches, noise, labels, points)
    log.info("%s samples from %s: %s", len(noise), file.name, out)
    return out


def noise_rows(prior: Prior, count: int, *, seed: int, truncation: float | None = None) -> Tensor:
    """Noise (count, dim) whose row i depends on (seed, i) alone."""
    rng = seeded(seed, "sample")
    blocks = [prior.sample(BLOCK, rng, truncation=truncation) for _ in range(math.ceil(count / BLOCK))]
    return torch.cat(blocks)[:count]


def generated(
    generator: Any, runtime: Runtime, noise: Tensor, labels: Tensor | None, *, batch_size: int
) -> Iterator[Tensor]:
    """Samples on the CPU, batch by batch, made by all processes together."""

    def made(rows: Tensor) -> Tensor:
        chosen = None if labels is None else labels[rows].to(runtime.device)
        with runtime.autocast():
            return generator(noise[rows].to(runtime.device), chosen).float()  # type: ignore[no-any-return]

    quiet = None if runtime.process_group.is_main_process else True
    with tqdm(total=len(noise), unit="img", disable=quiet) as bar, eval_mode(generator):
        for samples in runtime.process_group.map_batches(len(noise), batch_size, made):
            bar.update(len(samples))
            yield samples.cpu()


def generator_of(trained: dict[str, Any], state: dict[str, Any], prior: Prior, *, which: str, file: Path) -> Any:
    """The generator that checkpoint `file` holds in `state`: `which` is ema or raw. Raises UserError."""
    known = {"latent_dim": prior.dim, "image_shape": tuple(state["shape"]), "num_classes": state["num_classes"]}
    generator = build(trained["network"]["generator"], key="network.generator", **known)
    try:
        generator.load_state_dict(state["ema" if which == "ema" else "generator"])
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UserError(f"{file} holds another network than the run's config.yaml describes: {reason}") from None
    return generator


def _destination(settings: dict[str, Any], folder: RunFolder, file: Path) -> Path:
    kind = settings["format"]
    suffix = {"grid": ".png", "png": "", "npz": ".npz", "gif": ".gif"}[kind]
    name = f"{kind}-{file.stem}-{settings['weights']}-seed{settings['seed']}{suffix}"
    out = Path(str(settings["out"])).expanduser() if settings["out"] is not None else folder.samples / name
    if suffix and out.suffix != suffix:
        raise UserError(f"out={out}: format={kind} writes a file that ends in {suffix}")
    filled = out.exists() and not (out.is_dir() and not any(out.iterdir()))
    if filled and not settings["overwrite"]:
        raise UserError(f"out={out}: exists already; overwrite=true replaces it, or choose another out")
    if kind == "png" and out.exists() and not out.is_dir():
        raise UserError(f"out={out}: is a file, and format=png writes a folder")
    if kind != "png" and out.is_dir():
        raise UserError(f"out={out}: is a folder, and format={kind} writes one file")
    out.parent.mkdir(parents=True, exist_ok=True)
    return out


def labels_for(asked: list[int] | int | None, count: int, num_classes: int) -> Tensor | None:
    """Classes (count,) in turn: those asked for, or all; None for a run without. Raises UserError."""
    if not num_classes:
        if asked is not None:
            raise UserError(f"labels={asked}: this run was trained without labels; leave labels out")
        return None
    wanted = list(range(num_classes)) if asked is None else [asked] if isinstance(asked, int) else asked
    outside = [label for label in wanted if not 0 <= label < num_classes]
    if outside or not wanted:
        raise UserError(f"labels={asked}: classes of this run are 0 to {num_classes - 1}")
    return torch.tensor(wanted).repeat(math.ceil(count / len(wanted)))[:count]


def _walk(prior: Prior, stations: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """A closed way through the stations (count, dim): FRAMES rows from each to the next."""
    onward = stations.roll(-1, dims=0)
    steps = [prior.between(stations, onward, frame / FRAMES) for frame in range(FRAMES)]
    way = torch.stack(steps, dim=1).flatten(0, 1)
    return way, None if labels is None else labels.repeat_interleave(FRAMES)


def _write_grid(out: Path, batches: Iterator[Tensor], noise: Tensor, labels: Tensor | None, points: bool) -> None:
    samples = torch.cat(list(batches))
    image_grids.write_png(out, image_grids.picture(samples, limits=image_grids.limits(samples) if points else None))


def _write_files(out: Path, batches: Iterator[Tensor], noise: Tensor, labels: Tensor | None, points: bool) -> None:
    out.mkdir(parents=True, exist_ok=True)
    digits, number = max(5, len(str(len(noise) - 1))), 0
    for batch in batches:
        for image in image_grids.to_uint8(batch):
            image_grids.write_png(out / f"{number:0{digits}d}.png", image)
            number += 1


def _write_arrays(out: Path, batches: Iterator[Tensor], noise: Tensor, labels: Tensor | None, points: bool) -> None:
    import io

    samples = [batch.numpy() if points else image_grids.to_uint8(batch) for batch in batches]
    arrays = {"points" if points else "images": np.concatenate(samples), "z": noise.numpy()}
    arrays["labels"] = np.full(len(noise), -1) if labels is None else labels.numpy()
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    atomic_write(out, buffer.getbuffer())


def _write_gif(out: Path, batches: Iterator[Tensor], noise: Tensor, labels: Tensor | None, points: bool) -> None:
    frames = [image_grids.grid(image[None]) for batch in batches for image in image_grids.to_uint8(batch)]
    image_grids.write_gif(out, frames, milliseconds=60)


_WRITERS: dict[str, Callable[[Path, Iterator[Tensor], Tensor, Tensor | None, bool], None]] = {
    "grid": _write_grid,
    "png": _write_files,
    "npz": _write_arrays,
    "gif": _write_gif,
}
