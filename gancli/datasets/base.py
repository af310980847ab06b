"""What every data set offers, and the two ways to implement it: stored images, or a distribution to draw from."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from gancli.datasets.prefetch import Prefetcher
from gancli.distributions import Distribution
from gancli.errors import require_at_least
from gancli.randomness import seeded, to_device

Batch = tuple[Tensor, Tensor | None]
Split = Literal["train", "holdout"]


class DatasetInfo(NamedTuple):
    """What the settings of a data set tell before data is read. num_classes: None where only the data tells."""

    shape: tuple[int, ...]
    num_classes: int | None


class Dataset(ABC):
    """Real samples, as a pure function of (seed, step).

    shape: (C, H, W) of an image or (dims,) of a point.
    num_classes: number of classes, 0 where the data is unlabelled. class_names: of all of them, or empty.
    mode_shares: (K,) probability of each mode where modes can be counted, else None.
    distribution: of points on the line, else None.
    resize: how the size of the images was changed when they were read.
    photographs: whether features that were pretrained on photographs suit the images.
    content_hash: of the files of the user's own that the data was read from, wherever they lie; None for other data.
    """

    shape: tuple[int, ...]
    num_classes: int = 0
    class_names: Sequence[str] = ()
    mode_shares: Tensor | None = None
    distribution: Distribution | None = None
    resize: str = "none"
    photographs: bool = False
    content_hash: str | None = None

    @classmethod
    def describe(cls, **settings: Any) -> DatasetInfo | None:
        """Returns what the constructor's settings tell without reading data; None where they tell nothing.

        Raises SettingError for settings that are wrong whatever the data.
        """
        return None

    @abstractmethod
    def __len__(self) -> int:
        """Returns the number of different training samples; `sys.maxsize` where every sample is drawn afresh."""

    @abstractmethod
    def batch(self, step: int, *, size: int, seed: int, rank: int = 0, world_size: int = 1) -> Batch:
        """Returns this rank's slice of the global batch of `size` samples at `step`.

        The slice is float32 data (size / world_size, *shape), images in [-1, 1], and int64 labels or None.
        """

    @abstractmethod
    def holdout(self, count: int) -> Batch:
        """Returns at most `count` samples, always the same, that are never trained on, as `batch`."""

    @abstractmethod
    def size(self, split: Split) -> int:
        """Returns the number of different samples in that part."""

    @abstractmethod
    def reference(self, split: Split, count: int) -> Batch:
        """Returns at most `count` samples of that part to compare with, always the same, on the CPU, never flipped.

        They are uint8 images or float32 points (n, *shape), with int64 labels (n,) or None.
        """

    def labelled(self, split: Split, count: int) -> tuple[Tensor, Tensor]:
        """Returns at most `count` uint8 images and their int64 labels, for a classifier to learn from.

        Only for data with labels (`num_classes` above 0).
        """
        raise ValueError("the data set has no labels")

    def modes_of(self, data: Tensor, logits: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns the mode (n,) of each sample that has one, and whether it is of high quality (n,) bool.

        data: (N, *shape). logits: (N, K) of a classifier, for images. Only for data with `mode_shares`.
        """
        raise ValueError("the modes of this data set cannot be counted")

    def density(self, points: Tensor) -> Tensor | None:
        """Returns the density (N,) of the true distribution at points (N, dims), or None where it is unknown."""
        return None

    def to(self, device: torch.device) -> Dataset:
        """Delivers batches on `device` from now on, and moves the data there where it is small enough."""
        return self


