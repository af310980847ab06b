"""Signs that a run goes wrong, in plain words, and what to do about them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gancli.metrics.base import Better

Action = Literal["warn", "stop", "rollback"]
_AGAINST_COLLAPSE = "penalty=[r1,r2], loss=relativistic, pack=2 or lower learning rates"
_GIVEN_BACK = 0.1  # share of an improvement whose loss is more than noise


@dataclass(frozen=True)
class Finding:
    """kind: one word for it. text: what was seen, what it means, what may help. serious: samples suffer already."""

    kind: str
    text: str
    serious: bool


class Watch:
    """Looks at each evaluation of a run and says what is wrong.

    action: what a serious finding leads to: `warn` in the log, `stop` the run, or `rollback` to the last
    checkpoint from before with learning rates times `lower_lr`, at most `rollbacks` times, then stop.
    diversity: collapse is when samples vary less than this share of what real ones do, in feature space.
    modes: fewer than this share of the modes of a known law are too few.
    worse: a loss of quality is when the metric is this many times worse than its best, and has given back at
    least a tenth of what was won since the first evaluation.
    saturated: accuracy on both real and generated samples from which the discriminator is too strong.
    gap: how much more often than held-out images a discriminator may take training images for real.
    small, large: gradient norms of the generator, as multiples of its usual one, that are out of the ordinary.
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
            raise ValueError(f"lower_lr={lower_lr}: a factor above 0, at most 1")
        if rollbacks < 0:
            raise ValueError(f"rollbacks={rollbacks}: 0 or more")
        if worse <= 1:
            raise ValueError(f"worse={worse}: above 1, as many times as bad")
        self.action, self.lower_lr, self.rollbacks = action, lower_lr, rollbacks
        self.diversity, self.modes, self.worse, self.saturated = diversity, modes, worse, saturated
        self.gap, self.small, self.large = gap, small, large
        self.norms: list[float] = []  # of the generator's gradient, one for each evaluation

    def look(
        self,
        scalars: Mapping[str, float],
        values: Mapping[str, float],
        *,
        name: str,
        better: Better,
        first: float | None,
        best: float | None,
    ) -> list[Finding]:
        """What is wrong now. scalars: the last row of the log. values: of the evaluation, with "diversity", and
        with "modes_share", the share of its modes that were found, where the law is known.

        name, better: the number that judges checkpoints. first, best: its values so far, None before there are any.
        """
        found = [*self._samples(values), *self._players(scalars)]
        now = values[name]
        if not math.isfinite(now) or (first is not None and best is not None and self._lost(now, first, best, better)):
            was = "" if best is None else f", and was {best:.4g} at its best"
            text = f"quality was lost: {name} is {now:.4g}{was}. Try lower learning rates"
            found.append(Finding("quality", text, serious=True))
        return found

    def _lost(self, now: float, first: float, best: float, better: Better) -> bool:
        if better == "higher":
            return now < best / self.worse
        limit = max(self.worse * best, best + _GIVEN_BACK * (first - best))
        return now > limit > 0  # an estimate that is 0 or below tells no more than that it is small

    def _samples(self, values: Mapping[str, float]) -> list[Finding]:
        found = []
        if not values["diversity"] >= self.diversity:  # nor is a NaN
            found.append(
                Finding(
                    "collapse",
                    f"mode collapse: samples vary {values['diversity']:.2f} times as much as real ones. "
                    f"Try {_AGAINST_COLLAPSE}",
                    serious=True,
                )
            )
        share = values.get("modes_share", 1.0)
        if share < self.modes:
            text = f"samples show {share:.0%} of the modes. If it stays so: {_AGAINST_COLLAPSE}"
            found.append(Finding("modes", text, serious=False))  # a young run has not found them yet
        return found

    def _players(self, scalars: Mapping[str, float]) -> list[Finding]:
        found = []
        right = min(scalars.get("accuracy/real", 0.0), scalars.get("accuracy/fake", 0.0))
        if right >= self.saturated:
            found.append(
                Finding(
                    "saturation",
                    f"the discriminator is right on {right:.0%} of real and of generated samples: it is too strong, "
                    "and the generator learns little from it. Try a larger penalty weight (penalty.r1.weight), "
                    "a lower optimizer.discriminator.lr, or augment=ada where data is short",
                    serious=False,
                )
            )
        if scalars.get("accuracy/gap", 0.0) >= self.gap:
            new = scalars["accuracy/holdout"]
            known = new + scalars["accuracy/gap"]
            found.append(
                Finding(
                    "overfitting",
                    f"the discriminator takes {known:.0%} of training images for real and {new:.0%} of held-out ones: "
                    "it knows its images by heart, and the generator may come to copy them. Try augment=ada, a larger "
                    "penalty weight (penalty.r1.weight), smaller networks, or more data",
                    serious=False,
                )
            )
        norm = scalars.get("grad_norm/generator")
        if norm is not None:
            usual = sorted(self.norms)[len(self.norms) // 2] if self.norms else norm
            if not self.small * usual <= norm <= self.large * usual:
                what = "vanished" if norm < usual else "exploded"
                text = f"the generator's gradient has {what}: its norm is {norm:.3g}, usually {usual:.3g}"
                found.append(Finding("gradient", text, serious=False))
            self.norms.append(norm)
        return found
