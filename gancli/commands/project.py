"""`gancli project`: the noise whose samples are nearest to given images, with a picture and the errors."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import UnidentifiedImageError
from torch import Tensor

from gancli import config
from gancli.build import build
from gancli.datasets.decoding import Decoding
from gancli.datasets.files import find_images
from gancli.device import Runtime
from gancli.distributed.process_group import join_process_group
from gancli.errors import UserError, printable, require_at_least, require_between, require_memory
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
    """Writes a picture, and beside it an npz of what was found; returns the picture. Raises UserError, OSError.

    Of several processes, the main one does it all.
    """
    config.check(settings, SCHEMA)
    require_at_least(1, limit=settings["limit"], scale=settings["scale"])
    require_between(1, 1_000, starts=settings["starts"])
    require_between(1, 1_000_000, steps=settings["steps"])
    group = join_process_group()
    return Path(group.broadcast_from_main(lambda: str(_project(settings))))


def _project(settings: dict[str, Any]) -> Path:
    path, source = expand(settings["run"], key="run"), expand(settings["image"], key="image")
    loaded = loading.load(path, **{name: settings[name] for name in ("checkpoint", "weights", "trust")})
    generator = loaded.generator
    if len(generator.image_shape) != 3:
        raise UserError(f"run={settings['run']}: makes points, not images, to which nothing can be compared")
    labels = chosen_classes(settings["labels"], generator.num_classes, loaded.class_names)
    names, targets = _read(source, generator.image_shape, limit=settings["limit"])
    scale = settings["scale"] or image_grids.default_scale(*generator.image_shape[1:])
    picture = 3 * targets.numel() * scale**2  # bytes: image, sample and difference
    require_memory(2 * picture, limit=settings["limit"], scale=scale)
    out = _destination(settings, loaded, path, source)
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
    _write(out, targets, found, names, scale=scale)
    for number, name in enumerate(names):
        label = "" if found.labels is None else f", class {int(found.labels[number])}"
        log.info("%s: error %.2f of 255%s", printable(name), float(found.errors[number]), label)
    log.info("the noise is in %s", out.with_suffix(".npz"))
    print_lines([str(out)])
    return out


def _destination(settings: dict[str, Any], loaded: loading.Loaded, path: Path, source: Path) -> Path:
    """Returns the picture to write, whose folder exists then. path: of the run or export. Raises UserError."""
    if settings["out"] is not None:
        out = expand(settings["out"], key="out")
    else:
        name = f"projection-{printable(source.name)[:60].replace('.', '_')}-{loaded.file.stem}-{loaded.weights}"
        name += f"-seed{settings['seed']}-steps{settings['steps']}-starts{settings['starts']}"
        folder = Path() if loading.is_export(path) else RunFolder(path).samples
        out = folder / f"{name}.png"
    if out.suffix != ".png":
        raise UserError(f"out={out}: the picture is a file that ends in .png")
    for file in (out, out.with_suffix(".npz")):
        if file.resolve() == source.resolve() or source.resolve() in file.resolve().parents:
            raise UserError(f"out={file}: is the image, or lies in the folder of the images; choose another out")
        if file.is_dir() or (file.exists() and not settings["overwrite"]):
            raise UserError(f"out={file}: exists already; overwrite=true replaces it, or choose another out")
    out.parent.mkdir(parents=True, exist_ok=True)
    return out


def _read(source: Path, shape: tuple[int, ...], *, limit: int) -> tuple[list[str], Tensor]:
    """Returns names and images (N, C, H, W) in [-1, 1] of a file, or of the first ones of a folder or zip."""
    channels, height, width = shape
    if channels not in (1, 3):
        raise UserError(f"image={source}: this generator's images have {channels} channels, which no file has")
    if not source.exists():
        raise UserError(f"image={source}: no such file, folder or zip")
    decoding = Decoding(height, width, channels=3 if channels == 3 else 1, fit="crop")
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
            reason = "not an image that is known" if isinstance(error, UnidentifiedImageError) else str(error)
            raise UserError(f"image={source}: {printable(name)} cannot be read as an image: {reason}") from None
    return list(contents), torch.from_numpy(np.stack(arrays)).float() / 127.5 - 1


def _write(out: Path, targets: Tensor, found: Projection, names: list[str], *, scale: int) -> None:
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
