"""The health monitor: signs that a run goes wrong, in plain words, and what to do about them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gancli.errors import SettingError, require_at_least
from gancli.metrics.base import Better

Action = Literal["warn", "stop", "rollback"]
_AGAINST_COLLAPSE = "penalty=[r1,r2], loss=relativistic, pack=2 or lower learning rates"
_LOST_SHARE = 0.1  # of an improvement; a smaller loss of quality is noise


@dataclass(frozen=True)
class Alert:
    """kind: one word for it. text: what was seen, what it means, what may help. serious: samples suffer already."""

    kind: str
    text: str
    serious: bool


class HealthMonitor:
    """Checks each evaluation of a run for signs of collapse, divergence and overfitting.

    action: what a serious alert leads to: `warn` logs it, `stop` ends the run, `rollback` returns to the last healthy
    checkpoint with learning rates times `lower_lr`, at most `rollbacks` times, then ends the run.
    diversity: mode collapse is when the variance of the samples' features is below this share of real samples'.
    modes: a smaller share of the modes of a known distribution is too small.
    worse: quality was lost when the metric is this many times worse than its best value, and has lost at least a
    tenth of the improvement since the first evaluation.
    saturated: accuracy on both real and generated samples above which the discriminator is too strong.
    gap: how much more often the discriminator may take training images for real than held-out images.
    small, large: gradient norms of the generator, as multiples of their median, that count as vanished and exploded.
    Raises SettingError.
    """

    def __init__(
        self,
        *,
        action: Action = "warn",
        lower_lr: float = 0.5,
        rollbacks: int = 3,
        diversity: float = 0.3,
        modes: float = 0.5,
        worse: float = 4.0,
        saturated: float = 0.98,
        gap: float = 0.25,
        small: float = 0.01,
        large: float = 100.0,
    ) -> None:
        if not 0 < lower_lr <= 1:
            raise SettingError(f"lower_lr={lower_lr}: a factor above 0, at most 1")
        require_at_least(0, rollbacks=rollbacks)
        if worse <= 1:
            raise SettingError(f"worse={worse}: a factor above 1")
        self.action, self.lower_lr, self.rollbacks = action, lower_lr, rollbacks
        self.diversity, self.modes, self.worse, self.saturated = diversity, modes, worse, saturated
        self.gap, self.small, self.large = gap, small, large
        self.norms: list[float] = []  # the generator's gradient norm at each evaluation

    def check(
        self,
        scalars: Mapping[str, float],
        values: Mapping[str, float],
        *,
        name: str,
        better: Better,
        first: float | None,
        best: float | None,
    ) -> list[Alert]:
        """Returns what is wrong now.

        scalars: the last row of the log. values: the evaluation's numbers, with "diversity", and with "modes_share",
        the share of modes found, where the distribution is known. name, better: the number that ranks checkpoints and
        its direction. first, best: its first and its best value so far; None before there is one.
        """
        alerts = [*self._check_samples(values), *self._check_players(scalars)]
        now = values[name]
        lost = first is not None and best is not None and self._lost_quality(now, first, best, better)
        if lost or not math.isfinite(now):
            before = "" if best is None else f", and was {best:.4g} at its best"
            text = f"quality was lost: {name} is {now:.4g}{before}. Try lower learning rates"
            alerts.append(Alert("quality", text, serious=True))
        return alerts

    def _lost_quality(self, now: float, first: float, best: float, better: Better) -> bool:
        if better == "higher":
            return now < best / self.worse
        limit = max(self.worse * best, best + _LOST_SHARE * (first - best))
        return now > limit > 0  # an estimate of 0 or below only says that the value is small

    def _check_samples(self, values: Mapping[str, float]) -> list[Alert]:
        alerts = []
        if not values["diversity"] >= self.diversity:  # true for NaN too
            alerts.append(
                Alert(
                    "collapse",
                    f"mode collapse: samples vary {values['diversity']:.2f} times as much as real ones. "
                    f"Try {_AGAINST_COLLAPSE}",
                    serious=True,
                )
            )
        share = values.get("modes_share", 1.0)
        if share < self.modes:
            text = f"samples show {share:.0%} of the modes. If it stays so: {_AGAINST_COLLAPSE}"
            alerts.append(Alert("modes", text, serious=False))  # a young run has not found them yet
        return alerts

    def _check_players(self, scalars: Mapping[str, float]) -> list[Alert]:
        alerts = []
        accuracy = min(scalars.get("accuracy/real", 0.0), scalars.get("accuracy/fake", 0.0))
        if accuracy >= self.saturated:
            alerts.append(
                Alert(
                    "saturation",
                    f"the discriminator is right on {accuracy:.0%} of real and of generated samples: it is too strong, "
                    "and the generator learns little from it. Try a larger penalty weight (penalty.r1.weight), "
                    "a lower optimizer.discriminator.lr, or augment=ada where data is short",
                    serious=False,
                )
            )
        if scalars.get("accuracy/gap", 0.0) >= self.gap:
            holdout = scalars["accuracy/holdout"]
            train = holdout + scalars["accuracy/gap"]
            alerts.append(
                Alert(
                    "overfitting",
                    f"the discriminator takes {train:.0%} of training images for real and {holdout:.0%} of held-out "
                    "ones: it overfits, and the generator may come to copy the training images. Try augment=ada, a "
                    "larger penalty weight (penalty.r1.weight), smaller networks, or more data",
                    serious=False,
                )
            )
        norm = scalars.get("grad_norm/generator")
        if norm is not None:
            usual = sorted(self.norms)[len(self.norms) // 2] if self.norms else norm
            if not self.small * usual <= norm <= self.large * usual:
                what = "vanished" if norm < usual else "exploded"
                text = f"the generator's gradient has {what}: its norm is {norm:.3g}, usually {usual:.3g}"
                alerts.append(Alert("gradient", text, serious=False))
            self.norms.append(norm)
        return alerts
