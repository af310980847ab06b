"""Changes of the size of maps by matrix products."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool1d, interpolate

_FEW_CHANNELS = 4  # of images


class Resample(nn.Module):
    """Multiplies the columns and the rows of maps (B, C, H, W) by one matrix each: (B, C, H', W').

    rows: (H', H), columns: (W', W). In channels_last both products read the maps as they lie in memory; images, whose
    few channels make such products slow, are first laid out by channel. Unlike those of `interpolate`, the derivatives
    of every order are products too, and add in a fixed order on a GPU.
    """

    def __init__(self, rows: Tensor, columns: Tensor) -> None:
        super().__init__()
        # Buffers, so that they move to the GPU with the network; a copy in each pass would make the GPU wait.
        self.rows, self.columns = nn.Buffer(rows, persistent=False), nn.Buffer(columns, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        if channels <= _FEW_CHANNELS:
            planes: Tensor = self.rows @ (x.contiguous() @ self.columns.T)
            return planes if x.is_contiguous() else planes.contiguous(memory_format=torch.channels_last)
        x = x.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
        x = torch.bmm(self.rows.expand(batch, -1, -1), x).view(-1, width, channels)
        x = torch.bmm(self.columns.expand(x.shape[0], -1, -1), x)
        return x.view(batch, len(self.rows), len(self.columns), channels).permute(0, 3, 1, 2)


def bilinear(before: tuple[int, int], after: tuple[int, int]) -> Resample:
    """Returns the same as `interpolate(mode="bilinear")` for maps of `before` (height, width) to `after`."""
    return _resample(lambda rows, size: interpolate(rows, size=size, mode="linear"), before, after)


def area(before: tuple[int, int], after: tuple[int, int]) -> Resample:
    """Returns the same as `adaptive_avg_pool2d(size=after)` for maps of `before` (height, width)."""
    return _resample(adaptive_avg_pool1d, before, after)


def _resample(function: Callable[[Tensor, int], Tensor], before: tuple[int, int], after: tuple[int, int]) -> Resample:
    """Returns what `function`, which changes the last side of (B, C, side) to a size, does along both sides."""

    def matrix(before: int, after: int) -> Tensor:
        return function(torch.eye(before)[None], after)[0].T.contiguous()  # each channel one unit vector

    rows, columns = (matrix(*sizes) for sizes in zip(before, after, strict=True))
    return Resample(rows, columns)
