"""Affine transformation of images, differentiable any number of times."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from gancli.augment.base import per_image


def warp_affine(images: Tensor, x_row: Tensor, y_row: Tensor) -> Tensor:
    """Returns images whose pixel (q, r) is read from the place (x_row . (q, r, 1), y_row . (q, r, 1)) of `images`.

    images: (B, C, H, W). x_row, y_row: (B, 3), the first two rows of the inverse affine matrix. Coordinates are in
    pixels from the centre, to the right and down. Samples with the identity map are returned bit for bit.
    """
    height, width = images.shape[2:]
    q = torch.arange(width, dtype=x_row.dtype, device=x_row.device) - (width - 1) / 2
    r = torch.arange(height, dtype=x_row.dtype, device=x_row.device)[:, None] - (height - 1) / 2
    x, y = (row[:, 0] * q + row[:, 1] * r + row[:, 2] for row in (x_row[:, :, None, None], y_row[:, :, None, None]))
    grid = torch.stack((x * (2 / width), y * (2 / height)), dim=-1)
    identity_row, _, _ = torch.eye(3, dtype=x_row.dtype, device=x_row.device)
    changed = (x_row != identity_row).any(1) | (y_row != identity_row.roll(1)).any(1)
    return torch.where(per_image(changed), sample(images, grid), images)


def sample(images: Tensor, grid: Tensor) -> Tensor:
    """Returns grid_sample(images, grid, padding_mode="reflection", align_corners=False): (B, C, H, W).

    images: (B, C, H, W). grid: (B, H, W, 2). Differentiable any number of times in the images, not in the grid.
    """
    sampled: Tensor = _Sample.apply(images, grid)
    return sampled


_BILINEAR, _REFLECTION = 0, 2  # the mode numbers of torch.ops.aten.grid_sampler_2d


class _Sample(Function):
    """grid_sample, which is linear in the images, so that its derivative is its adjoint.

    torch's own backward pass computes the adjoint too, but is not differentiable itself.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        sampled: Tensor = torch.ops.aten.grid_sampler_2d(images, grid, _BILINEAR, _REFLECTION, False)
        return sampled

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None]:
        return _Adjoint.apply(outer, *ctx.saved_tensors), None


class _Adjoint(Function):
    """The adjoint of `_Sample`, whose own adjoint is `_Sample`."""

    @staticmethod
    def forward(ctx: Any, outer: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        return _deterministic_adjoint(outer, grid) if outer.is_cuda else _torch_adjoint(outer, grid)

    @staticmethod
    def backward(ctx: Any, inner: Tensor) -> tuple[Tensor, None]:
        return _Sample.apply(inner, *ctx.saved_tensors), None


def _torch_adjoint(outer: Tensor, grid: Tensor) -> Tensor:
    backward = torch.ops.aten.grid_sampler_2d_backward
    # The second argument is the images, of which only the shape is used when the grid needs no gradient.
    grad_images: Tensor = backward(outer, outer, grid, _BILINEAR, _REFLECTION, False, [True, False])[0]
    return grad_images


def _deterministic_adjoint(outer: Tensor, grid: Tensor) -> Tensor:
    """Returns the same as `_torch_adjoint`, with sums in a fixed order on CUDA too, so that a resume is exact."""
    batch, channels, height, width = outer.shape
    (left, x), (top, y) = (_pixel_and_fraction(grid[..., i], side) for i, side in ((0, width), (1, height)))
    first_row = torch.arange(batch, device=outer.device).view(-1, 1, 1) * height
    values = outer.permute(0, 2, 3, 1)
    indices, contributions = [], []
    for row, row_weight in ((top, 1 - y), ((top + 1).clamp(max=height - 1), y)):
        for column, column_weight in ((left, 1 - x), ((left + 1).clamp(max=width - 1), x)):
            indices.append(((first_row + row) * width + column).flatten())
            contributions.append((values * (row_weight * column_weight)[..., None]).flatten(0, 2))
    total = outer.new_zeros(batch * height * width, channels)
    total.index_put_((torch.cat(indices),), torch.cat(contributions), accumulate=True)
    return total.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _pixel_and_fraction(coordinate: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Returns the pixel index at or below a grid coordinate, after reflection, and the fraction (0 to 1) beyond it."""
    folded = (coordinate + 1).mul(side / 2).remainder(2 * side)
    position = (side - (side - folded).abs() - 0.5).clamp(0, side - 1)
    pixel = position.floor()
    return pixel.long(), position - pixel
