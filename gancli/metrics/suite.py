"""The metrics of one data set: which of them apply, what samples are compared with, and the protocol of the numbers."""

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
from gancli.files.digest import digest
from gancli.metrics.base import Better, Metric, Number, Samples
from gancli.metrics.features import Features
from gancli.networks.base import Discriminator
from gancli.progress import progress

log = logging.getLogger(__name__)


class MetricSuite:
    """Measures generated samples against at most `reference_count` real samples of the part `reference` of `dataset`.

    metrics: by name, at least one. features: an extractor, or None for points. cache: folder for the features of the
    real samples, which are found again by their content. discriminator: that the generator was trained against, an
    instance or its class, where it is known; features of the same pretraining favour it. Raises UserError where that
    part holds too few samples.
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
        discriminator: Discriminator | type[Discriminator] | None = None,
    ) -> None:
        self.metrics = dict(metrics)
        self.dataset, self.features, self.split = dataset, features, reference
        data, labels = dataset.reference(reference, reference_count)
        if len(data) < 2:
            raise UserError(f"reference={reference}: the data set has {len(data)} such samples; a metric needs 2")
        self.real = Samples(data, labels, features=features, cache=cache)
        pretraining = {None if each is None else each.pretrained_on for each in (discriminator, features)}
        self.shared_pretraining = pretraining.pop() if len(pretraining) == 1 else None
        if features is not None and self.shared_pretraining:
            log.warning(
                "the discriminator and the metrics' features (%s) were both pretrained on %s, which favours this run: "
                "compare it with runs of other discriminators in metric/features=random too",
                features.name,
                self.shared_pretraining,
            )

    @property
    def ranking(self) -> tuple[str, Better]:
        """Returns the number that ranks checkpoints, the first of the first metric, and which direction is better."""
        name, number = next(iter(self.numbers.items()))
        return name, number.better

    @property
    def numbers(self) -> dict[str, Number]:
        """Returns all numbers by name, with patterns such as fid_class_* for those of each class."""
        return {
            name: number for metric in self.metrics.values() for name, number in metric.numbers(self.features).items()
        }

    @property
    def names(self) -> list[str]:
        """Returns the names of `numbers`."""
        return list(self.numbers)

    @property
    def resize(self) -> str:
        """Returns how the size of images was changed, when they were read and by the extractor."""
        changes = [self.dataset.resize, "none" if self.features is None else self.features.resize]
        return ", then ".join(change for change in changes if change != "none") or "none"

    def labels(self, count: int) -> Tensor:
        """Returns classes (count,) for samples to be generated, as frequent as among the real samples."""
        assert self.real.labels is not None
        real_labels = self.real.labels[subset(len(self.real), count)]
        return real_labels[torch.arange(count) % len(real_labels)]

    def samples(self, batches: Iterable[Tensor], labels: Tensor | None) -> Samples:
        """Collects generated batches (n, *shape), images in [-1, 1], rounded as they would be saved to files."""
        data = [(to_bytes(batch) if batch.ndim == 4 else batch.float()).cpu() for batch in batches]
        return Samples(torch.cat(data), labels, features=self.features)

    def __call__(self, samples: Samples) -> dict[str, float]:
        """Returns every number of every metric; NaN for a metric that is undefined for such samples (all equal)."""
        values: dict[str, float] = {}
        for name in progress(self.metrics, title="metrics", total=len(self.metrics)):
            values |= self.measure(name, samples)
        return values

    def main_number(self, samples: Samples) -> float:
        """Returns the number that ranks checkpoints alone, without the time that the other metrics take."""
        return self.measure(next(iter(self.metrics)), samples)[self.ranking[0]]

    def measure(self, name: str, samples: Samples) -> dict[str, float]:
        """Returns the numbers of one metric, which are NaN where it is undefined for such samples."""
        metric = self.metrics[name]
        try:
            return metric(samples, self.real, self.dataset)
        except (ArithmeticError, np.linalg.LinAlgError) as error:
            log.warning("metric %s: %s", name, error)
            return {number: math.nan for number in metric.numbers(self.features) if "*" not in number}

    def protocol(self) -> dict[str, Any]:
        """Returns how the numbers were obtained; two numbers compare only if their protocols agree."""
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
                "shared_pretraining": self.shared_pretraining,
            }
        return protocol


def build_suite(
    metric: Mapping[str, Any],
    dataset: Dataset,
    *,
    labelled: bool,
    device: torch.device,
    cache: Path | None,
    **options: Any,
) -> MetricSuite | None:
    """Builds those metrics of the group `metric` that apply; returns None where none does.

    metric: nodes by name, and the extractor's node as `features`, which is built for images only. labelled: whether
    generated samples have labels. options: further arguments of `MetricSuite`. Raises UserError.
    """
    features = None
    if len(dataset.shape) == 3:
        features = build(metric["features"], dataset, key="metric.features", device=device)
    built = {name: build(node, key=f"metric.{name}") for name, node in metric.items() if name != "features"}
    metrics = {
        name: each
        for name, each in built.items()
        if each.suits(dataset, features) and (labelled or not each.needs_labels)
    }
    return MetricSuite(metrics, dataset, features=features, cache=cache, **options) if metrics else None
