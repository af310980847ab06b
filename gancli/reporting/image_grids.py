"""From samples to pictures: uint8 arrays (H, W, 1 or 3), and files that are whole or absent."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from math import ceil, sqrt
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from gancli.atomic_files import atomic_write
from gancli.datasets.base import to_bytes

Array = NDArray[np.uint8]
Density = Callable[[Tensor], Tensor | None]
Limits = Sequence[tuple[float, float]]

_PLOT = 480  # pixels of a plot's side
_CELL = 48  # pixels, at least, of the smaller side of an image in a grid
_WHITE, _DOT = (255, 255, 255), (200, 60, 20)
_SHADE = (70, 110, 180)  # where the density is highest


def to_uint8(images: Tensor) -> Array:
    """Images (N, C, H, W) in [-1, 1] as (N, H, W, C): rounded and clamped, so exact for what came from 0 .. 255.

    What is not a number becomes mid-grey.
    """
    array: Array = to_bytes(images).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return array


def grid(images: Array, *, columns: int | None = None, pad: int = 2) -> Array:
    """Images (N, H, W, C) row by row on white, small ones magnified without blurring.

    columns: None for about as many as rows. pad: pixels around each image. Three channels are taken as
    RGB, of more the first three, otherwise the first one. Raises ValueError where there is no image.
    """
    count, height, width, channels = images.shape
    if count == 0:
        raise ValueError("images: none to show")
    scale = max(1, ceil(_CELL / min(height, width)))
    cells = images[..., : 3 if channels >= 3 else 1].repeat(scale, axis=1).repeat(scale, axis=2)
    _, height, width, channels = cells.shape
    columns = min(columns or ceil(sqrt(count)), count)
    rows = ceil(count / columns)
    canvas = np.full((rows * (height + pad) + pad, columns * (width + pad) + pad, channels), 255, np.uint8)
    for index, cell in enumerate(cells):
        row, column = divmod(index, columns)
        top, left = pad + row * (height + pad), pad + column * (width + pad)
        canvas[top : top + height, left : left + width] = cell
    return canvas


def scatter(points: Tensor, *, density: Density | None = None, limits: Limits) -> Array:
    """Points (N, 2) as dots over shading that follows the square root of the density; the y axis points up.

    Points outside `limits`, ((x low, x high), (y low, y high)), and those that are not finite are left out.
    """
    (x_low, x_high), (y_low, y_high) = limits
    canvas = np.full((_PLOT, _PLOT, 3), _WHITE, np.uint8)
    if density is not None:
        x, y = _centres(x_low, x_high), _centres(y_low, y_high).flip(0)
        values = density(torch.cartesian_prod(y, x).flip(1))
        if values is not None:
            share = _share(values).sqrt().view(_PLOT, _PLOT, 1).cpu().numpy()
            canvas = np.rint(np.array(_WHITE) + share * (np.array(_SHADE) - np.array(_WHITE))).astype(np.uint8)
    where = points.detach().double().cpu().numpy()
    column = np.floor((where[:, 0] - x_low) / (x_high - x_low) * _PLOT)
    row = np.floor((y_high - where[:, 1]) / (y_high - y_low) * _PLOT)
    inside = (column >= 0) & (column < _PLOT) & (row >= 0) & (row < _PLOT)  # False for NaN
    rows, columns = row[inside].astype(int), column[inside].astype(int)
    for down, right in ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0)):
        canvas[(rows + down).clip(0, _PLOT - 1), (columns + right).clip(0, _PLOT - 1)] = _DOT
    return canvas


def histogram(points: Tensor, *, density: Density | None = None, limits: Limits, bins: int = 60) -> Array:
    """Points (N, 1) as bars of empirical density, under the curve of the true one; limits: ((low, high),)."""
    ((low, high),) = limits
    values = points.detach().double().cpu().numpy().ravel()
    values = values[np.isfinite(values)]
    counts, _ = np.histogram(values, bins=bins, range=(low, high))
    bars = counts / max(1, len(values)) * bins / (high - low)
    truth = None if density is None else density(_centres(low, high)[:, None])
    curve = None if truth is None else truth.detach().double().nan_to_num(0.0, posinf=0.0).cpu().numpy().ravel()
    top = 1.1 * max([bars.max(), *([] if curve is None else [curve.max()])]) or 1.0
    canvas = Image.new("RGB", (_PLOT, _PLOT), _WHITE)
    draw = ImageDraw.Draw(canvas)
    edges = np.rint(np.arange(bins + 1) * _PLOT / bins).astype(int)
    for left, right, bar in zip(edges, edges[1:], bars, strict=False):
        height = round(_PLOT * bar / top)
        if height:
            draw.rectangle((int(left), _PLOT - height, int(right) - 1, _PLOT - 1), fill=_SHADE)
    if curve is not None:
        line = [(column, _PLOT - 1 - (_PLOT - 1) * value / top) for column, value in enumerate(curve.tolist())]
        draw.line(line, fill=_DOT, width=2)
    return np.array(canvas)


def picture(
    samples: Tensor, *, density: Density | None = None, limits: Limits | None = None, columns: int | None = None
) -> Array:
    """What suits the shape: (N, C, H, W) a grid, (N, 1) a histogram, (N, dims) a scatter of the first two.

    limits: None for those of the samples. columns: for a grid.
    """
    if samples.ndim == 4:
        return grid(to_uint8(samples), columns=columns)
    limits = _bounds(samples) if limits is None else limits
    if samples.shape[1] == 1:
        return histogram(samples, density=density, limits=limits)
    # The density of the first two coordinates alone is not known.
    return scatter(samples[:, :2], density=density if samples.shape[1] == 2 else None, limits=limits)


def limits(points: Tensor) -> list[tuple[float, float]]:
    """A (low, high) for each of the at most two plotted coordinates of points (N, dims), equally long.

    CenterCropOrPad on the middle 99 % of the points with a quarter of it as margin at either end, so that an
    outlier does not shrink the rest and generated samples have room to be wrong.
    """
    shown = points.detach().double().cpu()[:, :2]
    shown = shown[shown.isfinite().all(1)]
    if len(shown) == 0:
        return [(-1.0, 1.0)] * min(2, points.shape[1])
    low, high = np.quantile(shown.numpy(), [0.005, 0.995], axis=0)
    half = 0.75 * float((high - low).max()) or 1.0
    return [(float(middle) - half, float(middle) + half) for middle in (low + high) / 2]


_bounds = limits  # `picture` has an argument of that name


def write_png(path: Path, array: Array) -> None:
    """Writes (H, W, 1 or 3); nothing is left behind on failure. Raises OSError."""
    atomic_write(Path(path), png(array))


def png(array: Array) -> bytes:
    """(H, W, 1 or 3) as the bytes of a file."""
    buffer = io.BytesIO()
    _image(array).save(buffer, format="PNG")
    return buffer.getvalue()


def write_gif(path: Path, frames: Iterable[Array], *, milliseconds: int) -> None:
    """Writes an endless animation of frames (H, W, 1 or 3), each shown `milliseconds`; as `write_png`.

    Raises ValueError where there is no frame.
    """
    images = [_image(frame) for frame in frames]
    if not images:
        raise ValueError("frames: none to show")
    buffer = io.BytesIO()
    images[0].save(buffer, format="GIF", save_all=True, append_images=images[1:], duration=milliseconds, loop=0)
    atomic_write(Path(path), buffer.getbuffer())


def _image(array: Array) -> Image.Image:
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def _centres(low: float, high: float) -> Tensor:
    """Coordinates of the pixels of a plot's side."""
    return low + (high - low) * (torch.arange(_PLOT) + 0.5) / _PLOT


def _share(values: Tensor) -> Tensor:
    """Densities as shares of the highest one; 0 where they are not finite."""
    values = values.detach().double().nan_to_num(nan=0.0, posinf=0.0).clamp_min(0)
    return values / values.max().clamp_min(1e-300)
