"""Metrics over one data set: which of them fit it, what they are measured against, and under which protocol."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gancli.build import build
from gancli.datasets.base import Dataset, Split, subset, to_bytes
from gancli.errors import UserError
from gancli.metrics.base import Better, Metric, Samples, digest
from gancli.metrics.features import Features

log = logging.getLogger(__name__)


class MetricSuite:
    """Scores samples against the `reference` part of `dataset`, at most `reference_count` of it.

    metrics: at least one. features: an extractor, or None for points. cache: folder for what the extractor
    says of the reference, found again by content. Raises UserError where the reference is empty.
    """

    def __init__(
        self,
        metrics: Mapping[str, Metric],
        dataset: Dataset,
        *,
        features: Features | None,
        reference: Split = "train",
        reference_count: int = 60_000,
        cache: Path | None = None,
    ) -> None:
        self.metrics = dict(metrics)
        self.dataset, self.features, self.split = dataset, features, reference
        data, labels = dataset.reference(reference, reference_count)
        if len(data) < 2:
            raise UserError(
                f"reference={reference}: the data set has {len(data)} such samples, too few to compare with"
            )
        self.real = Samples(data, labels, features=features, cache=cache)

    @property
    def ranking(self) -> tuple[str, Better]:
        """The number that says which checkpoint is the best: the first of the first metric."""
        return next(iter(next(iter(self.metrics.values())).values.items()))

    @property
    def names(self) -> list[str]:
        """Names of the numbers, with patterns for those that only some data have."""
        return [name for metric in self.metrics.values() for name in (*metric.values, *metric.also)]

    @property
    def resize(self) -> str:
        """What was done to the size of images, on reading and by the extractor."""
        done = [self.dataset.resize, "none" if self.features is None else self.features.resize]
        return ", then ".join(each for each in done if each != "none") or "none"

    def labels(self, count: int) -> Tensor:
        """Classes (count,) of samples to be made, as often as in the reference."""
        assert self.real.labels is not None
        known = self.real.labels[subset(len(self.real), count)]
        return known[torch.arange(count) % len(known)]

    def samples(self, batches: Iterable[Tensor], labels: Tensor | None) -> Samples:
        """Generated samples, batches (n, *shape) with images in [-1, 1], as they would be saved."""
        kept = [(to_bytes(batch) if batch.ndim == 4 else batch.float()).cpu() for batch in batches]
        return Samples(torch.cat(kept), labels, features=self.features)

    def __call__(self, samples: Samples) -> dict[str, float]:
        """Every number of every metric; NaN for those of one that fails on such samples, such as equal ones."""
        values: dict[str, float] = {}
        for name, metric in self.metrics.items():
            try:
                values |= metric(samples, self.real, self.dataset)
            except (ArithmeticError, np.linalg.LinAlgError) as error:
                log.warning("metric %s: %s", name, error)
                values |= dict.fromkeys(metric.values, math.nan)
        return values

    def protocol(self) -> dict[str, Any]:
        """What all numbers of this evaluator have in common: a number without it is not a number."""
        protocol: dict[str, Any] = {
            "metrics": {name: vars(metric) for name, metric in self.metrics.items()},
            "reference": self.split,
            "reference_count": len(self.real),
            "reference_hash": self.real.hash,
            "reference_labels_hash": None if self.real.labels is None else digest(self.real.labels),
            "torch_fidelity": metadata.version("torch-fidelity"),
        }
        if self.features is not None:
            protocol |= {
                "features": self.features.name,
                "features_hash": self.features.hash,
                "features_accuracy": self.features.accuracy,
                "resize": self.resize,
            }
        return protocol


def build_suite(
    metric: Mapping[str, Any],
    dataset: Dataset,
    *,
    labelled: bool,
    device: torch.device,
    cache: Path | None,
    **how: Any,
) -> MetricSuite | None:
    """The evaluator of those metrics of the group `metric` that fit data and run, or None where none does.

    labelled: whether generated samples have labels.
    """
    features = None
    if len(dataset.shape) == 3:
        features = build(metric["features"], dataset, key="metric.features", device=device)
    metrics = {name: build(node, key=f"metric.{name}") for name, node in metric.items() if name != "features"}
    fitting = {
        name: each
        for name, each in metrics.items()
        if each.suits(dataset, features) and (labelled or not each.needs_labels)
    }
    return MetricSuite(fitting, dataset, features=features, cache=cache, **how) if fitting else None
