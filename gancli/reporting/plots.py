"""Plots with axes, by matplotlib, for diagnostics and reports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gancli.reporting.image_grids import Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, RED, GREEN, GREY, PALE = "#3b6fb6", "#c8401e", "#5a9a4a", "#8a8a8a", "#b0b8c4"


def figure(columns: int = 1, *, width: float = 5.2, height: float = 4.0) -> tuple[Figure, list[Any]]:
    """An empty figure and its axes, side by side; sizes in inches of one of them."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width * columns, height), layout="constrained", dpi=110)
    axes = made.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return made, list(axes)


def drawn(made: Figure) -> Array:
    """The figure as uint8 (H, W, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(made)
    canvas.draw()
    array: Array = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return array
