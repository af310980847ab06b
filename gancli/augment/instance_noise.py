"""Instance noise: Gaussian noise on all inputs of the discriminator, so that real and generated samples overlap."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from math import prod

from torch import Tensor

from gancli.augment.base import Augment, standard_normal
from gancli.errors import require_at_least, require_coordinate
from gancli.schedules import Schedule, at


class InstanceNoise(Augment):
    """Adds noise from N(0, std^2) to every number of each sample (Sonderby et al., ICLR 2017, section 3).

    std: in units of the data, a number or a schedule, often one that ends at 0. Raises SettingError.
    """

    draws = 1

    def __init__(self, *, std: float | Schedule = 0.1) -> None:
        require_at_least(0, std=std)
        require_coordinate(std=std)
        self.schedule = std
        self.prepare(0.0)

    def draws_for(self, shape: Sequence[int]) -> int:
        return prod(shape)

    def prepare(self, progress: float) -> None:
        self.std: Tensor | float = float(at(self.schedule, progress))

    def with_strength(self, strength: Tensor) -> InstanceNoise:
        copied = copy.copy(self)
        copied.std = strength
        return copied

    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        return images + self.std * standard_normal(uniform).view(images.shape)

    @property
    def strength(self) -> Tensor | float:
        return self.std
