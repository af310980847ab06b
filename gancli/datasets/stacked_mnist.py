"""Stacked MNIST: 1,000 modes that can be counted."""

from __future__ import annotations

import torch
from torch import Tensor

from gancli.datasets.base import Batch, Drawn, to_unit
from gancli.datasets.torchvision_sets import load


class StackedMNIST(Drawn):
    """Three random digits as red, green and blue, (3, 28, 28); label 100 r + 10 g + b (Metz et al., ICLR 2017).

    The holdout stacks digits of MNIST's test part. root, download: as for MNIST. Raises UserError.
    """

    def __init__(self, *, root: str = "data", download: bool = True) -> None:
        super().__init__()
        self.shape, self.num_classes = (3, 28, 28), 1000
        self.digits = load("MNIST", root=root, download=download, train=True)
        self.holdout_digits = load("MNIST", root=root, download=download, train=False)

    def draw(self, count: int, rng: torch.Generator) -> Batch:
        return _stacked(*self.digits, count, rng)

    def draw_holdout(self, count: int, rng: torch.Generator) -> Batch:
        return _stacked(*self.holdout_digits, count, rng)


def _stacked(images: Tensor, labels: Tensor, count: int, rng: torch.Generator) -> Batch:
    index = torch.randint(len(images), (count, 3), generator=rng)
    return to_unit(images[index, 0]), (labels[index] * torch.tensor([100, 10, 1])).sum(1)
