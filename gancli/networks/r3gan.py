"""The networks of R3GAN (Huang et al., NeurIPS 2024, section 4, config E), for images of any size from 8x8 pixels.

Feature maps have the next larger size that halves evenly down to 4 .. 7 pixels; the image is their centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from gancli.errors import require_at_least, require_between
from gancli.networks.base import Discriminator, Generator
from gancli.networks.convolution import Conv2d
from gancli.networks.layers import (
    MAX_DEPTH,
    CenterCropOrPad,
    ClassEmbedding,
    Minibatch,
    ProjectionHead,
    he_,
    minibatch_layer,
    next_divisible_shape,
    stages_for,
    widths_for,
)
from gancli.networks.resampling import Resample, bilinear

_SLOPE = 0.2
_LAYERS_PER_BLOCK = 3


class R3GANGenerator(Generator):
    """Scales the channels of a learned coarsest map by the noise, then doubles its size between residual blocks.

    There is no tanh, as in the paper, so pixels may leave [-1, 1]. channels: channels of the finest map, doubled at
    each coarser one up to `max_channels`. blocks: residual blocks at each size. group_size: channels per group of the
    grouped convolutions; all channels if there are fewer, more than `group_size` if it does not divide them.
    expansion: factor between the channels inside a block and those of its input. Raises SettingError.
    """

    def __init__(
        self,
        *,
        latent_dim: int,
        image_shape: Sequence[int],
        num_classes: int = 0,
        channels: int = 32,
        max_channels: int = 256,
        blocks: int = 1,
        group_size: int = 16,
        expansion: int = 2,
    ) -> None:
        super().__init__(latent_dim=latent_dim, image_shape=image_shape, num_classes=num_classes)
        stages, coarsest = stages_for(next_divisible_shape(self.image_shape))
        height, width = coarsest
        widths = widths_for(stages + 1, channels=channels, max_channels=max_channels)[::-1]
        self.noise = ClassEmbedding(latent_dim, num_classes)
        self.linear = he_(nn.Linear(self.noise.features, widths[0], bias=False), slope=1)
        self.basis = nn.Parameter(torch.randn(widths[0], *coarsest))
        layers: list[nn.Module] = _blocks(widths[0], blocks, len(widths), group_size, expansion)
        for stage, (before, after) in enumerate(pairwise(widths)):
            layers += [
                _change_channels(before, after),
                _up(height << stage, width << stage),
                *_blocks(after, blocks, len(widths), group_size, expansion),
            ]
        self.stages = nn.Sequential(*layers)
        self.fit = CenterCropOrPad(self.image_shape[1:])
        self.output = he_(Conv2d(widths[-1], self.image_shape[0], 1, bias=False), slope=1)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        coarsest = self.linear(self.noise(z, labels))[:, :, None, None] * self.basis
        images: Tensor = self.output(self.fit(self.stages(coarsest)))
        return images

    def first_weight(self) -> Tensor:
        # Channel c of the coarsest map is (W z)_c times a map of constants, which scales that row of W by its length.
        weight: Tensor = self.linear.weight[:, : self.latent_dim] * self.basis.flatten(1).norm(dim=1, keepdim=True)
        return weight


class R3GANDiscriminator(Discriminator):
    """Residual blocks at each size, halved in between, a depthwise convolution over the coarsest map, projection head.

    Arguments as for the generator. minibatch: the layer before the head that compares the samples of a batch (see
    `minibatch_layer`). Raises SettingError.
    """

    def __init__(
        self,
        *,
        image_shape: Sequence[int],
        num_classes: int = 0,
        channels: int = 32,
        max_channels: int = 256,
        blocks: int = 1,
        group_size: int = 16,
        expansion: int = 2,
        minibatch: Minibatch = "none",
    ) -> None:
        super().__init__(image_shape=image_shape, num_classes=num_classes)
        padded_shape = next_divisible_shape(self.image_shape)
        stages, coarsest = stages_for(padded_shape)
        height, width = padded_shape[1:]
        widths = widths_for(stages + 1, channels=channels, max_channels=max_channels)
        self.fit = CenterCropOrPad(padded_shape[1:])
        layers: list[nn.Module] = [he_(Conv2d(self.image_shape[0], widths[0], 1, bias=False), slope=1)]
        for stage, (before, after) in enumerate(pairwise(widths), 1):
            layers += [
                *_blocks(before, blocks, len(widths), group_size, expansion),
                _down(height >> stage, width >> stage),
                _change_channels(before, after),
            ]
        layers += _blocks(widths[-1], blocks, len(widths), group_size, expansion)
        pooling = he_(_Pooling(widths[-1], widths[-1], coarsest, groups=widths[-1], bias=False), slope=1)
        self.stages = nn.Sequential(*layers, pooling, nn.Flatten())
        self.minibatch, features = minibatch_layer(minibatch, widths[-1])
        self.head = ProjectionHead(features, num_classes)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        logits: Tensor = self.head(self.minibatch(self.stages(self.fit(x))), labels)
        return logits


class _Block(nn.Module):
    """Residual block on maps (B, channels, H, W): 1x1, grouped 3x3 and 1x1 convolution, the output added to the input.

    The first two convolutions have biases and are followed by a leaky ReLU. depth: residual blocks in the network.
    Fixup initialisation (Zhang et al., ICLR 2019, section 3): the first two weights are scaled by L^(-1/(2m-2)) with
    L = depth and m = 3, and the last one is zero, so that the untrained network is linear.
    """

    def __init__(self, channels: int, *, depth: int, group_size: int, expansion: int) -> None:
        super().__init__()
        hidden = channels * expansion
        groups = max(hidden // group_size, 1)
        while hidden % groups:
            groups -= 1
        self.expand = Conv2d(channels, hidden, 1)
        self.grouped = Conv2d(hidden, hidden, 3, padding=1, groups=groups)
        self.reduce = Conv2d(hidden, channels, 1, bias=False)
        scale = depth ** (-1 / (2 * _LAYERS_PER_BLOCK - 2))
        with torch.no_grad():
            for layer in (self.expand, self.grouped):
                he_(layer, slope=_SLOPE).weight.mul_(scale)
        nn.init.zeros_(self.reduce.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = leaky_relu(self.expand(x), _SLOPE, inplace=True)  # convolutions do not save their outputs
        residual: Tensor = self.reduce(leaky_relu(self.grouped(y), _SLOPE, inplace=True))
        return x + residual


def _blocks(channels: int, blocks: int, sizes: int, group_size: int, expansion: int) -> list[nn.Module]:
    require_between(1, MAX_DEPTH, blocks=blocks)
    require_at_least(1, group_size=group_size, expansion=expansion)
    depth = blocks * sizes
    return [_Block(channels, depth=depth, group_size=group_size, expansion=expansion) for _ in range(blocks)]


def _change_channels(before: int, after: int) -> nn.Module:
    return nn.Identity() if before == after else he_(Conv2d(before, after, 1, bias=False), slope=1)


def _up(height: int, width: int) -> nn.Module:
    """Returns bilinear upsampling by 2, the same as `interpolate(mode="bilinear")`, of maps of this size."""
    return bilinear((height, width), (2 * height, 2 * width))


def _down(height: int, width: int) -> nn.Module:
    """Returns bilinear downsampling by 2, with [1, 3, 3, 1] / 8 along each side and zero padding, to this size."""
    return Resample(*(_halve(size) for size in (height, width)))


def _halve(size: int) -> Tensor:
    """Returns the (size, 2 size) matrix of `_down` along one side."""
    padded = torch.zeros(size, 2 * size + 2)
    for new in range(size):
        padded[new, 2 * new : 2 * new + 4] = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    return padded[:, 1:-1]


class _Pooling(Conv2d):
    """A depthwise convolution over the whole map, (B, C, H, W) -> (B, C, 1, 1): a product and a sum, in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight[:, 0]).sum((2, 3), keepdim=True)
