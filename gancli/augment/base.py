"""Base classes of augmentation, which is applied to the discriminator's inputs, real and generated alike.

Augmentations draw no random numbers themselves: each sample comes with its own row of uniform numbers, and the result
depends on the sample and its row only, not on the rest of the batch. Everything is twice differentiable in the images,
as gradient penalties on D(T(x)) need.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from gancli.errors import SettingError, UserError, require_share
from gancli.schedules import Schedule, at


class Augment(ABC):
    """Random differentiable changes of the discriminator's inputs. draws: uniform numbers per sample."""

    draws: int = 0

    def draws_for(self, shape: Sequence[int]) -> int:
        """Returns the number of uniform numbers per sample of `shape`. Raises UserError for an unsuitable shape."""
        return self.draws

    def prepare(self, progress: float) -> None:  # noqa: B027
        """Sets scheduled settings; called once before each training step, at `progress` (0 to 1) of the run."""

    def observe(  # noqa: B027
        self, real_logits: Tensor, fake_logits: Tensor, *, threshold: Tensor | float
    ) -> None:
        """Called after each update of D with its logits, (B,) each; a logit above `threshold` counts as real."""

    def with_strength(self, strength: Tensor) -> Augment | None:
        """Returns a copy that reads its strength from the 0-dim tensor `strength` at each call, or None if it cannot.

        A CUDA graph needs this: its replays read tensors again, but not Python numbers.
        """
        return None

    @abstractmethod
    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        """Returns the augmented images (B, C, H, W).

        images: (B, C, H, W) in [-1, 1]. uniform: (B, draws) in [0, 1), on the same device.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the tensors that a checkpoint has to store; empty for an augmentation without state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state_dict` returned. Raises ValueError if it is the state of another augmentation."""
        if state.keys() != self.state_dict().keys():
            raise ValueError(f"augment: the saved state has {sorted(state)}, expected {sorted(self.state_dict())}")

    @property
    @abstractmethod
    def strength(self) -> Tensor | float:
        """The current strength, which is logged: a probability, or the standard deviation of noise."""


class NoAugment(Augment):
    """Returns all samples, images or points, unchanged."""

    def with_strength(self, strength: Tensor) -> NoAugment:
        return self

    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        return images

    @property
    def strength(self) -> float:
        return 0.0


class ImageAugment(Augment):
    """Base of the augmentations for images, which apply several kinds of change with a probability.

    columns: kind of change -> number of uniform numbers that it needs, in the order of use. p: the current probability.
    kinds: the kinds of change to apply. strength: p as a number or a schedule; None where the subclass sets p.
    Raises SettingError.
    """

    columns: ClassVar[dict[str, int]]
    p: Tensor | float

    def __init__(self, *, kinds: Sequence[str], strength: float | Schedule | None) -> None:
        if not kinds or len(set(kinds)) < len(kinds) or not set(kinds) <= set(self.columns):
            known = ", ".join(self.columns)
            raise SettingError(f"kinds={list(kinds)}: one or more of {known}, each once; or use augment=none")
        require_share(strength=strength)
        self.kinds = [kind for kind in self.columns if kind in kinds]
        self.draws = sum(self.columns[kind] for kind in self.kinds)
        self.schedule = strength
        self.prepare(0.0)

    def prepare(self, progress: float) -> None:
        if self.schedule is not None:
            self.p = float(at(self.schedule, progress))

    def draws_for(self, shape: Sequence[int]) -> int:
        if len(shape) != 3:
            name = type(self).__name__
            raise UserError(f"augment: {name} needs images, the samples have shape {tuple(shape)}; use augment=none")
        return self.draws

    @property
    def strength(self) -> Tensor | float:
        return self.p

    def with_strength(self, strength: Tensor) -> ImageAugment:
        copied = copy.copy(self)
        copied.p = strength
        return copied

    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        if isinstance(self.p, float) and self.p == 0.0:
            return images
        images = images.to(torch.promote_types(images.dtype, torch.float32))
        return self.change(images, uniform.to(images.dtype))

    def split(self, uniform: Tensor) -> dict[str, Tensor]:
        """Returns the uniform numbers of each kind of change: kind -> (B, columns[kind])."""
        return dict(zip(self.kinds, uniform.split([self.columns[kind] for kind in self.kinds], dim=1), strict=True))

    @abstractmethod
    def change(self, images: Tensor, uniform: Tensor) -> Tensor:
        """Does what `__call__` does, for images that are at least float32.

        Must not use matrix products, whose precision autocast and TF32 reduce.
        """


def per_image(values: Tensor) -> Tensor:
    """Returns values (B,) as (B, 1, 1, 1), to combine with images."""
    return values[:, None, None, None]


def uniform_integer(uniform: Tensor, count: int) -> Tensor:
    """Maps numbers from U[0, 1) to integers from 0 .. count - 1, all equally likely."""
    return (uniform * count).floor()


def standard_normal(uniform: Tensor) -> Tensor:
    """Maps numbers from U[0, 1) to finite numbers from N(0, 1), by the inverse CDF."""
    # torch.rand draws multiples of 2^-24 in float32; 0, whose quantile is infinite, is moved to half of the smallest.
    numbers: Tensor = torch.special.ndtri(uniform.clamp(min=2.0**-25))
    return numbers


def outside_rectangle(images: Tensor, y: Tensor, x: Tensor, size: Sequence[float]) -> Tensor:
    """Returns a mask (B, 1, H, W), False for the pixels in a rectangle of `size` (height, width) centred at (y, x).

    y, x: (B,), in pixels from the upper left corner of the image.
    """
    rows, columns = (torch.arange(side, device=images.device) + 0.5 for side in images.shape[2:])
    in_rows = (rows - y[:, None]).abs() < size[0] / 2
    in_columns = (columns - x[:, None]).abs() < size[1] / 2
    return ~(in_rows[:, None, :, None] & in_columns[:, None, None, :])
