"""What every metric is given and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor

from gancli.datasets.base import Dataset, Split, subset
from gancli.errors import UserError
from gancli.files import tensor_files
from gancli.files.digest import digest
from gancli.metrics.features import Features

Better = Literal["lower", "higher"]


class Number(NamedTuple):
    """What one number of a metric says. better: the direction that is better. meaning: in a few words, for a table."""

    better: Better
    meaning: str


class Samples:
    """Samples from one source with their features, which are computed once, at the first use.

    data: uint8 images (N, C, H, W) or float32 points (N, dims). labels: int64 (N,) or None. features: the extractor,
    None for points. cache: folder in which features are kept by the content of `data`, or None.
    """

    def __init__(
        self,
        data: Tensor,
        labels: Tensor | None = None,
        *,
        features: Features | None = None,
        cache: Path | None = None,
    ) -> None:
        self.data, self.labels, self.extractor, self.cache = data, labels, features, cache

    def __len__(self) -> int:
        return len(self.data)

    @cached_property
    def hash(self) -> str:
        """Returns a hash of the content of `data` alone."""
        return digest(self.data)

    @property
    def features(self) -> Tensor:
        """Returns the features, float32 (N, F) on the CPU."""
        return self._extracted["features"]

    @property
    def logits(self) -> Tensor:
        """Returns the class logits, float32 (N, K) on the CPU. Raises UserError where the extractor has none."""
        if "logits" not in self._extracted:
            assert self.extractor is not None
            raise UserError(f"metric/features: {self.extractor.name} has no classes; use metric/features=classifier")
        return self._extracted["logits"]

    def feature_subset(self, count: int) -> Tensor:
        """Returns the features of at most `count` samples, always the same ones: (n, F)."""
        return self.features[subset(len(self), count)]

    @cached_property
    def _extracted(self) -> dict[str, Tensor]:
        if self.extractor is None:  # points are their own features
            return {"features": self.data.float()}
        if self.cache is None:
            return self.extractor(self.data)
        file = self.cache / f"features-{self.hash}-{self.extractor.hash}.pt"
        names = ["features", *(["logits"] if self.extractor.names_classes else [])]
        extracted = tensor_files.read_cached(file, {name: Tensor for name in names})
        if extracted is None or any(len(extracted[name]) != len(self.data) for name in names):
            extracted = self.extractor(self.data)
            tensor_files.write_cached(file, extracted)
        return extracted


class Metric(ABC):
    """Computes numbers for generated samples, most of them in comparison with real ones.

    needs_labels: whether it is only for a generator that takes class labels.
    """

    needs_labels: ClassVar[bool] = False

    @abstractmethod
    def numbers(self, features: Features | None) -> dict[str, Number]:
        """Returns the numbers by name, as they are called in these features (None for points).

        The first number is the metric's main one and ranks checkpoints. A name with `*` is a pattern for numbers of
        which there are as many as the data has classes. A name with `_std` at its end is the standard deviation of the
        number before it.
        """

    def suits(self, dataset: Dataset, features: Features | None) -> bool:
        """Whether the metric is defined for samples of `dataset` in `features`; by default, for all images."""
        return features is not None

    @abstractmethod
    def __call__(self, generated: Samples, real: Samples, dataset: Dataset) -> dict[str, float]:
        """Returns the numbers by name, the same at every call. dataset: the source of `real`."""


def reference_samples(dataset: Dataset, split: Split, count: int, *, like: Samples) -> Samples:
    """Returns at most `count` real samples of a part of `dataset`, with the extractor and cache of `like`."""
    return Samples(*dataset.reference(split, count), features=like.extractor, cache=like.cache)
