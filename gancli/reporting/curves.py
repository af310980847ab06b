"""Curves of several runs in one plot: one line for runs that differ in their seed alone, with a band around it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Line:
    """Several runs at the same numbers of images: (M,) each.

    seconds, mean: means over the runs. low, high: the lowest and the highest value of a run.
    """

    label: str
    images: Array
    seconds: Array
    mean: Array
    low: Array
    high: Array


def summarise(label: str, runs: Sequence[Array]) -> Line:
    """Returns the line of `runs`, whose columns are images, in increasing order, seconds and a value: (N, 3) each.

    It has every number of images at which a run was measured, from the last start to the first end, so that no run is
    extrapolated; between its own measurements a run is interpolated linearly.
    """
    images = np.unique(np.concatenate([run[:, 0] for run in runs]))
    images = images[(images >= max(run[0, 0] for run in runs)) & (images <= min(run[-1, 0] for run in runs))]
    seconds, values = (np.stack([np.interp(images, run[:, 0], run[:, i]) for run in runs]) for i in (1, 2))
    low, high = values.min(0), values.max(0)
    return Line(label=label, images=images, seconds=seconds.mean(0), mean=values.mean(0), low=low, high=high)


def draw(
    lines: Sequence[Line], *, over: str, unit: float = 1.0, xlabel: str, ylabel: str, best: tuple[float, float] | None
) -> NDArray[np.uint8]:
    """Returns a plot of the lines with their bands as an image, uint8 (H, W, 3).

    over: "images" or "seconds", which are divided by `unit`. best: a point to mark with a star. The vertical axis is
    logarithmic where values differ by more than a factor of ten.
    """
    from gancli.reporting.plots import figure, render

    plot, (axis,) = figure()
    for line in lines:
        x = getattr(line, over) / unit
        (drawn,) = axis.plot(x, line.mean, marker="o", markersize=2.5, linewidth=1.4, label=line.label)
        axis.fill_between(x, line.low, line.high, color=drawn.get_color(), alpha=0.18, linewidth=0)
    if best is not None:
        x, y = best[0] / unit, best[1]
        axis.plot(x, y, marker="*", markersize=12, color="black", linestyle="none", zorder=5, label="best run")
    values = np.concatenate([band for line in lines for band in (line.low, line.high)])
    if len(values) and values.min() > 0 and values.max() > 10 * values.min():
        axis.set_yscale("log")
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.xaxis.set_major_formatter("{x:,.0f}" if over == "images" else "{x:g}")
    axis.grid(color="#8883", linewidth=0.5)
    legend = plot.legend(loc="outside lower left", frameon=False, fontsize=8)
    for text in (axis.xaxis.label, axis.yaxis.label, *legend.get_texts()):
        text.set_parse_math(False)  # a dollar sign in a path is one
    plot.set_figheight(plot.get_figheight() + 0.19 * (len(lines) + 1))  # for the legend
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a path may be in any alphabet
        return render(plot)
