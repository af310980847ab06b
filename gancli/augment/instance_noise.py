"""Instance noise: both distributions smeared out, so that they overlap and the discriminator has a slope everywhere."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from gancli.augment.base import Augment
from gancli.errors import SettingError
from gancli.schedules import Schedule, at


class InstanceNoise(Augment):
    """Adds N(0, std^2) to every number of what the discriminator sees (Sonderby et al., ICLR 2017, section 3).

    std: a number or a schedule, often one that ends at 0; samples are images in [-1, 1] or points.
    """

    draws = 1

    def __init__(self, *, std: float | Schedule = 0.1) -> None:
        for value in (at(std, 0.0), at(std, 1.0)):
            if value < 0:
                raise SettingError(f"std={value}: 0 or more")
        self.schedule = std
        self.prepare(0.0)

    def draws_for(self, shape: Sequence[int]) -> int:
        return prod(shape)

    def prepare(self, progress: float) -> None:
        self.std: Tensor | float = float(at(self.schedule, progress))

    def with_strength(self, strength: Tensor) -> InstanceNoise:
        other = copy.copy(self)
        other.std = strength
        return other

    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        numbers: Tensor = torch.special.ndtri(uniform.clamp(min=2.0**-25))  # half of the smallest that is drawn but 0
        return images + self.std * numbers.view(images.shape)

    @property
    def strength(self) -> Tensor | float:
        return self.std
