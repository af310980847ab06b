"""Signs that a run goes wrong, in plain words, and what to do about them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gancli.metrics.base import Better

Action = Literal["warn", "stop", "rollback"]


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
    worse: a loss of quality is when the metric is this many times worse than its best.
    saturated: accuracy on both real and generated samples from which the discriminator is too strong.
    small, large: gradient norms of the generator, as multiples of its usual one, that are out of the ordinary.
    """

    def __init__(
        self,
        *,
        action: Action = "warn",
        lower_lr: float = 0.5,
        rollbacks: int = 3,
        diversity: float = 0.3,
        worse: float = 4.0,
        saturated: float = 0.98,
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
        self.diversity, self.worse, self.saturated = diversity, worse, saturated
        self.small, self.large = small, large
        self.norms: list[float] = []  # of the generator's gradient, one for each evaluation

    def look(
        self,
        scalars: Mapping[str, float],
        values: Mapping[str, float],
        *,
        name: str,
        better: Better,
        best: float | None,
    ) -> list[Finding]:
        """What is wrong now. scalars: the last row of the log. values: of the evaluation, with "diversity".

        name, better, best: the number that judges checkpoints, and its best value so far, None before the first.
        """
        return [*self._samples(values, name, better, best), *self._players(scalars)]

    def _samples(self, values: Mapping[str, float], name: str, better: Better, best: float | None) -> list[Finding]:
        found = []
        if values["diversity"] < self.diversity:
            found.append(
                Finding(
                    "collapse",
                    f"mode collapse: samples vary {values['diversity']:.2f} times as much as real ones. "
                    "Try penalty=[r1,r2], loss=relativistic, pack=2 or lower learning rates",
                    serious=True,
                )
            )
        now = values[name]
        if best is None:
            return found
        lost = now > self.worse * best if better == "lower" else now < best / self.worse
        if lost or not math.isfinite(now):
            text = f"quality was lost: {name} is {now:.4g}, and was {best:.4g} at its best. Try lower learning rates"
            found.append(Finding("quality", text, serious=True))
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
        norm = scalars.get("grad_norm/generator")
        if norm is not None:
            usual = sorted(self.norms)[len(self.norms) // 2] if self.norms else norm
            if not self.small * usual <= norm <= self.large * usual:
                what = "vanished" if norm < usual else "exploded"
                text = f"the generator's gradient has {what}: its norm is {norm:.3g}, usually {usual:.3g}"
                found.append(Finding("gradient", text, serious=False))
            self.norms.append(norm)
        return found
