"""Packing: a discriminator that judges several samples at once (Lin et al., NeurIPS 2018, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gancli.errors import SettingError
from gancli.networks.base import Discriminator


class Packed(Discriminator):
    """`pack` samples side by side, as channels, before an inner discriminator that gives them one logit.

    inner: built for `packed_shape` of one sample's shape, without classes. A logit is repeated for each
    sample of its pack, so that (B,) come out; a last pack that is short is filled up with the first
    samples. The gradient of the repeated logits is `pack` times that of the pack: R1 and R2 weigh
    `pack` times more than on packs. Raises ValueError.
    """

    per_sample = False

    def __init__(self, inner: Discriminator, *, pack: int) -> None:
        if pack < 2:
            raise SettingError(f"pack={pack}: at least 2 samples; 1 needs no packing")
        if inner.num_classes:
            raise SettingError(f"pack={pack}: samples of different classes do not go into one pack")
        channels, *rest = inner.image_shape
        if channels % pack:
            raise SettingError(f"pack={pack}: the inner discriminator takes {channels} channels, no multiple of it")
        super().__init__(image_shape=(channels // pack, *rest))
        self.inner, self.pack = inner, pack

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        missing = -len(x) % self.pack
        rows = torch.arange(len(x) + missing, device=x.device) % len(x)
        packs = (x[rows] if missing else x).unflatten(0, (-1, self.pack)).flatten(1, 2)
        logits: Tensor = self.inner(packs).repeat_interleave(self.pack)
        return logits[: len(x)]


def packed_shape(shape: Sequence[int], pack: int) -> tuple[int, ...]:
    """The shape of `pack` samples of `shape`, (C, H, W) or (dims,), side by side."""
    return (shape[0] * pack, *shape[1:])
