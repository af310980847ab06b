"""Stacked MNIST: a data set of images with 1,000 modes that can be counted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gancli.datasets.base import Batch, DatasetInfo, Split, SyntheticDataset, to_unit
from gancli.datasets.torchvision_sets import load

_INFO = DatasetInfo((3, 28, 28), 1000)
_DIGITS = 10


class StackedMNIST(SyntheticDataset):
    """Three random digits as red, green and blue, (3, 28, 28); label 100 r + 10 g + b (Metz et al., ICLR 2017).

    The held-out samples are stacked from digits of MNIST's test part. root, download: as for MNIST. Raises UserError.
    """

    def __init__(self, *, root: str = "data", download: bool = True) -> None:
        super().__init__()
        self.shape, self.num_classes = _INFO.shape, 1000
        self.digits = load("MNIST", root=root, download=download, train=True)
        self.holdout_digits = load("MNIST", root=root, download=download, train=False)
        shares = torch.bincount(self.digits[1], minlength=_DIGITS).double() / len(self.digits[1])
        self.mode_shares = torch.einsum("r,g,b->rgb", shares, shares, shares).flatten()

    @classmethod
    def describe(cls, **settings: Any) -> DatasetInfo:
        return _INFO

    def draw(self, count: int, rng: torch.Generator) -> Batch:
        return _stack(*self.digits, count, rng)

    def draw_holdout(self, count: int, rng: torch.Generator) -> Batch:
        return _stack(*self.holdout_digits, count, rng)

    def labelled(self, split: Split, count: int) -> tuple[Tensor, Tensor]:
        """Returns the digits themselves, (N, 1, 28, 28): a classifier of ten digits tells all 1,000 classes apart."""
        images, labels = self.digits if split == "train" else self.holdout_digits
        return images[:count], labels[:count]

    def modes_of(self, data: Tensor, logits: Tensor | None) -> tuple[Tensor, Tensor]:
        assert logits is not None
        index = _class_of(logits.view(-1, 3, _DIGITS).argmax(2))
        return index, torch.ones(len(index), dtype=torch.bool)


def _stack(images: Tensor, labels: Tensor, count: int, rng: torch.Generator) -> Batch:
    index = torch.randint(len(images), (count, 3), generator=rng)
    return to_unit(images[index, 0]), _class_of(labels[index])


def _class_of(digits: Tensor) -> Tensor:
    """Maps digits (N, 3) to classes (N,)."""
    return (digits * torch.tensor([100, 10, 1])).sum(1)
