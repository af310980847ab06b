"""`gancli sample`: generates images from a run folder alone; only the nearest training images need the data set."""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gancli import config
from gancli.build import build
from gancli.datasets.base import Dataset, to_bytes
from gancli.device import Runtime
from gancli.distributed.process_group import ProcessGroup, join_process_group
from gancli.errors import UserError, printable, require_at_least, require_memory, require_positive
from gancli.files.user_paths import cache_folder, expand
from gancli.inference import loading, sample_files
from gancli.inference.directions import semantic_directions, walk_along
from gancli.inference.sampling import (
    STOPS,
    chosen_classes,
    classes_in_turn,
    generate,
    line_between,
    line_through_classes,
    noise_rows,
    walk_through_classes,
    walk_through_noise,
)
from gancli.metrics.base import Samples
from gancli.metrics.features import Features
from gancli.metrics.memorisation import nearest_images
from gancli.networks.base import Generator
from gancli.priors import Prior
from gancli.reporting import image_grids
from gancli.reporting.streams import print_lines
from gancli.training.run_folder import RunFolder

log = logging.getLogger(__name__)
_FLOAT = 4  # bytes
COUNT, ROWS = 64, 8  # samples, and rows of a grid along which samples vary, unless a count is given
PER_SHARD, REACH = 1000, 3.0  # images in a file of format=tar; how far to go along a direction
COLUMNS = 9  # images along such a row, unless steps are given
FRAMES = {"gif": 12, "mp4": 24}  # from one stop of a walk to the next, unless steps are given
SUFFIXES = {"grid": ".png", "png": "", "npz": ".npz", "tar": "", "gif": ".gif", "mp4": ".mp4"}
MOVING = ("gif", "mp4")
SCHEMA = {
    "run": str,
    "count": int | None,
    "seed": int,
    "labels": list[int | str] | int | str | None,
    "truncation": float | None,
    "checkpoint": str | int,
    "weights": Literal["ema", "raw"],
    "format": Literal["grid", "png", "npz", "tar", "gif", "mp4"],
    "vary": Literal["noise", "classes", "directions"] | None,
    "steps": int | None,
    "reach": float | None,
    "layout": Literal["auto", "classes"],
    "shard": int | None,
    "scale": int | None,
    "neighbours": int | None,
    "data": str | None,
    "out": str | None,
    "overwrite": bool,
    "batch_size": int,
    "trust": list[str],
}


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the generator makes the samples of.

    noise: (N, dim). labels: int64 (N,), float (N, classes) for mixtures, or None. columns: of a grid, None for about as
    many as rows. frames: into which the samples are divided, in turn.
    """

    noise: Tensor
    labels: Tensor | None
    columns: int | None = None
    frames: int = 1


def run(settings: dict[str, Any]) -> Path:
    """Writes what `settings` ask for and returns the file or folder. Raises UserError, OSError."""
    settings = _checked(settings)
    near, kind = settings["neighbours"], settings["format"]
    path = expand(settings["run"], key="run")
    loaded = loading.load(path, **{name: settings[name] for name in ("checkpoint", "weights", "trust")})
    generator, prior, names = loaded.generator, loaded.prior, loaded.class_names
    classes = chosen_classes(settings["labels"], generator.num_classes, names)
    _check_run(settings, shape=generator.image_shape, classes=classes)
    if settings["labels"] is not None and classes is not None and len(names) == generator.num_classes:
        _log_classes(classes, names)
    out = _destination(settings, loaded, path, classes)
    runtime: Runtime = build(settings["device"], key="device", process_group=join_process_group())
    table = None if near is None else _training_images(path, settings, runtime, shape=generator.image_shape)
    generator = runtime.place(generator)
    inputs = _inputs(settings, generator, prior, classes)
    make = partial(generate, generator, batch_size=settings["batch_size"], autocast=runtime.autocast)
    if kind == "tar":
        _write_shards(out, inputs, make, runtime.process_group, {**settings, "checkpoint": loaded.file.name})
    else:
        batches = make(inputs.noise, inputs.labels, process_group=runtime.process_group)
        if not runtime.process_group.is_main_process:
            list(batches)  # this process generates its share of them
            return out
        write = _WRITERS[kind] if table is None else partial(_write_neighbours, *table)
        write(out, batches, inputs, settings)
    if runtime.process_group.is_main_process:
        what = f"walks of {inputs.frames} frames" if inputs.frames > 1 else "samples"
        log.info("%s %s from %s:", f"{len(inputs.noise) // inputs.frames:,}", what, loaded.file.name)
        print_lines([str(out)])
    return out


def _log_classes(classes: Sequence[int], names: Sequence[str]) -> None:
    log.info("classes: %s", ", ".join(f"{label} ({printable(names[label])})" for label in dict.fromkeys(classes)))


def _checked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings with what follows from others. Raises UserError where they do not go together."""
    config.check(settings, SCHEMA)
    positive = ("count", "batch_size", "scale", "neighbours", "shard")
    require_at_least(1, **{name: settings[name] for name in positive})
    require_at_least(2, steps=settings["steps"])
    require_positive(reach=settings["reach"])
    kind, vary, near = settings["format"], settings["vary"], settings["neighbours"]
    if settings["scale"] is not None and kind not in ("grid", *MOVING):
        raise UserError(f"scale={settings['scale']}: only for format=grid, format=gif and format=mp4")
    if near is not None and kind != "grid":
        raise UserError(f"neighbours={near}: only for format=grid")
    if settings["data"] is not None and near is None:
        raise UserError(f"data={settings['data']}: only for neighbours=…, which alone need the data set")
    if vary is not None and kind not in ("grid", *MOVING):
        raise UserError(f"vary={vary}: only for format=grid, format=gif and format=mp4")
    if settings["shard"] is not None and kind != "tar":
        raise UserError(f"shard={settings['shard']}: only for format=tar")
    if settings["reach"] is not None and vary != "directions":
        raise UserError(f"reach={settings['reach']:g}: only for vary=directions")
    if settings["layout"] == "classes" and (kind != "grid" or vary is not None or near is not None):
        raise UserError("layout=classes: a row of samples for each class, only for format=grid without vary=…")
    if vary is not None and near is not None:
        raise UserError(f"vary={vary}: not with neighbours=…, which fill the rows")
    if kind in MOVING and vary is None:
        vary = "noise"
    if settings["steps"] is not None and vary is None:
        raise UserError(f"steps={settings['steps']}: only where samples vary: with vary=…, format=gif or format=mp4")
    if kind == "mp4":
        sample_files.require_video()
    rows = vary == "directions" or (kind == "grid" and (vary is not None or settings["layout"] == "classes"))
    count, shard = settings["count"] or (ROWS if rows else COUNT), settings["shard"] or PER_SHARD
    return {**settings, "vary": vary, "count": count, "shard": shard, "reach": settings["reach"] or REACH}


