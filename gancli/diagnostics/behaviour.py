"""Converges, cycles or diverges? From what a run has logged."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gancli.diagnostics.base import Diagnostic, Run, Shown, figure

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
_GROWS, _SHRINKS = 1.15, 0.85  # swing at the end over swing before
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
            axis.plot(images, values, linewidth=0.8, color="#3b6fb6")
            axis.set(title=f"{name}: {verdicts[name]}", xlabel="images seen")
        return Shown(
            text=f"the game {worst} (by {names}): {CURES[worst]}",
            numbers={"verdict": worst, **verdicts},
            figure=picture,
        )


def verdict(values: Series) -> Verdict:
    """What a series does in its second half, in three windows of the same length.

    diverges: not finite, or its swing or its distance from where it was grows. converges: its swing shrinks, or is
    no more than noise around a level that stays. cycles: it comes back to where it was, again and again, with the
    same swing. drifts: its level still moves.
    """
    if not np.isfinite(values).all():
        return "diverges"
    late = values[len(values) // 2 :]
    parts = np.array_split(late, 3)
    swings = np.array([_swing(part) for part in parts])
    if swings.max() < 1e-3 * max(np.ptp(values), 1e-300) or np.ptp(values) == 0:
        return "converges"
    growth = swings[-1] / max(swings[0], 1e-300)
    periodic = _periodicity(late) > _PERIODIC
    if periodic and growth > _GROWS:
        return "diverges"
    if growth < _SHRINKS:
        return "converges"
    if periodic:
        return "cycles"
    levels = np.array([part.mean() for part in parts])
    steps = np.diff(levels)
    away = abs(levels[-1] - levels[0]) > 2 * swings.mean() and steps[0] * steps[1] > 0
    if away and abs(steps[1]) > _GROWS * abs(steps[0]):
        return "diverges"
    return "drifts" if away else "converges"


def _swing(part: Series) -> float:
    """Standard deviation about the straight line through it."""
    at = np.arange(len(part))
    return float(np.std(part - np.polyval(np.polyfit(at, part, 1), at)))


def _periodicity(late: Series) -> float:
    """Autocorrelation at its first peak past the first crossing of 0: 1 for a pure wave, about 0 for noise."""
    at = np.arange(len(late))
    rest = late - np.polyval(np.polyfit(at, late, 1), at)
    full = np.correlate(rest, rest, mode="full")[len(rest) - 1 :]
    overlap = len(rest) - np.arange(len(rest))
    correlation = full / overlap / max(full[0] / len(rest), 1e-300)
    below = np.flatnonzero(correlation < 0)
    usable = correlation[: len(late) * 2 // 3]  # at least one and a half periods
    return float(usable[below[0] :].max()) if len(below) and below[0] < len(usable) else 0.0
