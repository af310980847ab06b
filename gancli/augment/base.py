"""What happens to images before the discriminator sees them, real and generated ones alike.

Nothing here draws random numbers: each sample gets its own row of uniform ones, so the same row always gives
the same change, whatever else is in the batch. Everything is differentiable twice in the images, which the
gradient penalties on D(T(x)) ask for.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from gancli.errors import SettingError, UserError
from gancli.schedules import Schedule, at


class Augment(ABC):
    """Random differentiable changes to what the discriminator sees. draws: uniform numbers that one sample needs."""

    draws: int = 0

    def draws_for(self, shape: Sequence[int]) -> int:
        """How many that is for samples of `shape`. Raises ValueError where it does not suit them."""
        return self.draws

    def prepare(self, progress: float) -> None:  # noqa: B027
        """Called once before each training step, at `progress` (0 to 1) of the run: schedules are read here."""

    def observe(  # noqa: B027
        self, real_logits: Tensor, fake_logits: Tensor, *, threshold: Tensor | float
    ) -> None:
        """Called after each update of D with its logits, (B,) each; one above `threshold` says "real"."""

    def with_strength(self, strength: Tensor) -> Augment | None:
        """A copy whose strength is what stands in `strength`, 0-dim, whenever it is called; None where there is none.

        A CUDA graph repeats what it did with the same tensors, whatever a number in Python has become since.
        """
        return None

    @abstractmethod
    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        """images (B, C, H, W) in [-1, 1], uniform (B, draws) in [0, 1) on the same device -> (B, C, H, W)."""

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint has to keep."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes on where `state` was taken. Raises ValueError where it is another augmentation's."""
        if state.keys() != self.state_dict().keys():
            raise ValueError(f"augment: the saved state has {sorted(state)}, expected {sorted(self.state_dict())}")

    @property
    @abstractmethod
    def strength(self) -> Tensor | float:
        """The probability that is logged, from 0 to 1."""


class NoAugment(Augment):
    """The samples as they are, images or points."""

    def with_strength(self, strength: Tensor) -> NoAugment:
        return self

    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        return images

    @property
    def strength(self) -> float:
        return 0.0


class ImageAugment(Augment):
    """What those of images share. columns: kind of change -> how many uniform numbers it takes, in order of use.

    schedule: where `p`, the strength of now, comes from, or None.
    """

    columns: ClassVar[dict[str, int]]
    p: Tensor | float

    def __init__(self, *, kinds: Sequence[str], strength: float | Schedule | None) -> None:
        if not kinds or len(set(kinds)) < len(kinds) or not set(kinds) <= set(self.columns):
            known = ", ".join(self.columns)
            raise SettingError(f"kinds={list(kinds)}: some of {known}, each once; augment=none for none of them")
        for value in () if strength is None else (at(strength, 0.0), at(strength, 1.0)):
            if not 0.0 <= value <= 1.0:
                raise SettingError(f"strength={value}: a probability, from 0 to 1")
        self.kinds = [kind for kind in self.columns if kind in kinds]
        self.draws = sum(self.columns[kind] for kind in self.kinds)
        self.schedule = strength
        self.prepare(0.0)

    def prepare(self, progress: float) -> None:
        if self.schedule is not None:
            self.p = float(at(self.schedule, progress))

    def draws_for(self, shape: Sequence[int]) -> int:
        if len(shape) != 3:
            kind = type(self).__name__
            raise UserError(
                f"augment: {kind} needs images, these samples are of shape {tuple(shape)}; use augment=none"
            )
        return self.draws

    @property
    def strength(self) -> Tensor | float:
        return self.p

    def with_strength(self, strength: Tensor) -> ImageAugment:
        other = copy.copy(self)
        other.p = strength
        return other

    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        if isinstance(self.p, float) and self.p == 0.0:
            return images
        images = images.to(torch.promote_types(images.dtype, torch.float32))
        return self.change(images, uniform.to(images.dtype))

    def split(self, uniform: Tensor) -> dict[str, Tensor]:
        """The columns of each kind, kind -> (B, columns[kind])."""
        return dict(zip(self.kinds, uniform.split([self.columns[kind] for kind in self.kinds], dim=1), strict=True))

    @abstractmethod
    def change(self, images: Tensor, uniform: Tensor) -> Tensor:
        """What __call__ says, for at least float32; without matrix products, which autocast and tf32 cut short."""


def each(values: Tensor) -> Tensor:
    """(B,) as (B, 1, 1, 1)"""
    return values[:, None, None, None]


def one_of(uniform: Tensor, count: int) -> Tensor:
    """One of 0 .. count - 1, all as likely."""
    return (uniform * count).floor()


def outside(images: Tensor, down: Tensor, right: Tensor, sides: Sequence[float]) -> Tensor:
    """Which pixels are not in the rectangle of `sides` about (down, right), (B,) each: (B, 1, H, W)."""
    rows, columns = (torch.arange(side, device=images.device) + 0.5 for side in images.shape[2:])
    in_rows = (rows - down[:, None]).abs() < sides[0] / 2
    in_columns = (columns - right[:, None]).abs() < sides[1] / 2
    return ~(in_rows[:, None, :, None] & in_columns[:, None, None, :])
