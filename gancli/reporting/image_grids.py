"""Samples as images: uint8 arrays (H, W, 1 or 3), and PNG and GIF files, which are written completely or not at all."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from math import ceil, sqrt
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from gancli.datasets.base import to_bytes
from gancli.files.atomic import atomic_write
from gancli.reporting import plots

Array = plots.Array
_MIN_CELL = 48  # pixels of the shorter side of an image in a grid
_HEADING = 16  # pixels of the line above a grid


def to_uint8(images: Tensor) -> Array:
    """Returns images (N, C, H, W) in [-1, 1] as uint8 (N, H, W, C), rounded and clamped; NaN becomes mid-grey.

    The exact inverse of scaling 0 … 255 to [-1, 1].
    """
    array: Array = to_bytes(images).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return array


def grid(
    images: Array,
    *,
    columns: int | None = None,
    pad: int = 2,
    scale: int | None = None,
    headings: Mapping[int, str] | None = None,
) -> Array:
    """Returns images (N, H, W, C) row by row on white, magnified without interpolation.

    columns: None for about as many as rows. pad: pixels around each image. scale: pixels for one of an image; None for
    as many as give the shorter side 48 pixels. headings: texts above the grid, by the column that they begin at. Shows
    the first three channels as RGB where there are three or more, and otherwise the first one in grey. Raises
    ValueError for no images.
    """
    count, height, width, channels = images.shape
    if count == 0:
        raise ValueError("images: none to show")
    scale = scale or default_scale(height, width)
    cells = images[..., : 3 if channels >= 3 else 1].repeat(scale, axis=1).repeat(scale, axis=2)
    _, height, width, channels = cells.shape
    columns = min(columns or ceil(sqrt(count)), count)
    rows = ceil(count / columns)
    canvas = np.full((rows * (height + pad) + pad, columns * (width + pad) + pad, channels), 255, np.uint8)
    for index, cell in enumerate(cells):
        row, column = divmod(index, columns)
        top, left = pad + row * (height + pad), pad + column * (width + pad)
        canvas[top : top + height, left : left + width] = cell
    if not headings:
        return canvas
    font, lefts = ImageFont.load_default(), {pad + column * (width + pad): text for column, text in headings.items()}
    missing = max(0, *(ceil(left + pad + font.getlength(text)) - canvas.shape[1] for left, text in lefts.items()))
    canvas = np.pad(canvas, ((_HEADING, 0), (0, missing), (0, 0)), constant_values=255)
    image = _to_pil(canvas)
    for left, text in lefts.items():
        ImageDraw.Draw(image).text((left, 2), text, fill=0, font=font)
    return _to_array(image)


def table(images: Tensor, *, headings: Mapping[int, str], scale: int | None = None) -> Array:
    """Returns images, uint8 (rows, columns, C, H, W), under `headings`, by the column that they begin at.

    scale: as for `grid`.
    """
    cells = images.flatten(0, 1).permute(0, 2, 3, 1).numpy()
    return grid(cells, columns=images.shape[1], scale=scale, headings=headings)


def first_row(array: Array, *, height: int, width: int, count: int, largest: int) -> list[Array]:
    """Returns at most `count` images of the first row of a grid that `grid` made with its defaults, all of one size.

    height, width: of an image before it was magnified. largest: pixels of a side that an image is shrunk to at most.
    """
    pad, scale = 2, default_scale(height, width)
    height, width = scale * height, scale * width
    shrink = ceil(max(height, width) / largest)
    lefts = range(pad, array.shape[1] - width, pad + width)[:count]
    return [_reduced(array[pad : pad + height, left : left + width], shrink) for left in lefts]


def default_scale(height: int, width: int) -> int:
    """Returns how many times larger images of this size are shown in a grid unless a scale is given."""
    return max(1, ceil(_MIN_CELL / min(height, width)))


def _reduced(array: Array, factor: int) -> Array:
    """Returns an image (H, W, 1 or 3), of which each pixel is the mean of `factor` x `factor` of before."""
    return array if factor == 1 else _to_array(_to_pil(array).reduce(factor))


def shrunk(array: Array, largest: int) -> Array:
    """Returns an image (H, W, 1 or 3) with sides of at most `largest` pixels."""
    image = _to_pil(array)
    image.thumbnail((largest, largest))
    return _to_array(image)


def picture(
    samples: Tensor,
    *,
    density: plots.Density | None = None,
    limits: plots.Limits | None = None,
    columns: int | None = None,
    scale: int | None = None,
) -> Array:
    """Returns a grid of images (N, C, H, W), a histogram of points (N, 1), or a scatter plot of points (N, dims).

    The scatter plot shows the first two coordinates. density: of points. limits: of the plot, by default those of the
    samples. columns, scale: of the grid.
    """
    if samples.ndim == 4:
        return grid(to_uint8(samples), columns=columns, scale=scale)
    limits = _plot_limits(samples) if limits is None else limits
    if samples.shape[1] == 1:
        return plots.histogram(samples, density=density, limits=limits)
    # For more than two coordinates the density of the first two alone is not known.
    return plots.scatter(samples[:, :2], density=density if samples.shape[1] == 2 else None, limits=limits)


def limits(points: Tensor) -> list[tuple[float, float]]:
    """Returns (low, high) for each of the at most two plotted coordinates of points (N, dims), all of equal length.

    The limits are 1.5 times as far apart as the 0.5 % and 99.5 % quantiles, so that an outlier does not shrink the rest
    and generated samples may lie outside the data.
    """
    plotted = points.detach().double().cpu()[:, :2]
    plotted = plotted[plotted.isfinite().all(1)]
    if len(plotted) == 0:
        return [(-1.0, 1.0)] * min(2, points.shape[1])
    low, high = np.quantile(plotted.numpy(), [0.005, 0.995], axis=0)
    half = 0.75 * float((high - low).max()) or 1.0
    return [(float(middle) - half, float(middle) + half) for middle in (low + high) / 2]


_plot_limits = limits  # `picture` has an argument of that name


def write_png(path: Path, array: Array, *, comment: str | None = None) -> None:
    """Writes an image (H, W, 1 or 3) atomically. comment: a text in the file. Raises OSError."""
    atomic_write(Path(path), encode_png(array, comment=comment))


def encode_png(array: Array, *, comment: str | None = None) -> bytes:
    """Returns an image (H, W, 1 or 3) as the bytes of a PNG file. comment: a text in it."""
    buffer, about = io.BytesIO(), PngInfo()
    about.add_text("Software", "gancli")
    if comment is not None:
        about.add_text("Comment", comment)
    _to_pil(array).save(buffer, format="PNG", pnginfo=about)
    return buffer.getvalue()


def read_png(path: Path, *, size: tuple[int, int] | None = None) -> Array | None:
    """Returns the image in a file as (H, W, 1 or 3); None where it is no PNG, damaged, or not of this size.

    size: (height, width) that it must have, known before its pixels are read.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if size is not None and (image.height, image.width) != size:
                return None
            return _to_array(image if image.mode == "L" else image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def is_by_gancli(path: Path) -> bool:
    """Whether a file was made by `encode_png`, as far as its first bytes tell. Raises OSError."""
    with open(path, "rb") as file:
        return b"tEXtSoftware\x00gancli" in file.read(100)


def write_gif(path: Path, frames: Iterable[Array], *, milliseconds: int) -> None:
    """Writes an endless animation of frames (H, W, 1 or 3) atomically, in 256 colours for all of them.

    milliseconds: of each frame. Raises OSError, and ValueError for no frames.
    """
    arrays = list(frames)
    if not arrays:
        raise ValueError("frames: none to show")
    images = [_to_pil(array) for array in arrays]
    if images[0].mode == "RGB":  # colours of its own for each frame would take twenty times as long
        some = np.concatenate([array[::2, ::2] for array in [*arrays[:: ceil(len(arrays) / 4)], arrays[-1]]])
        colours = _to_pil(some).quantize(256)
        images = [image.quantize(palette=colours) for image in images]
    buffer = io.BytesIO()
    images[0].save(buffer, format="GIF", save_all=True, append_images=images[1:], duration=milliseconds, loop=0)
    atomic_write(Path(path), buffer.getbuffer())


def _to_array(image: Image.Image) -> Array:
    array: Array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


def _to_pil(array: Array) -> Image.Image:
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