def _check_run(settings: Mapping[str, Any], *, shape: Sequence[int], classes: Sequence[int] | None) -> None:
    """Raises UserError where the settings do not suit a run with samples of `shape` and these `classes`."""
    if len(shape) != 3:
        if settings["format"] not in ("grid", "npz"):
            raise UserError(f"format={settings['format']}: this run makes points, not images; choose grid or npz")
        for name in ("neighbours", "scale", "vary"):
            if settings[name] is not None:
                raise UserError(f"{name}={settings[name]}: this run makes points, not images; leave {name} out")
    if settings["layout"] == "classes" and classes is None:
        raise UserError("layout=classes: this run was trained without labels; leave layout out")
    if settings["vary"] == "classes" and classes is None:
        raise UserError("vary=classes: this run was trained without labels; take vary=noise")
    if settings["vary"] == "classes" and len(set(classes or [])) < 2:
        raise UserError("vary=classes: needs two classes or more, such as labels=[0,1]")
    if settings["vary"] == "directions" and settings["labels"] is not None and len(classes or []) > 1:
        raise UserError(f"labels={settings['labels']}: vary=directions moves one sample, which has one class")
    if settings["scale"] is not None:
        pixels = settings["count"] * math.prod(shape) * settings["scale"] ** 2
        require_memory(pixels, scale=settings["scale"], count=settings["count"])


