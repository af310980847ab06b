"""Plots with axes, as figures or as images. Matplotlib is imported by the first plot, not by this module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.uint8]
Density = Callable[[Tensor], Tensor | None]
Limits = Sequence[tuple[float, float]]

BLUE, RED, GREEN, GREY, PALE = "#3b6fb6", "#c8401e", "#5a9a4a", "#8a8a8a", "#b0b8c4"
_INCHES = 4.4  # side of a plot of samples
_DPI = 150  # pixels per inch
_MARGIN = 8  # pixels around the axes of a panel
_RESOLUTION = 300  # values of a density along each axis


def figure(columns: int = 1, *, width: float = 4.2, height: float = 3.4) -> tuple[Figure, list[Any]]:
    """Returns an empty figure and its `columns` axes, side by side. width, height: of one of the axes, in inches.

    At the default width, text stays readable where one of the axes fills the screen of a phone.
    """
    from matplotlib.figure import Figure

    result = Figure(figsize=(width * columns, height), layout="constrained", dpi=_DPI)
    axes = result.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return result, list(axes)


def render(figure: Figure) -> Array:
    """Returns the figure as an image, uint8 (H, W, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image: Array = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return image


def panels(figure: Figure, image: Array) -> list[Array]:
    """Returns each of the figure's axes, with its title and labels, cut from `image`, which `render` made of it."""
    height, width, _ = image.shape
    result = []
    for axis in figure.axes:
        box = axis.get_tightbbox()
        assert box is not None
        box = box.padded(_MARGIN)
        rows = slice(max(0, int(height - box.y1)), min(height, int(height - box.y0)))
        result.append(image[rows, max(0, int(box.x0)) : min(width, int(box.x1))])
    return result


def scatter(points: Tensor, *, density: Density | None = None, limits: Limits) -> Array:
    """Returns a plot of points (N, 2) over shading that follows the square root of the density; uint8 (H, W, 3).

    Points outside `limits`, ((x low, x high), (y low, y high)), and points that are not finite are left out.
    """
    (x_low, x_high), (y_low, y_high) = limits
    result, (axis,) = figure(width=_INCHES, height=_INCHES)
    if density is not None:
        y, x = _centres(y_low, y_high), _centres(x_low, x_high)
        values = density(torch.cartesian_prod(y, x).flip(1))
        if values is not None:
            shade = _finite_density(values).sqrt().view(_RESOLUTION, _RESOLUTION)
            axis.imshow(shade.numpy(), extent=(x_low, x_high, y_low, y_high), origin="lower", cmap="Blues", vmin=0)
    coordinates = points.detach().double().cpu()
    low, high = torch.tensor(limits, dtype=torch.float64).unbind(1)
    x, y = coordinates[((coordinates >= low) & (coordinates <= high)).all(1)].unbind(1)  # NaN compares as False
    axis.plot(x, y, ".", color=RED, markersize=2)
    axis.set(xlim=(x_low, x_high), ylim=(y_low, y_high), aspect="auto")
    return render(result)


def histogram(points: Tensor, *, density: Density | None = None, limits: Limits, bins: int = 60) -> Array:
    """Returns a histogram of points (N, 1), as a density, under the curve of the true density; uint8 (H, W, 3).

    Points outside `limits`, ((low, high),), count in the total, so that the bars compare with the true density, but
    have no bar. Points that are not finite are left out.
    """
    ((low, high),) = limits
    values = points.detach().double().cpu().numpy().ravel()
    values = values[np.isfinite(values)]
    counts, edges = np.histogram(values, bins=bins, range=(low, high))
    heights = counts / max(1, len(values)) * bins / (high - low)
    result, (axis,) = figure(width=_INCHES, height=_INCHES)
    axis.stairs(heights, edges, fill=True, color=BLUE)
    top = heights.max()
    x = _centres(low, high)
    true_density = None if density is None else density(x[:, None])
    if true_density is not None:
        curve = _finite_density(true_density).numpy().ravel()
        axis.plot(x, curve, color=RED)
        top = max(top, curve.max())
    axis.set(xlim=(low, high), ylim=(0, 1.1 * top or 1))
    return render(result)


def _centres(low: float, high: float) -> Tensor:
    """Returns the centres of equal cells between `low` and `high`, (_RESOLUTION,)."""
    return low + (high - low) * (torch.arange(_RESOLUTION) + 0.5) / _RESOLUTION


def _finite_density(values: Tensor) -> Tensor:
    """Returns the densities as float64 on the CPU, with 0 where they are not finite."""
    return values.detach().double().cpu().nan_to_num(nan=0.0, posinf=0.0).clamp_min(0)
