"""Evaluation while a run trains: metrics of a small sample now and then, which never changes the training."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gancli.datasets.base import Dataset, Split
from gancli.device import Runtime
from gancli.errors import Collapsed, UserError, require_at_least
from gancli.files.user_paths import cache_folder
from gancli.game import Game, eval_mode
from gancli.metrics.base import Samples, reference_samples
from gancli.metrics.suite import build_suite
from gancli.networks.base import Discriminator
from gancli.randomness import seeded
from gancli.training.health import Alert, HealthMonitor
from gancli.training.logging import Logger, Weights
from gancli.training.position import Position

log = logging.getLogger(__name__)
_BATCH_SIZE = 250


@dataclass(frozen=True, kw_only=True)
class Result:
    """values: the numbers by name. alerts: what the health monitor found. is_best: whether it is the best so far.

    seconds: that it took.
    """

    values: dict[str, float]
    alerts: list[Alert]
    is_best: bool
    seconds: float


class PeriodicEvaluation:
    """Measures `count` samples of the averaged generator every `every` images, and at the end of the run.

    every: None for never. reference_count: real samples of the training part to compare with. metric: the settings of
    the group. labelled: whether the generator takes labels. health: what looks for collapse. logger: where results
    are written. discriminator: the run's. cache: folder for the features of real images (see `cache_folder`). Raises
    SettingError, UserError.
    """

    def __init__(
        self,
        *,
        metric: Mapping[str, Any],
        dataset: Dataset,
        labelled: bool,
        runtime: Runtime,
        health: HealthMonitor,
        logger: Logger,
        discriminator: Discriminator | None = None,
        every: int | None = 100_000,
        count: int = 2_000,
        reference_count: int = 10_000,
        cache: str | None = None,
    ) -> None:
        self.check_settings(every=every, count=count, reference_count=reference_count)
        self.every, self.count, self.health, self.logger = every, count, health, logger
        self.process_group = runtime.process_group
        self.suite = None
        if every is not None:
            self.suite = build_suite(
                metric,
                dataset,
                labelled=labelled,
                device=runtime.device,
                cache=cache_folder(cache, key="evaluation.cache"),
                reference_count=reference_count,
                discriminator=discriminator,
            )
            if self.suite is None:
                none = f"evaluation: none of metric=[{','.join(metric.keys() - {'features'})}] suits this data"
                if health.action != "warn":
                    raise UserError(f"{none}, so health.action={health.action} has nothing to check; choose another")
                log.info("%s: there will be no best checkpoint and no health alerts", none)
        self.first: float | None = None  # value of the number that ranks checkpoints
        self.best: float | None = None
        self.best_images, self.healthy_images = 0, 0
        self.seconds = 0.0
        self.latest: dict[str, float] = {}

    @staticmethod
    def check_settings(*, every: int | None, count: int, reference_count: int, **_: Any) -> None:
        """Raises SettingError for values that are wrong whatever the data."""
        require_at_least(2, every=every, count=count, reference_count=reference_count)

    def is_due(self, position: Position) -> bool:
        """Whether the step that led to `position` calls for an evaluation."""
        if self.suite is None or self.every is None:
            return False
        return position.passed(self.every) or position.progress >= 1.0

    def evaluate(self, generator: nn.Module, game: Game, *, seed: int, position: Position) -> Result:
        """Measures samples of `generator`, logs the numbers, and returns the same result in all processes."""
        began = time.monotonic()
        samples = self._generate(generator, game, seed=seed)
        values, alerts, seconds = self.process_group.broadcast_from_main(lambda: self._measure(samples, began))
        assert self.suite is not None
        name, better = self.suite.ranking
        now, best = values[name], self.best
        is_best = math.isfinite(now) and (best is None or (now < best if better == "lower" else now > best))
        if math.isfinite(now) and self.first is None:
            self.first = now
        if is_best:
            self.best, self.best_images = now, position.images
        self.seconds += seconds
        self.latest = values
        self.logger.log_evaluation(position, self._row(values, seed=seed, position=position))
        self.logger.log_values(position, {"speed/evaluation_share": self.seconds / (position.seconds + seconds)})
        return Result(values=values, alerts=alerts, is_best=is_best, seconds=seconds)

    def compare_raw(self, game: Game, *, seed: int) -> dict[Weights, float]:
        """Returns the number that ranks checkpoints, of the averaged generator and of the one in training.

        The first is of the last evaluation, the second is measured now on the same noise; both are the same in all
        processes. Empty where there was no evaluation.
        """
        if self.suite is None or not self.latest:
            return {}
        name, suite = self.suite.ranking[0], self.suite
        samples = self._generate(game.generator, game, seed=seed)
        raw = self.process_group.broadcast_from_main(lambda: suite.main_number(samples))
        return {"ema": self.latest[name], "raw": raw}

    def of_real_samples(self) -> tuple[float, int] | None:
        """Returns the number that ranks checkpoints, of at most `count` real samples of the other part, and how many.

        That is what a perfect generator would reach. None where nothing was measured, or where they are too few.
        """
        if self.suite is None or not self.latest:
            return None
        began = time.monotonic()
        other: Split = "holdout" if self.suite.split == "train" else "train"
        samples = reference_samples(self.suite.dataset, other, self.count, like=self.suite.real)
        value = self.suite.main_number(samples) if len(samples) >= 2 else math.nan
        self.seconds += time.monotonic() - began
        return (value, len(samples)) if math.isfinite(value) else None

    def check_health(self, result: Result, position: Position) -> None:
        """Warns of every alert. Raises Collapsed for a serious one where the health monitor was told to act."""
        for alert in result.alerts:
            level = logging.INFO if alert.kind == "young" else logging.WARNING
            log.log(level, "after %s images: %s", f"{position.images:,}", alert.text)
        serious = next((alert for alert in result.alerts if alert.serious), None)
        if serious is None:
            self.healthy_images = position.images
        elif self.health.action != "warn":
            text = f"after {position.images:,} images: {serious.text}"
            raise Collapsed(text, good_images=self.healthy_images)

    def _generate(self, generator: nn.Module, game: Game, *, seed: int) -> Samples:
        assert self.suite is not None
        noise = game.prior.sample(self.count, seeded(seed, "evaluation"))
        labels = self.suite.labels(self.count) if game.generator.num_classes else None

        def make(rows: Tensor) -> Tensor:
            chosen = None if labels is None else labels[rows].to(game.stream.device)
            return generator(noise[rows].to(game.stream.device), chosen)  # type: ignore[no-any-return]

        with eval_mode(generator), game.autocast():
            size = game.generator.at_once(_BATCH_SIZE)
            return self.suite.samples(self.process_group.map_batches(self.count, size, make), labels)

    def _measure(self, samples: Samples, began: float) -> tuple[dict[str, float], list[Alert], float]:
        assert self.suite is not None
        values = self.suite(samples) | diversity(samples, self.suite.real)
        name, better = self.suite.ranking
        shares = self.suite.dataset.mode_shares
        known = {"modes_share": values["modes"] / len(shares)} if "modes" in values and shares is not None else {}
        alerts = self.health.check(
            self.logger.latest, values | known, name=name, better=better, first=self.first, best=self.best
        )
        return values, alerts, time.monotonic() - began

    def _row(self, values: Mapping[str, float], *, seed: int, position: Position) -> dict[str, Any]:
        assert self.suite is not None
        about = {"checkpoint": None, "images": position.images, "seconds": round(position.seconds, 3), "weights": "ema"}
        about |= {"seed": seed, "samples": self.count, "by": "train"}
        return {"of": f"images {position.images}", "values": dict(values), **self.suite.protocol(), **about}

    @property
    def _scale(self) -> list[Any]:
        """What two values of the number that ranks checkpoints must have in common to be compared."""
        if self.suite is None:
            return []
        protocol = self.suite.protocol()
        return [self.suite.ranking[0], self.count, protocol["reference_hash"], protocol.get("features_hash")]

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed run must know."""
        return {
            "scale": self._scale,
            "seconds": self.seconds,
            "first": self.first,
            "best": self.best,
            "best_images": self.best_images,
            "healthy_images": self.healthy_images,
            "health": self.health.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, rollback: bool = False) -> None:
        """Goes on from `state`. rollback: the best checkpoint is still there, and the time was spent."""
        self.healthy_images = state["healthy_images"]
        self.health.load_state_dict(state["health"])
        if rollback:
            self.latest = {}  # of weights that are no more
            return
        self.seconds = state["seconds"]
        if state["scale"] == self._scale:  # the best value of another metric does not compare
            self.first, self.best, self.best_images = state["first"], state["best"], state["best_images"]


