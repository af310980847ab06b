"""Images under affine maps, differentiable any number of times."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from gancli.augment.base import each


def mapped(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The image whose pixel (q, r) is the given one's at (x · (q, r, 1), y · (q, r, 1)), from the centre, in pixels.

    x, y: (B, 3). A sample that the map leaves where it is stays as it is, to the last bit.
    """
    height, width = images.shape[2:]
    q = torch.arange(width, dtype=x.dtype, device=x.device) - (width - 1) / 2
    r = torch.arange(height, dtype=x.dtype, device=x.device)[:, None] - (height - 1) / 2
    across, along = (row[:, 0] * q + row[:, 1] * r + row[:, 2] for row in (x[:, :, None, None], y[:, :, None, None]))
    grid = torch.stack((across * (2 / width), along * (2 / height)), dim=-1)
    still, _, _ = torch.eye(3, dtype=x.dtype, device=x.device)
    moved = (x != still).any(1) | (y != still.roll(1)).any(1)
    return torch.where(each(moved), sample(images, grid), images)


def sample(images: Tensor, grid: Tensor) -> Tensor:
    """grid_sample(images, grid, padding_mode="reflection", align_corners=False), differentiable in the images alone,
    any number of times. images (B, C, H, W), grid (B, H, W, 2) -> (B, C, H, W)."""
    sampled: Tensor = _Sample.apply(images, grid)
    return sampled


_BILINEAR, _REFLECTION = 0, 2  # of torch's grid sampler


class _Sample(Function):
    """Linear in the images: the derivative is the adjoint, of which torch's own has no derivative."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        sampled: Tensor = torch.ops.aten.grid_sampler_2d(images, grid, _BILINEAR, _REFLECTION, False)
        return sampled

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None]:
        return _Adjoint.apply(outer, *ctx.saved_tensors), None


class _Adjoint(Function):
    """The adjoint of `_Sample`, whose adjoint is `_Sample` again."""

    @staticmethod
    def forward(ctx: Any, outer: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        return _adjoint_in_order(outer, grid) if outer.is_cuda else _adjoint_by_torch(outer, grid)

    @staticmethod
    def backward(ctx: Any, inner: Tensor) -> tuple[Tensor, None]:
        return _Sample.apply(inner, *ctx.saved_tensors), None


def _adjoint_by_torch(outer: Tensor, grid: Tensor) -> Tensor:
    backward = torch.ops.aten.grid_sampler_2d_backward
    # The images are the second argument; without a gradient for the grid only their shape counts.
    by_images: Tensor = backward(outer, outer, grid, _BILINEAR, _REFLECTION, False, [True, False])[0]
    return by_images


def _adjoint_in_order(outer: Tensor, grid: Tensor) -> Tensor:
    """The same, with sums in one order on CUDA too, which torch's own does not keep and exact resume asks for."""
    batch, channels, height, width = outer.shape
    (left, x), (top, y) = (_cell(grid[..., i], side) for i, side in ((0, width), (1, height)))
    first = torch.arange(batch, device=outer.device).view(-1, 1, 1) * height
    values = outer.permute(0, 2, 3, 1)
    indices, shares = [], []
    for row, by_row in ((top, 1 - y), ((top + 1).clamp(max=height - 1), y)):
        for column, by_column in ((left, 1 - x), ((left + 1).clamp(max=width - 1), x)):
            indices.append(((first + row) * width + column).flatten())
            shares.append((values * (by_row * by_column)[..., None]).flatten(0, 2))
    total = outer.new_zeros(batch * height * width, channels)
    total.index_put_((torch.cat(indices),), torch.cat(shares), accumulate=True)
    return total.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _cell(where: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """A grid's coordinate as the pixel before it, after reflection, and how far it is past that one, 0 to 1."""
    folded = (where + 1).mul(side / 2).remainder(2 * side)
    place = (side - (side - folded).abs() - 0.5).clamp(0, side - 1)
    before = place.floor()
    return before.long(), place - before
