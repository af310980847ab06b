"""The health monitor: signs that a run goes wrong, in plain words, and what to do about them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

from gancli.augment.base import NoAugment
from gancli.errors import SettingError, require_at_least, require_between, require_positive, require_share
from gancli.game import Game
from gancli.metrics.base import Better
from gancli.networks.packed import Packed

Action = Literal["warn", "stop", "rollback"]
_LOST_SHARE = 0.1  # of an improvement; a smaller loss of quality is noise
_GROWS = 0.1  # of its limit, by which a measure of diversity grows or falls where it does so at all
_IMPROVES = 0.9  # a metric that fell to this share of its best value still improves


@dataclass(frozen=True)
class Alert:
    """kind: one word for it. text: what was seen, what it means, what may help. serious: samples suffer already."""

    kind: str
    text: str
    serious: bool


@dataclass(frozen=True, kw_only=True)
class Remedies:
    """What may help against each trouble, without what the run does already."""

    collapse: str = "penalty=[r1,r2], loss=relativistic, pack=2 or lower learning rates"
    strong_discriminator: str = "penalty=[r1] or a lower optimizer.discriminator.lr"
    overfitting: str = "augment=ada, penalty=[r1], smaller networks or more data"
    divergence: str = "lower learning rates, penalty=[r1] or another loss"

    @classmethod
    def for_game(cls, game: Game) -> Remedies:
        """Returns those that `game` does not use yet."""
        penalties = list(game.penalties)
        stronger = [f"a larger penalty.{penalties[0]}.weight" if penalties else "penalty=[r1]"]
        images = len(game.generator.image_shape) == 3
        augment = ["augment=ada"] if images and isinstance(game.augment, NoAugment) else []
        precision = [] if isinstance(game.autocast(), nullcontext) else ["device.precision=float32"]
        collapse = [*stronger, "lower learning rates"]
        if penalties == ["r1"]:
            collapse.insert(1, "penalty=[r1,r2]")
        if not game.loss.relativistic:
            collapse.insert(-1, "loss=relativistic")
        discriminator = game.discriminator
        if not (game.generator.num_classes or isinstance(discriminator, Packed) or discriminator.pretrained_on):
            collapse.insert(-1, "pack=2")
        return cls(
            collapse=_either(*collapse),
            strong_discriminator=_either(*stronger, "a lower optimizer.discriminator.lr", *augment),
            overfitting=_either(*augment, *stronger, "smaller networks", "more data"),
            divergence=_either("lower learning rates", *stronger, *precision, "another loss"),
        )


def _either(*words: str) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]])


class HealthMonitor:
    """Checks each evaluation of a run for signs of collapse, divergence and overfitting.

    Samples that do not vary mean mode collapse only once training has gone past its start: where they never varied
    more, and still come to vary more or to score better, the run is "not trained yet".

    action: what a serious alert leads to: `warn` logs it, `stop` ends the run, `rollback` returns to the last healthy
    checkpoint with learning rates times `lower_lr`, at most `rollbacks` times, then ends the run.
    diversity: mode collapse is when the variance of the samples' features, of all or within the classes, is below this
    share of real samples'. modes: a smaller share of the modes of a known distribution is too small.
    lost_quality: quality was lost when the metric is this many times worse than its best value, and has lost at least
    a tenth of the improvement since the first evaluation.
    strong_discriminator: accuracy on both real and generated samples above which the discriminator is too strong.
    overfitting: how much more often the discriminator may take training images for real than held-out images.
    vanished_gradient, exploded_gradient: gradient norms of the generator, as multiples of their median, beyond which
    it counts as such. remedies: what alerts advise. Raises SettingError.
    """

    def __init__(
        self,
        *,
        action: Action = "warn",
        lower_lr: float = 0.5,
        rollbacks: int = 3,
        diversity: float = 0.3,
        modes: float = 0.5,
        lost_quality: float = 4.0,
        strong_discriminator: float = 0.98,
        overfitting: float = 0.25,
        vanished_gradient: float = 0.01,
        exploded_gradient: float = 100.0,
        remedies: Remedies = Remedies(),
    ) -> None:
        require_positive(lower_lr=lower_lr)
        require_share(lower_lr=lower_lr, diversity=diversity, modes=modes, strong_discriminator=strong_discriminator)
        require_share(overfitting=overfitting, vanished_gradient=vanished_gradient)
        require_at_least(0, rollbacks=rollbacks)
        require_between(1, 10**9, lost_quality=lost_quality, exploded_gradient=exploded_gradient)
        if lost_quality == 1:
            raise SettingError(f"lost_quality={lost_quality}: a factor above 1")
        self.action, self.lower_lr, self.rollbacks, self.remedies = action, lower_lr, rollbacks, remedies
        self.diversity, self.modes, self.lost_quality = diversity, modes, lost_quality
        self.strong_discriminator, self.overfitting = strong_discriminator, overfitting
        self.vanished_gradient, self.exploded_gradient = vanished_gradient, exploded_gradient
        self.accuracy = 0.0  # of the discriminator, at the evaluation before
        self.norms: list[float] = []  # the generator's gradient norm at each evaluation
        self.last: dict[str, float] = {}  # each measure of diversity at the evaluation before
        self.most: dict[str, float] = {}  # and its largest value so far

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

        scalars: the last row of the log. values: the evaluation's numbers, with "diversity", "diversity_within_classes"
        where samples have labels, and "modes_share", the share of modes found, where the distribution is known.
        name, better: the number that ranks checkpoints and its direction. first, best: its first and its best value so
        far; None before there is one.
        """
        now = values[name]
        improves = best is None or (now <= _IMPROVES * best if better == "lower" else now * _IMPROVES >= best)
        low = self._low_diversity(values)
        young = {measure for measure in low if self._young(measure, values[measure], improves=improves)}
        alerts = [alert for measure, alert in low.items() if measure not in young]
        if young and not alerts:
            text = f"not trained yet: samples vary {values['diversity']:.2f} times as much as real ones"
            alerts = [Alert("young", text, serious=False)]
        alerts += self._check_players(scalars, young=bool(young))
        for measure in self._limits.keys() & values.keys():
            self.last[measure] = values[measure]
            self.most[measure] = max(values[measure], self.most.get(measure, -math.inf))
        lost = first is not None and best is not None and self._lost_quality(now, first, best, better)
        if lost or not math.isfinite(now):
            before = "" if best is None else f", and was {best:.4g} at its best"
            text = f"quality was lost: {name} is {now:.4g}{before}. Try {self.remedies.divergence}"
            alerts.append(Alert("quality", text, serious=True))
        return alerts

    @property
    def _limits(self) -> dict[str, float]:
        """Returns the smallest healthy value of each measure of diversity."""
        return {"diversity": self.diversity, "diversity_within_classes": self.diversity, "modes_share": self.modes}

    def _low_diversity(self, values: Mapping[str, float]) -> dict[str, Alert]:
        """Returns the alert of each measure of diversity that is too small; NaN is too small."""
        low = {name for name, limit in self._limits.items() if name in values and not values[name] >= limit}
        advice, alerts = self.remedies.collapse, dict[str, Alert]()
        if "diversity" in low:
            text = f"mode collapse: samples vary {values['diversity']:.2f} times as much as real ones. Try {advice}"
            alerts["diversity"] = Alert("collapse", text, serious=True)
        elif "diversity_within_classes" in low:
            share = values["diversity_within_classes"]
            text = f"mode collapse within classes: samples of a class vary {share:.2f} times as much as real ones of it"
            alerts["diversity_within_classes"] = Alert("collapse", f"{text}. Try {advice}", serious=True)
        if "modes_share" in low:
            text = f"samples show {values['modes_share']:.0%} of the modes. Try {advice}"
            alerts["modes_share"] = Alert("modes", text, serious=False)
        return alerts

    def _young(self, measure: str, value: float, *, improves: bool) -> bool:
        """Whether a value that is too small was never larger, and may only need more training."""
        limit, most = self._limits[measure], self.most.get(measure, -math.inf)
        if not math.isfinite(value) or most >= limit or value < most - _GROWS * limit:
            return False
        return measure not in self.last or improves or value >= self.last[measure] + _GROWS * limit

    def _lost_quality(self, now: float, first: float, best: float, better: Better) -> bool:
        if better == "higher":
            return now < best / self.lost_quality
        limit = max(self.lost_quality * best, best + _LOST_SHARE * (first - best))
        return now > limit > 0  # an estimate of 0 or below only says that the value is small

    def _check_players(self, scalars: Mapping[str, float], *, young: bool) -> list[Alert]:
        """Returns what the log tells of the two players. young: a discriminator that leads is normal at first."""
        alerts = []
        accuracy = min(scalars.get("accuracy/real", 0.0), scalars.get("accuracy/fake", 0.0))
        before, self.accuracy = self.accuracy, accuracy
        if accuracy >= self.strong_discriminator and (not young or before >= self.strong_discriminator):
            text = (
                f"the discriminator is right on {accuracy:.0%} of real and of generated samples: it is too strong, and "
                f"the generator learns little from it. Try {self.remedies.strong_discriminator}"
            )
            alerts.append(Alert("saturation", text, serious=False))
        if scalars.get("accuracy/gap", 0.0) >= self.overfitting:
            holdout = scalars["accuracy/holdout"]
            text = (
                f"the discriminator takes {holdout + scalars['accuracy/gap']:.0%} of training images for real and "
                f"{holdout:.0%} of held-out ones: it overfits, and the generator may come to copy the training images. "
                f"Try {self.remedies.overfitting}"
            )
            alerts.append(Alert("overfitting", text, serious=False))
        norm = scalars.get("grad_norm/generator")
        if norm is not None:
            usual = sorted(self.norms)[len(self.norms) // 2] if self.norms else norm
            if not self.vanished_gradient * usual <= norm <= self.exploded_gradient * usual:
                what = "vanished" if norm < usual else "exploded"
                text = f"the generator's gradient has {what}: its norm is {norm:.3g}, usually {usual:.3g}"
                alerts.append(Alert("gradient", text, serious=False))
            self.norms.append(norm)
        return alerts

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed run must know of earlier evaluations."""
        return {
            "accuracy": self.accuracy,
            "norms": list(self.norms),
            "last": dict(self.last),
            "most": dict(self.most),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state`."""
        self.accuracy, self.norms = state["accuracy"], list(state["norms"])
        self.last, self.most = dict(state["last"]), dict(state["most"])