def diversity(samples: Samples, real: Samples) -> dict[str, float]:
    """Returns the variance of the samples' features as a share of that of real samples, also within classes.

    "diversity": squared distance from the mean of all. "diversity_within_classes": from the mean of the sample's own
    class, pooled over classes; only where both have labels, and some class has two real samples.
    """
    values = {"diversity": _share(feature_variance(samples.features), feature_variance(real.features))}
    if samples.labels is not None and real.labels is not None:
        pooled = [feature_variance(each.features, each.labels) for each in (samples, real)]
        if math.isfinite(pooled[1]):  # some class has two real samples
            values["diversity_within_classes"] = _share(*pooled)
    return values


def feature_variance(features: Tensor, labels: Tensor | None = None) -> float:
    """Returns the mean squared distance of features (N, F) from their mean, or from the mean of their class.

    labels: int64 (N,). NaN where no class has two samples.
    """
    rows = features.double()
    if labels is None:
        return float(rows.var(0).sum())
    _, groups, counts = labels.unique(return_inverse=True, return_counts=True)
    means = torch.zeros(len(counts), rows.shape[1], dtype=rows.dtype).index_add_(0, groups, rows) / counts[:, None]
    degrees = len(rows) - len(counts)
    return float((rows - means[groups]).square().sum()) / degrees if degrees else math.nan


def _share(value: float, real: float) -> float:
    return value / real if real else 1.0
