"""DiffAugment (Zhao et al., NeurIPS 2020): the same few strong augmentations throughout training."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from gancli.augment.base import ImageAugment, outside_rectangle, per_image, uniform_integer
from gancli.schedules import Schedule


class DiffAugment(ImageAugment):
    """Colour, translation and cutout on every sample (Zhao et al., NeurIPS 2020, section 3.2).

    kinds: "color" adds -0.5 to 0.5 to the brightness, multiplies the saturation by 0 to 2 (images of three channels
    only) and the contrast by 0.5 to 1.5. "translation" shifts by whole pixels, up to 1/8 of each side. "cutout" erases
    a rectangle of half of each side, centred anywhere. Pixels shifted in or erased are 0 as in the paper, which is a
    medium grey for images in [-1, 1]. strength: probability that a sample is changed at all, a number or a schedule;
    1 in the paper. Raises SettingError.
    """

    columns: ClassVar[dict[str, int]] = {"color": 3, "translation": 2, "cutout": 2}

    def __init__(
        self, *, kinds: list[Literal["color", "translation", "cutout"]], strength: float | Schedule = 1.0
    ) -> None:
        super().__init__(kinds=kinds, strength=strength)
        self.draws += 1  # the first number decides whether the sample is changed

    def change(self, images: Tensor, uniform: Tensor) -> Tensor:
        changed, sides, numbers = images, images.shape[2:], self.split(uniform[:, 1:])
        if "color" in numbers:
            changed = _jitter_colors(changed, *numbers["color"].unbind(1))
        if "translation" in numbers:
            limits = [int(side / 8 + 0.5) for side in sides]
            down, right = (
                uniform_integer(u, 2 * limit + 1) - limit
                for u, limit in zip(numbers["translation"].unbind(1), limits, strict=True)
            )
            changed = _translate(changed, down, right)
        if "cutout" in numbers:
            hole = [int(side / 2 + 0.5) for side in sides]
            y, x = (
                # An odd length is centred in the middle of a pixel, an even one between two pixels.
                uniform_integer(u, side + 1 - length % 2) + length % 2 / 2
                for u, side, length in zip(numbers["cutout"].unbind(1), sides, hole, strict=True)
            )
            changed = changed * outside_rectangle(changed, y, x, hole)
        return torch.where(per_image(uniform[:, 0] < self.p), changed, images)


def _jitter_colors(images: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Changes brightness, saturation and contrast by uniform numbers (B,) each."""
    images = images + per_image(brightness - 0.5)
    if images.shape[1] == 3:
        gray = images.mean(1, keepdim=True)
        images = gray + per_image(2 * saturation) * (images - gray)
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + per_image(contrast + 0.5) * (images - mean)


def _translate(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Shifts images by whole pixels, (B,) each; the pixels shifted in are 0."""
    for dim, shift in ((2, down), (3, right)):
        length = images.shape[dim]
        source = torch.arange(length, device=images.device) - shift.long()[:, None]
        source = source[:, None, :, None] if dim == 2 else source[:, None, None, :]
        # Every pixel is read once (hence the modulo), so that the backward pass of gather adds nothing up: its sums
        # would have no fixed order on a GPU.
        images = images.gather(dim, (source % length).expand_as(images)) * ((source >= 0) & (source < length))
    return images
