"""`gancli project`: the noise whose samples are nearest to given images, with a picture and the errors."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gancli import config
from gancli.build import build
from gancli.datasets.decoding import Decoding
from gancli.datasets.files import find_images
from gancli.device import Runtime
from gancli.errors import UserError, printable, require_at_least
from gancli.files.atomic import atomic_write
from gancli.files.user_paths import expand
from gancli.inference import loading
from gancli.inference.projection import Projection, pretrained_maps, project
from gancli.inference.sampling import chosen_classes
from gancli.reporting import image_grids
from gancli.reporting.streams import print_lines
from gancli.training.run_folder import RunFolder

log = logging.getLogger(__name__)
SCHEMA = {
    "run": str,
    "image": str,
    "limit": int,
    "labels": list[int | str] | int | str | None,
    "starts": int,
    "steps": int,
    "features": Literal["auto", "none"],
    "seed": int,
    "checkpoint": str | int,
    "weights": Literal["ema", "raw"],
    "scale": int | None,
    "out": str | None,
    "overwrite": bool,
    "trust": list[str],
}


def run(settings: dict[str, Any]) -> Path:
    """Writes a picture, and beside it an npz of what was found; returns the picture. Raises UserError, OSError."""
    config.check(settings, SCHEMA)
    require_at_least(1, **{name: settings[name] for name in ("limit", "starts", "steps", "scale")})
    folder = RunFolder(expand(settings["run"], key="run"))
    chosen = {name: settings[name] for name in ("checkpoint", "weights", "trust")}
    loaded = loading.load(folder.path, **chosen)
    generator = loaded.generator
    if len(generator.image_shape) != 3:
        raise UserError(f"run={settings['run']}: makes points, not images, to which nothing can be compared")
    labels = chosen_classes(settings["labels"], generator.num_classes, loaded.class_names)
    source = expand(settings["image"], key="image")
    out = _destination(settings, folder, source)
    names, targets = _read(source, generator.image_shape, limit=settings["limit"])
    runtime: Runtime = build(settings["device"], key="device")
    generator = runtime.place(generator)
    features = pretrained_maps(generator.image_shape, runtime.device) if settings["features"] == "auto" else None
    log.info("comparing pixels%s", "" if features is None else " and the features of EfficientNet-Lite0")
    found = project(
        generator,
        loaded.prior,
        targets,
        labels=labels,
        starts=settings["starts"],
        steps=settings["steps"],
        seed=settings["seed"],
        features=features,
    )
    _write(out, targets, found, names, scale=settings["scale"])
    for number, name in enumerate(names):
        label = "" if found.labels is None else f", class {int(found.labels[number])}"
        log.info("%s: error %.2f of 255%s", printable(name), float(found.errors[number]), label)
    log.info("the noise is in %s", out.with_suffix(".npz"))
    print_lines([str(out)])
    return out


def _destination(settings: dict[str, Any], folder: RunFolder, source: Path) -> Path:
    if settings["out"] is not None:
        out = expand(settings["out"], key="out")
    else:
        inside = folder.samples if folder.exists() else folder.path
        out = inside / f"projection-{printable(source.stem)[:60]}-seed{settings['seed']}.png"
    if out.suffix != ".png":
        raise UserError(f"out={out}: the picture is a file that ends in .png")
    for file in (out, out.with_suffix(".npz")):
        if file.is_dir() or (file.exists() and not settings["overwrite"]):
            raise UserError(f"out={file}: exists already; overwrite=true replaces it, or choose another out")
    out.parent.mkdir(parents=True, exist_ok=True)
    return out


def _read(source: Path, shape: tuple[int, ...], *, limit: int) -> tuple[list[str], Tensor]:
    """Returns names and images (N, C, H, W) in [-1, 1] of a file, or of the first ones of a folder or zip."""
    channels, height, width = shape
    decoding = Decoding(height, width, channels=3 if channels >= 3 else 1, fit="crop")
    if source.is_file() and source.suffix.lower() != ".zip":
        contents = {source.name: source.read_bytes()}
    else:
        files = find_images(source, key="image")
        contents = {name: files.read(name) for name in list(files.names)[:limit]}
    arrays = []
    for name, content in contents.items():
        try:
            arrays.append(decoding(content))
        except Exception as error:  # Pillow raises all sorts for broken files
            raise UserError(f"image={source}: {printable(name)} cannot be read as an image: {error}") from None
    images = torch.from_numpy(np.stack(arrays)).float() / 127.5 - 1
    return list(contents), images.expand(-1, channels, -1, -1) if channels == 1 else images


def _write(out: Path, targets: Tensor, found: Projection, names: list[str], *, scale: int | None) -> None:
    """Writes the npz, then the picture: a row for each image, and beside it its sample and their difference."""
    arrays = {"z": found.z.numpy(), "errors": found.errors.numpy(), "images": image_grids.to_uint8(found.images)}
    arrays["labels"] = np.full(len(names), -1) if found.labels is None else found.labels.numpy()
    arrays["names"] = np.array(names)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    atomic_write(out.with_suffix(".npz"), buffer.getbuffer())
    difference = (found.images - targets).abs() - 1
    rows = torch.stack([targets, found.images, difference], 1)
    cells = image_grids.to_uint8(rows.flatten(0, 1))
    headings = {0: "image", 1: "sample", 2: "difference"}
    image_grids.write_png(out, image_grids.grid(cells, columns=3, scale=scale, headings=headings))