def _inputs(settings: Mapping[str, Any], generator: Generator, prior: Prior, classes: Sequence[int] | None) -> Inputs:
    """Returns what the samples are made of, in the order in which they are written. Raises UserError."""
    count, vary = settings["count"], settings["vary"]
    chosen = {"seed": settings["seed"], "truncation": settings["truncation"]}
    labels = None if classes is None else classes_in_turn(classes, count)
    if vary is None:
        rows = len(classes or []) if settings["layout"] == "classes" else 1
        if settings["format"] == "grid":  # the others are written batch by batch
            _require_samples(generator, rows * count, count=count)
        noise = noise_rows(prior, count, **chosen)
        if settings["layout"] == "auto":
            return Inputs(noise=noise, labels=labels)
        assert classes is not None
        repeated = torch.tensor(classes).repeat_interleave(count)
        return Inputs(noise=noise.repeat(len(classes), 1), labels=repeated, columns=count)
    moving, steps = settings["format"] in MOVING, _steps(settings, classes)
    times = steps * {"noise": STOPS, "classes": len(classes or []), "directions": 2}[vary] if moving else steps
    scale = settings["scale"] or image_grids.default_scale(*generator.image_shape[1:])
    _require_samples(generator, times * count * scale**2, count=count, steps=times, scale=scale)
    if vary == "directions":
        noise = _along_directions(generator, noise_rows(prior, 1, **chosen), settings, steps=steps)
        labels = None if classes is None else torch.full((count,), classes[0])
    elif vary == "noise" and moving:
        noise = walk_through_noise(prior, noise_rows(prior, count, **chosen), steps, **chosen)
    elif vary == "noise":
        start, end = (noise_rows(prior, count, stream=stream, **chosen) for stream in ("sample", "stop 1"))
        noise = line_between(prior, start, end, steps)
    else:
        assert classes is not None
        along = walk_through_classes if moving else line_through_classes
        mixtures = along(classes, generator.num_classes, steps)
        noise = noise_rows(prior, count, **chosen).expand(len(mixtures), -1, -1)
        labels = mixtures[:, None].expand(-1, count, -1)
    times = len(noise)  # (times, count, dim)
    if labels is not None and labels.ndim == 1:
        labels = labels.expand(times, -1)
    if not moving:  # a row of the grid is one sample over all times
        noise, labels = noise.transpose(0, 1), None if labels is None else labels.transpose(0, 1)
    flat = None if labels is None else labels.flatten(0, 1)
    return Inputs(noise=noise.flatten(0, 1), labels=flat, columns=times, frames=times if moving else 1)


