"""What every metric is given, and what it gives back."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from gancli.atomic_files import read_cached_tensors, write_cached_tensors
from gancli.datasets.base import Dataset, subset
from gancli.errors import SettingError

if TYPE_CHECKING:
    from gancli.metrics.features import Features

Better = Literal["lower", "higher"]


class Samples:
    """Samples of one origin, with what an extractor says of them, computed once.

    data: uint8 images (N, C, H, W) or float32 points (N, dims). labels: int64 (N,) or None.
    cache: folder in which the extractor's answer is kept by the content of `data`, or None.
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
        """Of the content, whatever the samples are called and wherever they came from."""
        return digest(self.data)

    @property
    def features(self) -> Tensor:
        """float32 (N, F) on the CPU."""
        return self._extracted["features"]

    @property
    def logits(self) -> Tensor:
        """float32 (N, K) on the CPU. Raises ValueError where the extractor is no classifier."""
        if "logits" not in self._extracted:
            assert self.extractor is not None
            raise SettingError(f"features={self.extractor.name}: they name no classes; use metric/features=classifier")
        return self._extracted["logits"]

    def take(self, count: int) -> Tensor:
        """Features of at most `count` samples, always the same: (n, F)."""
        return self.features[subset(len(self), count)]

    @cached_property
    def _extracted(self) -> dict[str, Tensor]:
        if self.extractor is None:  # points are their own features
            return {"features": self.data.float()}
        if self.cache is None:
            return self.extractor(self.data)
        file = self.cache / f"features-{self.hash}-{self.extractor.hash}.pt"
        found = read_cached_tensors(file)
        if found is None:
            found = self.extractor(self.data)
            write_cached_tensors(file, found)
        return found


class Metric(ABC):
    """Numbers for generated samples, beside real ones.

    values: name of each number -> which direction is better; the first one speaks for the metric.
    also: patterns of the names of numbers that only some data have.
    needs_labels: only for a generator that was trained with labels.
    """

    values: ClassVar[dict[str, Better]]
    also: ClassVar[tuple[str, ...]] = ()
    needs_labels: ClassVar[bool] = False

    def suits(self, dataset: Dataset, features: Features | None) -> bool:
        """Whether it means something for samples of `dataset`; any images, where nothing else is said."""
        return features is not None

    @abstractmethod
    def __call__(self, generated: Samples, real: Samples, dataset: Dataset) -> dict[str, float]:
        """The numbers. dataset: where `real` comes from. What is drawn is always drawn alike."""


def digest(*tensors: Tensor) -> str:
    """A short hash of shapes, types and contents."""
    state = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        state.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        state.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()
