"""PacGAN: a discriminator that gives several samples one logit (Lin et al., NeurIPS 2018, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gancli.errors import SettingError, require_at_least
from gancli.networks.base import Discriminator


class Packed(Discriminator):
    """Concatenates `pack` samples along the channels and gives them one logit of an inner discriminator.

    inner: a discriminator without classes, built for `packed_shape(shape, pack)`. Each logit is repeated for the
    samples of its pack, so that the output is (B,); an incomplete last pack is filled up with the first samples. The
    gradient of the repeated logits with respect to the samples is `pack` times that of one logit per pack, so that R1
    and R2 are stronger than with one logit per pack. Raises SettingError.
    """

    per_sample = False

    def __init__(self, inner: Discriminator, *, pack: int) -> None:
        require_at_least(2, pack=pack)
        if inner.num_classes:
            raise SettingError(f"pack={pack}: a pack would mix samples of different classes")
        if inner.pretrained_on is not None:
            raise SettingError(f"pack={pack}: pretrained features are of single images")
        channels, *rest = inner.image_shape
        if channels % pack:
            raise SettingError(f"pack={pack}: must divide the {channels} channels of the inner discriminator")
        super().__init__(image_shape=(channels // pack, *rest))
        self.inner, self.pack = inner, pack

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        missing = -len(x) % self.pack
        rows = torch.arange(len(x) + missing, device=x.device) % len(x)
        packs = (x[rows] if missing else x).unflatten(0, (-1, self.pack)).flatten(1, 2)
        logits: Tensor = self.inner(packs).repeat_interleave(self.pack, dim=0)
        return logits[: len(x)]


def packed_shape(shape: Sequence[int], pack: int) -> tuple[int, ...]:
    """Returns the shape of `pack` concatenated samples of `shape`, which is (C, H, W) or (dims,)."""
    return (shape[0] * pack, *shape[1:])
