"""Converges, cycles or diverges? From what a run has logged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from gancli.diagnostics.base import Diagnostic, Run, Shown
from gancli.errors import SettingError
from gancli.game import SADDLE_VALUE
from gancli.reporting.plots import BLUE, figure

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
_PARABOLA = 1.4  # of a last step over the one before: a parabola, as any wave is at its foot, has at most 4/3
_PERIODIC = 0.5  # how alike a series and itself a period later are, and how unlike half a period later
_ERRORS = 3.0  # standard errors that stationary noise does not pass
_NEAR = 0.2  # nats from the saddle point's value: at it
_WORST: tuple[Verdict, ...] = ("diverges", "cycles", "drifts", "converges")


class Behaviour(Diagnostic):
    """A verdict on the last two thirds of each logged series, and for the game the worst that two of them share.

    One of several series looks like anything now and then by chance; two seldom do. A series that is not finite
    needs no second. least: rows below which nothing is said: with 100 or more, four independent series of stationary
    noise are called other than converged in fewer than 1 of 20 runs, up to an autocorrelation of 0.9 from row to row.
    """

    title = "behaviour"

    def __init__(self, *, least: int = 100) -> None:
        if least < 24:
            raise SettingError(f"least={least}: at least 24")
        self.least = least

    def suits(self, run: Run) -> bool:
        return len(run.rows) >= self.least

    def __call__(self, run: Run) -> Shown:
        known = {name: run.series(name) for name in SERIES}
        known = {name: pair for name, pair in known.items() if len(pair[1]) >= self.least}
        if any(name.startswith("parameter/") for name in known):  # the point itself, where the game is that small
            known = {name: pair for name, pair in known.items() if name.startswith("parameter/")}
        verdicts = {name: verdict(values) for name, (_, values) in known.items()}
        shared = of_game(verdicts, broken=[name for name, (_, all_) in known.items() if not np.isfinite(all_).all()])
        names = ", ".join(name for name, each in verdicts.items() if _WORST.index(each) <= _WORST.index(shared))
        picture, axes = figure(len(known), width=3.4, height=3.0)
        for axis, (name, (images, values)) in zip(axes, known.items(), strict=True):
            axis.plot(images, values, linewidth=0.8, color=BLUE)
            axis.set(title=f"{name}: {verdicts[name]}", xlabel="images seen")
        remark = CURES["converges"]
        one = torch.ones(1)
        best = run.trainer.game.loss.optimal(one, one)
        if best is None or float(best) == 0.5:  # else its saddle point lies elsewhere
            remark = settled(*(self._late(run, name) for name in ("game/value", "accuracy/real", "accuracy/fake")))
        return Shown(
            text=f"the game {shared} (by {names}): {remark if shared == 'converges' else CURES[shared]}",
            numbers={"verdict": shared, **verdicts},
            figure=picture,
        )

    @staticmethod
    def _late(run: Run, name: str) -> float | None:
        """Mean of the last third of a series; None where it was not logged."""
        values = run.series(name)[1]
        return float(values[len(values) * 2 // 3 :].mean()) if len(values) else None


def of_game(verdicts: Mapping[str, Verdict], *, broken: Sequence[str] = ()) -> Verdict:
    """The worst that two of the series share, or their only one's; `broken` ones are not finite."""
    ordered = sorted(verdicts.values(), key=_WORST.index)
    return "diverges" if broken else ordered[min(1, len(ordered) - 1)]


def settled(value: float | None, real: float | None, fake: float | None) -> str:
    """Where a game has come to rest. value: of the game, in nats; real, fake: how often D is right on either."""
    if value is None or real is None or fake is None:
        return CURES["converges"]
    right = (real + fake) / 2
    if abs(value - SADDLE_VALUE) < _NEAR and abs(right - 0.5) < _NEAR:
        return CURES["converges"]
    where = (
        f"the value is {value:.2f}, at the saddle point {SADDLE_VALUE:.2f}; D is right on {right:.0%}, there on 50 %"
    )
    if value > SADDLE_VALUE and right > 0.5:
        return (
            f"it has settled, but D wins ({where}). Try a larger generator or a stronger penalty, such as penalty=[r1]"
        )
    return f"it has settled, but not at the saddle point ({where}). Try a larger discriminator, or update=alternating"


def verdict(values: Series) -> Verdict:
    """What a series (n,) does in its last two thirds, as far as stationary noise would not do the same.

    diverges: not finite, or its swing grows, or it runs away ever faster. drifts: it moves on at one pace, or turns
    too slowly to have come back twice. cycles: it comes back to where it was, at least twice, with the same swing.
    converges: its swing shrinks, its pace slows down, or all it does is noise around a level.
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
    steps = np.diff([part.mean() for part in np.array_split(late, 6)])
    noise = np.mean([_detrended(part).std() for part in np.array_split(late, 3)])
    if abs(steps.sum()) > _ERRORS * noise and abs(np.sign(steps).sum()) == len(steps):
        pace = steps[-2:].sum() / steps[:2].sum()
        if pace < _SLOWER:
            return "converges"
        return "diverges" if pace > _FASTER and steps[-1] / steps[-2] > _PARABOLA else "drifts"
    alike = _correlation(rest[:-1], rest[1:])
    # Bartlett's formula for the standard deviation of a first-order autoregression: of log growth, from two halves.
    error = np.sqrt(2 / len(rest) * (1 + alike**2) / max(1 - alike**2, 1e-9))
    if np.log(growth) > max(_ERRORS * error, np.log(_FASTER)):
        return "diverges"
    return "drifts" if 1 - alike < 4 / len(rest) else "converges"


def _detrended(part: Series) -> Series:
    """Without the straight line through it."""
    at = np.arange(len(part))
    rest: Series = part - np.polyval(np.polyfit(at, part, 1), at)
    return rest


def _correlation(a: Series, b: Series) -> float:
    return float(a @ b) / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-300)


def _periodicity(rest: Series) -> float:
    """Autocorrelation at its highest past the first crossing of 0, or the negative of its lowest up to there if that
    is less: 1 for a wave, also one that grows or shrinks; about 0 for noise. Periods up to half of the series count.
    """
    correlation = np.array([_correlation(rest[:-lag], rest[lag:]) for lag in range(1, len(rest) // 2 + 1)])
    below = np.flatnonzero(correlation < 0)
    if not len(below):
        return 0.0
    top = below[0] + correlation[below[0] :].argmax()
    return float(min(correlation[top], -correlation[: top + 1].min()))
