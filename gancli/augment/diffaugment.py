"""DiffAugment (Zhao et al., NeurIPS 2020): a few strong changes, always on."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from gancli.augment.base import ImageAugment, each, one_of, outside
from gancli.schedules import Schedule


class DiffAugment(ImageAugment):
    """Colour, translation and cutout on every sample, always on (Zhao et al., NeurIPS 2020, section 3.2).

    color: brightness +-0.5, saturation times 0 to 2 (three channels only), contrast times 0.5 to 1.5.
    translation: by whole pixels, up to 1/8 of each side. cutout: a hole of half of each side, its centre
    anywhere. What is shifted in or cut out is 0 as in the paper, for images in [-1, 1] a middle grey.
    strength: the probability that a sample is changed at all, a number or a schedule; 1 in the paper.
    """

    columns: ClassVar[dict[str, int]] = {"color": 3, "translation": 2, "cutout": 2}

    def __init__(
        self, *, kinds: list[Literal["color", "translation", "cutout"]], strength: float | Schedule = 1.0
    ) -> None:
        super().__init__(kinds=kinds, strength=strength)
        self.draws += 1

    def change(self, images: Tensor, uniform: Tensor) -> Tensor:
        changed, sides, own = images, images.shape[2:], self.split(uniform[:, 1:])
        if "color" in own:
            changed = _jittered(changed, *own["color"].unbind(1))
        if "translation" in own:
            most = [int(side / 8 + 0.5) for side in sides]
            down, right = (one_of(u, 2 * m + 1) - m for u, m in zip(own["translation"].unbind(1), most, strict=True))
            changed = _shifted(changed, down, right)
        if "cutout" in own:
            holes = [int(side / 2 + 0.5) for side in sides]
            down, right = (
                one_of(u, side + 1 - hole % 2) + hole % 2 / 2  # the centre of an odd hole is in the middle of a pixel
                for u, side, hole in zip(own["cutout"].unbind(1), sides, holes, strict=True)
            )
            changed = changed * outside(changed, down, right, holes)
        return torch.where(each(uniform[:, 0] < self.p), changed, images)


def _jittered(images: Tensor, bright: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """DiffAugment's colours."""
    images = images + each(bright - 0.5)
    if images.shape[1] == 3:
        gray = images.mean(1, keepdim=True)
        images = gray + each(2 * saturation) * (images - gray)
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + each(contrast + 0.5) * (images - mean)


def _shifted(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Moved by whole pixels, (B,) each; zeros come in."""
    for dim, shift in ((2, down), (3, right)):
        length = images.shape[dim]
        source = torch.arange(length, device=images.device) - shift.long()[:, None]
        source = source[:, None, :, None] if dim == 2 else source[:, None, None, :]
        # Each pixel is taken once, so that the adjoint adds nothing up, in no order.
        images = images.gather(dim, (source % length).expand_as(images)) * ((source >= 0) & (source < length))
    return images
