"""Whether a run converges, cycles, diverges or drifts, from its logged scalars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from gancli.diagnostics.base import Diagnostic, DiagnosticResult, TrainedRun
from gancli.errors import require_at_least
from gancli.game_value import SADDLE_VALUE
from gancli.reporting.plots import BLUE, figure

Verdict = Literal["converges", "cycles", "diverges", "drifts"]
Series = NDArray[np.float64]
SERIES = ("parameter/theta", "parameter/psi", "game/value", "loss/generator", "logits/real", "logits/fake")
REMEDIES: dict[Verdict, str] = {
    "converges": "losses and logits have settled",
    "drifts": "losses and logits still move in one direction, so that more images may change the samples",
    "cycles": "losses and logits go up and down by turns, since the players chase each other. Try penalty=[r1], "
    "update=extragradient, optimizer@optimizer.generator=optimistic_adam, betas without momentum, or learning rates "
    "that fall to 0 (+schedule@optimizer.generator.lr=cosine)",
    "diverges": "losses and logits swing wider and wider, since every step overshoots. Try lower learning rates, "
    "penalty=[r1] or a larger weight of it, or update=alternating",
}
_BY_SEVERITY: tuple[Verdict, ...] = ("diverges", "cycles", "drifts", "converges")
# Amplitude of an oscillation in the second half over that in the first half:
_AMPLITUDE_GROWS, _AMPLITUDE_SHRINKS = 1.15, 0.85
# Mean step at the end over mean step at the start:
_ACCELERATES, _DECELERATES = 1.5, 0.7
_PARABOLA = 1.4  # last step over the one before it; of a parabola, such as the turning point of a wave, at most 4/3
_PERIODIC = 0.5  # smallest autocorrelation at a period, and smallest negative one at half a period
_STANDARD_ERRORS = 3.0  # deviations below this many standard errors are taken for noise
_NEAR_SADDLE = 0.2  # largest distance to the saddle point, in nats of the value and as a share for the accuracy


class Behaviour(Diagnostic):
    """Gives a verdict on the last two thirds of each logged series, and on the game: the worst that two series share.

    A single series among several is sometimes misjudged by chance, two seldom are. For a series that is not finite, no
    second one is needed. least: rows of the log below which there is no verdict; with 100 or more, four independent
    series of stationary noise are called other than "converges" in fewer than 1 of 20 runs, for autocorrelations from
    row to row of up to 0.9. Raises SettingError.
    """

    title = "behaviour"

    def __init__(self, *, least: int = 100) -> None:
        require_at_least(24, least=least)
        self.least = least

    def suits(self, run: TrainedRun) -> bool:
        return len(run.rows) >= self.least

    def __call__(self, run: TrainedRun) -> DiagnosticResult:
        logged = {name: run.series(name) for name in SERIES}
        logged = {name: pair for name, pair in logged.items() if len(pair[1]) >= self.least}
        if any(name.startswith("parameter/") for name in logged):  # of a Dirac-GAN: its whole state
            logged = {name: pair for name, pair in logged.items() if name.startswith("parameter/")}
        verdicts = {name: verdict(values) for name, (_, values) in logged.items()}
        not_finite = [name for name, (_, values) in logged.items() if not np.isfinite(values).all()]
        overall = game_verdict(verdicts, not_finite=not_finite)
        severity = _BY_SEVERITY.index(overall)
        deciding = ", ".join(name for name, each in verdicts.items() if _BY_SEVERITY.index(each) <= severity)
        plot, axes = figure(len(logged))
        for axis, (name, (images, values)) in zip(axes, logged.items(), strict=True):
            axis.plot(images, values, linewidth=0.8, color=BLUE)
            axis.set(title=f"{name}: {verdicts[name]}", xlabel="images seen")
        remedy = REMEDIES[overall]
        one = torch.ones(1)
        optimum = run.trainer.game.loss.optimal(one, one)
        if overall == "converges" and (optimum is None or float(optimum) == 0.5):  # other losses, another saddle point
            means = (_late_mean(run, name) for name in ("game/value", "accuracy/real", "accuracy/fake"))
            remedy = remedy_for_limit(*means)
        return DiagnosticResult(
            text=f"the game {overall} (by {deciding}): {remedy}",
            numbers={"verdict": overall, **verdicts},
            figure=plot,
        )


def _late_mean(run: TrainedRun, name: str) -> float | None:
    """Returns the mean of the last third of a series; None where it was not logged."""
    values = run.series(name)[1]
    return float(values[len(values) * 2 // 3 :].mean()) if len(values) else None


def game_verdict(verdicts: Mapping[str, Verdict], *, not_finite: Sequence[str] = ()) -> Verdict:
    """Returns the worst verdict that two series share, or that of the only series.

    not_finite: series with values that are not finite, each of which makes the game diverge.
    """
    ordered = sorted(verdicts.values(), key=_BY_SEVERITY.index)
    return "diverges" if not_finite else ordered[min(1, len(ordered) - 1)]


def remedy_for_limit(value: float | None, real: float | None, fake: float | None) -> str:
    """Returns a sentence on the limit that a game converged to, and the remedy where that is not the saddle point.

    value: of the game, in nats. real, fake: the discriminator's accuracy on real and on generated samples.
    """
    if value is None or real is None or fake is None:
        return REMEDIES["converges"]
    accuracy = (real + fake) / 2
    if abs(value - SADDLE_VALUE) < _NEAR_SADDLE and abs(accuracy - 0.5) < _NEAR_SADDLE:
        return REMEDIES["converges"]
    limit = (
        f"value {value:.2f}, at the saddle point {SADDLE_VALUE:.2f}; accuracy of D {accuracy:.0%}, "
        "at the saddle point 50 %"
    )
    if value > SADDLE_VALUE and accuracy > 0.5:
        return f"D wins ({limit}). Try a larger generator or a stronger penalty, such as penalty=[r1]"
    return f"the limit is not the saddle point ({limit}). Try a larger discriminator, or update=alternating"


def verdict(values: Series) -> Verdict:
    """Returns what a series (n,) does in its last two thirds, where stationary noise would not do the same.

    diverges: a value is not finite, the amplitude of an oscillation grows, or the series moves away ever faster.
    drifts: it moves on at a constant pace, or oscillates too slowly for two periods. cycles: it oscillates for two
    periods or more with constant amplitude. converges: the amplitude shrinks, the pace slows down, or it is noise
    around a level.
    """
    if not np.isfinite(values).all():
        return "diverges"
    late = values[len(values) // 3 :]
    if np.ptp(late) <= 1e-3 * np.ptp(values):
        return "converges"
    residual = _detrended(late)
    first, last = (float(half.std()) for half in np.array_split(residual, 2))
    growth = last / max(first, 1e-300)
    if _periodicity(residual) > _PERIODIC:
        return "diverges" if growth > _AMPLITUDE_GROWS else "converges" if growth < _AMPLITUDE_SHRINKS else "cycles"
    steps = np.diff([part.mean() for part in np.array_split(late, 6)])
    noise = np.mean([_detrended(part).std() for part in np.array_split(late, 3)])
    if abs(steps.sum()) > _STANDARD_ERRORS * noise and abs(np.sign(steps).sum()) == len(steps):
        acceleration = steps[-2:].sum() / steps[:2].sum()
        if acceleration < _DECELERATES:
            return "converges"
        return "diverges" if acceleration > _ACCELERATES and steps[-1] / steps[-2] > _PARABOLA else "drifts"
    autocorrelation = _correlation(residual[:-1], residual[1:])
    # Bartlett's formula for the standard deviation of a first-order autoregression: of log growth, from two halves.
    error = np.sqrt(2 / len(residual) * (1 + autocorrelation**2) / max(1 - autocorrelation**2, 1e-9))
    if np.log(growth) > max(_STANDARD_ERRORS * error, np.log(_ACCELERATES)):
        return "diverges"
    return "drifts" if 1 - autocorrelation < 4 / len(residual) else "converges"


def _detrended(part: Series) -> Series:
    """Returns the series minus the straight line fitted to it."""
    x = np.arange(len(part))
    residual: Series = part - np.polyval(np.polyfit(x, part, 1), x)
    return residual


def _correlation(a: Series, b: Series) -> float:
    return float(a @ b) / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-300)


def _periodicity(residual: Series) -> float:
    """Returns the largest autocorrelation past its first zero, or minus the smallest one up to there if that is less.

    The result is 1 for a wave, also for one that grows or shrinks, and about 0 for noise. The longest period that
    counts is half of the series.
    """
    correlations = np.array([_correlation(residual[:-lag], residual[lag:]) for lag in range(1, len(residual) // 2 + 1)])
    negative = np.flatnonzero(correlations < 0)
    if not len(negative):
        return 0.0
    peak = negative[0] + correlations[negative[0] :].argmax()
    return float(min(correlations[peak], -correlations[: peak + 1].min()))
