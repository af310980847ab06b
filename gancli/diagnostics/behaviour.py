"""Converges, cycles or diverges? From what a run has logged."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gancli.diagnostics.base import Diagnostic, Run, Shown
from gancli.plots import BLUE, figure

Verdict = Literal["converges", "cycles", "diverges", "drifts"]
Series = NDArray[np.float64]
SERIES = ("parameter/theta", "parameter/psi", "game/value", "loss/generator", "logits/real", "logits/fake")
CURES: dict[Verdict, str] = {
    "converges": "nothing to mend",
    "drifts": "it is still under way: train longer",
    "cycles": "the players chase each other. Try penalty=[r1], update=extragradient, "
    "optimizer@optimizer.generator=optimistic_adam, betas without momentum, or learning rates that fall to 0 "
    "(+schedule@optimizer.generator.lr=cosine)",
    "diverges": "each answer overshoots. Try lower learning rates, penalty=[r1] or a larger weight of it, "
    "or update=alternating",
}
_GROWS, _SHRINKS = 1.15, 0.85  # swing of a wave in the later half over that in the earlier one
_FASTER, _SLOWER = 1.5, 0.7  # pace later over pace before
_PERIODIC = 0.5  # height of the autocorrelation's second peak
_WORST: tuple[Verdict, ...] = ("diverges", "cycles", "drifts", "converges")


class Behaviour(Diagnostic):
    """A verdict on each logged series of the second half of the run, and the worst of them for the game.

    least: rows below which nothing is said.
    """

    title = "behaviour"

    def __init__(self, *, least: int = 60) -> None:
        if least < 24:
            raise ValueError(f"least={least}: at least 24")
        self.least = least

    def suits(self, run: Run) -> bool:
        return len(run.rows) >= self.least

    def __call__(self, run: Run) -> Shown:
        known = {name: run.series(name) for name in SERIES}
        known = {name: pair for name, pair in known.items() if len(pair[1]) >= self.least}
        if any(name.startswith("parameter/") for name in known):  # the point itself, where the game is that small
            known = {name: pair for name, pair in known.items() if name.startswith("parameter/")}
        verdicts = {name: verdict(values) for name, (_, values) in known.items()}
        worst = min(verdicts.values(), key=_WORST.index)
        names = ", ".join(name for name, each in verdicts.items() if each == worst)
        picture, axes = figure(len(known), width=3.4, height=3.0)
        for axis, (name, (images, values)) in zip(axes, known.items(), strict=True):
            axis.plot(images, values, linewidth=0.8, color=BLUE)
            axis.set(title=f"{name}: {verdicts[name]}", xlabel="images seen")
        return Shown(
            text=f"the game {worst} (by {names}): {CURES[worst]}",
            numbers={"verdict": worst, **verdicts},
            figure=picture,
        )


def verdict(values: Series) -> Verdict:
    """What a series does in its last two thirds.

    diverges: not finite, or its swing grows, or it runs away ever faster. drifts: it moves on at one pace. cycles: it
    comes back to where it was, again and again, with the same swing. converges: its swing shrinks, its pace slows
    down, or all it does is noise around a level.
    """
    if not np.isfinite(values).all():
        return "diverges"
    late = values[len(values) // 3 :]
    if np.ptp(late) <= 1e-3 * np.ptp(values):
        return "converges"
    rest = _detrended(late)
    first, last = (float(half.std()) for half in np.array_split(rest, 2))
    growth = last / max(first, 1e-300)
    if _periodicity(rest) > _PERIODIC:
        return "diverges" if growth > _GROWS else "converges" if growth < _SHRINKS else "cycles"
    levels = [part.mean() for part in np.array_split(late, 3)]
    noise = np.mean([_detrended(part).std() for part in np.array_split(late, 3)])
    steps = np.diff(levels)
    if abs(steps.sum()) > 2 * noise and steps[0] * steps[1] > 0:
        pace = steps[1] / steps[0]
        return "diverges" if pace > _FASTER else "converges" if pace < _SLOWER else "drifts"
    return "diverges" if growth > _FASTER else "converges"


def _detrended(part: Series) -> Series:
    """Without the straight line through it."""
    at = np.arange(len(part))
    rest: Series = part - np.polyval(np.polyfit(at, part, 1), at)
    return rest


def _periodicity(rest: Series) -> float:
    """Autocorrelation at its highest past the first crossing of 0: 1 for a pure wave, about 0 for noise."""
    lags = np.arange(len(rest) * 2 // 3)  # at least one and a half periods
    products = np.array([rest[: len(rest) - lag] @ rest[lag:] / (len(rest) - lag) for lag in lags])
    correlation = products / max(products[0], 1e-300)
    below = np.flatnonzero(correlation < 0)
    return float(correlation[below[0] :].max()) if len(below) else 0.0