@lru_cache(maxsize=4)
def _order(length: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(length, generator=seeded(seed, "order", epoch))


def epoch_indices(length: int, start: int, count: int, *, seed: int) -> Tensor:
    """Returns entries start .. start + count of an endless sequence of epochs, each a permutation of range(length).

    The permutation depends on (seed, epoch) alone. Returns int64 indices (count,).
    """
    parts = []
    while count > 0:
        epoch, offset = divmod(start, length)
        take = min(count, length - offset)
        parts.append(_order(length, seed, epoch)[offset : offset + take])
        start, count = start + take, count - take
    return torch.cat(parts)


def to_unit(images: Tensor) -> Tensor:
    """Returns uint8 images 0 .. 255 as float32 in [-1, 1]."""
    return images.to(torch.float32).div_(127.5).sub_(1.0)


def to_bytes(images: Tensor) -> Tensor:
    """Returns images in [-1, 1] as uint8, rounded and clamped, so that it inverts `to_unit`; NaN becomes mid-grey."""
    levels = images.detach().float().nan_to_num(nan=0.0).mul(127.5).add(127.5).round().clamp(0, 255)
    return levels.to(torch.uint8)


def subset(length: int, count: int) -> Tensor:
    """Returns at most `count` indices below `length`, always the same, in order: (n,).

    They are drawn, since every k-th sample of a file may have something in common (MNIST's files are such).
    """
    if count >= length:
        return torch.arange(length)
    return torch.randperm(length, generator=seeded("subset", length))[:count].sort().values


class ImageDataset(Dataset):
    """Images stored as one uint8 tensor (N, C, H, W), in memory or memory-mapped.

    labels: (N,) int64 or None. train_indices, holdout_indices: of the images to train on and of those held out.
    limit: train on that many of them only, drawn once, for a study of small data; a classifier for metrics still
    learns from all. flip: mirror each training image left to right with probability one half. Raises SettingError.
    """

    resident_bytes = 2**31  # larger sets stay where they are, and only their batches are copied to the device

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        train_indices: Tensor,
        holdout_indices: Tensor,
        num_classes: int = 0,
        limit: int | None = None,
        flip: bool = False,
    ) -> None:
        require_at_least(1, limit=limit)
        self.images, self.labels = images, labels
        self.all_train_indices, self.holdout_indices = train_indices, holdout_indices
        self.train_indices = train_indices if limit is None else train_indices[subset(len(train_indices), limit)]
        self.shape = tuple(images.shape[1:])
        self.num_classes = num_classes
        self.flip = flip
        self.device = torch.device("cpu")
        self._prefetchers: dict[tuple[int, int, int], Prefetcher] = {}

    def __len__(self) -> int:
        return len(self.train_indices)

    def batch(self, step: int, *, size: int, seed: int, rank: int = 0, world_size: int = 1) -> Batch:
        local = size // world_size

        def indices_of(step: int, rank: int) -> Tensor:
            return self.train_indices[epoch_indices(len(self), step * size + rank * local, local, seed=seed)]

        prefetched = None
        if self.images.nbytes > self.resident_bytes:
            key = (size, seed, world_size)
            if key not in self._prefetchers:
                self._prefetchers[key] = Prefetcher(self.images, indices_of)
            prefetched = self._prefetchers[key](step, rank)
        images, labels = self._on_device(indices_of(step, rank), prefetched)
        if self.flip:
            flips = torch.rand(size, generator=seeded(seed, "flip", step)) < 0.5
            flips = to_device(flips[rank * local : (rank + 1) * local], images.device)
            images = torch.where(flips[:, None, None, None], images.flip(-1), images)
        return images, labels

    def holdout(self, count: int) -> Batch:
        return self._on_device(self.holdout_indices[subset(len(self.holdout_indices), count)])

    def size(self, split: Split) -> int:
        return len(self if split == "train" else self.holdout_indices)

    def reference(self, split: Split, count: int) -> Batch:
        return self._drawn(self.train_indices if split == "train" else self.holdout_indices, count)

    def labelled(self, split: Split, count: int) -> tuple[Tensor, Tensor]:
        images, labels = self._drawn(self.all_train_indices if split == "train" else self.holdout_indices, count)
        return (images, labels) if labels is not None else super().labelled(split, count)

    def to(self, device: torch.device) -> ImageDataset:
        self.device = device
        if device.type != "cpu" and self.images.nbytes <= self.resident_bytes:
            self.images = self.images.to(device)
        return self

    def _drawn(self, indices: Tensor, count: int) -> Batch:
        """Returns uint8 images and labels of at most `count` of `indices`, always the same, on the CPU."""
        indices = indices[subset(len(indices), count)]
        return self.images[indices.to(self.images.device)].cpu(), None if self.labels is None else self.labels[indices]

    def _on_device(self, indices: Tensor, prefetched: Tensor | None = None) -> Batch:
        """Returns images in [-1, 1] and labels on the device. prefetched: the images, where they are read already."""
        images = self.images[to_device(indices, self.images.device)] if prefetched is None else prefetched
        images = to_unit(images.to(self.device, non_blocking=True))
        return images, None if self.labels is None else to_device(self.labels[indices], self.device)


class SyntheticDataset(Dataset):
    """A distribution: every training sample is drawn afresh, from a generator of (seed, step).

    most_drawn: samples of a reference at most.
    """

    most_drawn = 50_000

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    @classmethod
    def describe(cls, **settings: Any) -> DatasetInfo | None:
        dataset = cls(**settings)
        return DatasetInfo(dataset.shape, dataset.num_classes)

    def __len__(self) -> int:
        return sys.maxsize

    @abstractmethod
    def draw(self, count: int, rng: torch.Generator) -> Batch:
        """Draws `count` training samples (count, *shape) on the CPU, and their labels or None."""

    def draw_batch(self, count: int, rng: torch.Generator) -> Batch:
        """Draws the batch of one step, whose samples may depend on one another; independent ones by default."""
        return self.draw(count, rng)

    def draw_holdout(self, count: int, rng: torch.Generator) -> Batch:
        """Draws from the part that is never trained on; from the distribution itself by default."""
        return self.draw(count, rng)

    def batch(self, step: int, *, size: int, seed: int, rank: int = 0, world_size: int = 1) -> Batch:
        local = size // world_size
        data, labels = self.draw_batch(size, seeded(seed, "draw", step))
        rows = slice(rank * local, (rank + 1) * local)
        return to_device(data[rows], self.device), None if labels is None else to_device(labels[rows], self.device)

    def holdout(self, count: int) -> Batch:
        data, labels = self.draw_holdout(count, seeded(0, "holdout"))
        return data.to(self.device), None if labels is None else labels.to(self.device)

    def size(self, split: Split) -> int:
        return len(self)

    def reference(self, split: Split, count: int) -> Batch:
        draw = self.draw if split == "train" else self.draw_holdout
        data, labels = draw(min(count, self.most_drawn), seeded(0, "reference", split))
        return to_bytes(data) if data.ndim == 4 else data, labels

    def to(self, device: torch.device) -> SyntheticDataset:
        self.device = device
        return self
