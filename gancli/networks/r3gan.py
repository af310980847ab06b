"""The networks of R3GAN (Huang et al., NeurIPS 2024, section 4, config E), for images of any size from 8x8 pixels.

Feature maps have the next larger size that halves evenly down to 4 .. 7 pixels; the image is their centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, leaky_relu

from gancli.errors import require_at_least
from gancli.networks.base import Discriminator, Generator
from gancli.networks.layers import (
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
        widths = widths_for(stages + 1, channels=channels, max_channels=max_channels)[::-1]
        self.noise = ClassEmbedding(latent_dim, num_classes)
        self.linear = he_(nn.Linear(self.noise.features, widths[0], bias=False), slope=1)
        self.basis = nn.Parameter(torch.randn(widths[0], *coarsest))
        layers: list[nn.Module] = _blocks(widths[0], blocks, len(widths), group_size, expansion)
        for before, after in pairwise(widths):
            layers += [
                _change_channels(before, after),
                _Up(),
                *_blocks(after, blocks, len(widths), group_size, expansion),
            ]
        self.stages = nn.Sequential(*layers)
        self.fit = CenterCropOrPad(self.image_shape[1:])
        self.output = he_(nn.Conv2d(widths[-1], self.image_shape[0], 1, bias=False), slope=1)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        coarsest = self.linear(self.noise(z, labels))[:, :, None, None] * self.basis
        images: Tensor = self.output(self.fit(self.stages(coarsest)))
        return images


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
        widths = widths_for(stages + 1, channels=channels, max_channels=max_channels)
        self.fit = CenterCropOrPad(padded_shape[1:])
        layers: list[nn.Module] = [he_(nn.Conv2d(self.image_shape[0], widths[0], 1, bias=False), slope=1)]
        for before, after in pairwise(widths):
            layers += [
                *_blocks(before, blocks, len(widths), group_size, expansion),
                _Down(),
                _change_channels(before, after),
            ]
        layers += _blocks(widths[-1], blocks, len(widths), group_size, expansion)
        pooling = he_(nn.Conv2d(widths[-1], widths[-1], coarsest, groups=widths[-1], bias=False), slope=1)
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
        self.expand = nn.Conv2d(channels, hidden, 1)
        self.grouped = nn.Conv2d(hidden, hidden, 3, padding=1, groups=groups)
        self.reduce = nn.Conv2d(hidden, channels, 1, bias=False)
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
    require_at_least(1, blocks=blocks, group_size=group_size, expansion=expansion)
    depth = blocks * sizes
    return [_Block(channels, depth=depth, group_size=group_size, expansion=expansion) for _ in range(blocks)]


def _change_channels(before: int, after: int) -> nn.Module:
    return nn.Identity() if before == after else he_(nn.Conv2d(before, after, 1, bias=False), slope=1)


def _upsample(x: Tensor, dim: int) -> Tensor:
    """Returns `x` at twice the length in `dim`: 3/4 of the nearest old pixel and 1/4 of the next, edges replicated.

    The same as `interpolate(mode="bilinear")`, whose backward pass adds in no fixed order on a GPU.
    """
    length = x.shape[dim]
    previous = torch.cat([x.narrow(dim, 0, 1), x.narrow(dim, 0, length - 1)], dim)
    following = torch.cat([x.narrow(dim, 1, length - 1), x.narrow(dim, length - 1, 1)], dim)
    nearest = 0.75 * x
    return torch.stack([nearest + 0.25 * previous, nearest + 0.25 * following], dim + 1).flatten(dim, dim + 1)


class _Up(nn.Module):
    """Bilinear upsampling by 2: (B, C, H, W) -> (B, C, 2H, 2W)."""

    def forward(self, x: Tensor) -> Tensor:
        return _upsample(_upsample(x, 2), 3)


class _Down(nn.Module):
    """Bilinear downsampling by 2 with the filter [1, 3, 3, 1] / 8 along each side and zero padding."""

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        # A buffer, so that it moves to the GPU with the network; a copy in each pass would make the GPU wait.
        self.kernel = nn.Buffer(torch.outer(taps, taps)[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return conv2d(x, self.kernel.expand(x.shape[1], 1, 4, 4), stride=2, padding=1, groups=x.shape[1])
