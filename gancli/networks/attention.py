"""Self-attention in convolutional networks (SAGAN: Zhang et al., ICML 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from gancli.errors import SettingError
from gancli.networks.convolution import Conv2d
from gancli.networks.layers import he_


class SelfAttention(nn.Module):
    """Adds to each pixel a weighted mean over all pixels, times `gamma`, which starts at 0: maps (B, C, H, W).

    Weights are the softmax of the products of queries and keys of C / 8 channels; values have C / 2 (section 3 of the
    paper). Keys and values are pooled to half the size, as the paper's code does. Written as matrix products, which
    have derivatives of every order, as gradient penalties need.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow, wide = max(1, channels // 8), max(1, channels // 2)
        self.query, self.key = (he_(Conv2d(channels, narrow, 1, bias=False), slope=1) for _ in range(2))
        self.value = he_(Conv2d(channels, wide, 1, bias=False), slope=1)
        self.output = he_(Conv2d(wide, channels, 1, bias=False), slope=1)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.query(x).flatten(2)  # (B, C / 8, H W)
        keys, values = (_halved(layer(x)).flatten(2) for layer in (self.key, self.value))  # (B, …, H W / 4)
        products = pixels.transpose(1, 2) @ keys  # (B, H W, H W / 4)
        weights = products.softmax(2, torch.promote_types(products.dtype, torch.float32)).to(values.dtype)
        mean = (values @ weights.transpose(1, 2)).unflatten(2, x.shape[2:])
        attended: Tensor = x + self.gamma * self.output(mean)
        return attended


def _halved(maps: Tensor) -> Tensor:
    return max_pool2d(maps, 2) if min(maps.shape[2:]) > 1 else maps


class AttentionAt:
    """Returns the layers to put after a stage: self-attention where its maps have the chosen size, else none.

    attention: pixels of the smaller side of those maps; 0 for no attention. sides: those of all the maps. Raises
    SettingError where no map has it.
    """

    def __init__(self, attention: int, sides: Sequence[int]) -> None:
        if attention and attention not in sides:
            choices = ", ".join(str(side) for side in sorted(set(sides)))
            raise SettingError(f"attention={attention}: the maps of this network have smaller sides of {choices}; or 0")
        self.attention = attention

    def __call__(self, side: int, channels: int) -> list[nn.Module]:
        return [SelfAttention(channels)] if self.attention and side == self.attention else []