def _steps(settings: Mapping[str, Any], classes: Sequence[int] | None) -> int:
    """Returns the images along a row, or the frames from one stop of a walk to the next."""
    kind, vary = settings["format"], settings["vary"]
    if settings["steps"] is not None:
        return int(settings["steps"])
    if kind in MOVING:
        return FRAMES[kind] * (2 if vary == "directions" else 1)
    if vary != "classes" or classes is None:
        return COLUMNS
    legs = len(classes) - 1
    return legs * max(1, (COLUMNS - 1) // legs) + 1  # each class itself among them


def _require_samples(generator: Generator, number: int, **settings: int) -> None:
    """Raises SettingError where so many samples and their noise do not fit into memory."""
    require_memory(_FLOAT * number * (generator.latent_dim + math.prod(generator.image_shape)), **settings)


def _along_directions(generator: Generator, noise: Tensor, settings: Mapping[str, Any], *, steps: int) -> Tensor:
    """Returns noise (times, count, dim): one sample moved along each of `count` directions; back too in a film."""
    directions, strengths = semantic_directions(generator, settings["count"])
    log.info("directions: singular values %s", ", ".join(f"{value:.3g}" for value in strengths.tolist()))
    along = walk_along(noise[0], directions, steps, reach=settings["reach"])
    return torch.cat([along, along.flip(0)[1:-1]]) if settings["format"] in MOVING else along


def _destination(settings: dict[str, Any], loaded: loading.Loaded, path: Path, classes: Sequence[int] | None) -> Path:
    """Returns the file or folder to write, whose parent exists then. path: of the run or export. Raises UserError."""
    kind = settings["format"]
    suffix = SUFFIXES[kind]
    if settings["out"] is not None:
        out = expand(settings["out"], key="out")
    elif loading.is_export(path):
        out = Path(f"{path.resolve().name}-{_default_name(settings, loaded.file, classes)}{suffix}")
    else:
        out = RunFolder(path).samples / (_default_name(settings, loaded.file, classes) + suffix)
    if suffix and out.suffix != suffix:
        raise UserError(f"out={out}: format={kind} writes a file that ends in {suffix}")
    in_use = out.exists() and not (out.is_dir() and not any(out.iterdir()))
    if in_use and not settings["overwrite"]:
        raise UserError(f"out={out}: exists already; overwrite=true replaces it, or choose another out")
    if not suffix and out.exists() and not out.is_dir():
        raise UserError(f"out={out}: is a file, and format={kind} writes a folder")
    if suffix and out.is_dir():
        raise UserError(f"out={out}: is a folder, and format={kind} writes one file")
    if out.is_dir():
        _check_replaceable(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    return out


def _default_name(settings: Mapping[str, Any], file: Path, classes: Sequence[int] | None) -> str:
    """Returns a name, without its ending, that holds every setting that the content depends on."""
    parts = [settings["format"], file.stem, settings["weights"], f"seed{settings['seed']}", f"count{settings['count']}"]
    if classes is not None and settings["labels"] is not None:
        labels = "_".join(map(str, classes))
        parts.append("labels" + (labels if len(labels) <= 40 else hashlib.sha256(labels.encode()).hexdigest()[:12]))
    optional = ["vary", "steps", "truncation", "scale", "neighbours"]
    optional += ["reach"] if settings["vary"] == "directions" else []
    parts += [f"{key}{settings[key]}" for key in optional if settings[key] is not None]
    parts += [f"layout{settings['layout']}"] if settings["layout"] != "auto" else []
    parts += [f"shard{settings['shard']}"] if settings["format"] == "tar" else []
    return "-".join(parts)


def _check_replaceable(out: Path) -> None:
    """Raises UserError where more would be lost with the folder than samples of this command."""
    if out.is_mount() or out.resolve() == Path.cwd():
        raise UserError(f"out={out}: would be replaced as a whole, which it cannot be; give a folder in it")
    shards = sample_files.written_shards(out)
    for path in out.iterdir():
        plain = path.is_file() and not path.is_symlink()
        is_png = re.fullmatch(r"\d{5,}\.png", path.name) is not None and plain and image_grids.is_by_gancli(path)
        if not (is_png or (plain and path.name in shards)):
            raise UserError(f"out={out}: holds {path.name}, which is no sample of gancli; choose another out")


def _training_images(
    path: Path, settings: Mapping[str, Any], runtime: Runtime, *, shape: tuple[int, ...]
) -> tuple[Dataset, Samples]:
    """Returns the data set of a run, where it lies now, and no samples, with the features and cache of its metrics.

    shape: of the run's samples. Raises UserError.
    """
    near = settings["neighbours"]
    trained = RunFolder(path).settings(trust=settings["trust"], parts=("dataset", "metric.features", "evaluation"))
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
    inputs: Inputs,
    settings: Mapping[str, Any],
) -> None:
    """Writes a row for each sample: itself, and the training images that are nearest to it, the nearest first."""
    samples = Samples(torch.cat([to_bytes(batch) for batch in batches]), features=like.extractor)
    images, headings = nearest_images(
        samples, like, dataset, count=len(samples), near=settings["neighbours"], splits=("train",)
    )
    image_grids.write_png(out, image_grids.table(images, headings=headings, scale=settings["scale"]))


def _write_grid(out: Path, batches: Iterator[Tensor], inputs: Inputs, settings: Mapping[str, Any]) -> None:
    samples = torch.cat(list(batches))
    limits = image_grids.limits(samples) if samples.ndim == 2 else None
    picture = image_grids.picture(samples, limits=limits, columns=inputs.columns, scale=settings["scale"])
    image_grids.write_png(out, picture)


def _frames(batches: Iterator[Tensor], inputs: Inputs, settings: Mapping[str, Any]) -> list[image_grids.Array]:
    images = np.concatenate([image_grids.to_uint8(batch) for batch in batches])
    return [image_grids.grid(frame, scale=settings["scale"]) for frame in np.split(images, inputs.frames)]


def _write_shards(
    out: Path,
    inputs: Inputs,
    make: Callable[[Tensor, Tensor | None], Iterator[Tensor]],
    group: ProcessGroup,
    settings: Mapping[str, Any],
) -> None:
    def generate_rows(rows: slice) -> Iterator[Tensor]:
        return make(inputs.noise[rows], None if inputs.labels is None else inputs.labels[rows])

    about = {name: settings[name] for name in ("run", "checkpoint", "weights", "seed", "labels", "truncation")}
    sample_files.write_shards(
        out,
        generate_rows,
        inputs.labels,
        count=len(inputs.noise),
        per_shard=settings["shard"],
        about=about,
        process_group=group,
    )


_WRITERS: dict[str, Callable[[Path, Iterator[Tensor], Inputs, Mapping[str, Any]], None]] = {
    "grid": _write_grid,
    "png": lambda out, batches, inputs, _: sample_files.write_pngs(out, batches, len(inputs.noise)),
    "npz": lambda out, batches, inputs, _: sample_files.write_arrays(out, batches, inputs.noise, inputs.labels),
    "gif": lambda out, batches, inputs, settings: image_grids.write_gif(
        out, _frames(batches, inputs, settings), milliseconds=sample_files.GIF_MILLISECONDS
    ),
    "mp4": lambda out, batches, inputs, settings: sample_files.write_mp4(out, _frames(batches, inputs, settings)),
}
