"""The network of R3GAN (Huang et al., NeurIPS 2024, section 4, config E), for any size from 8x8 pixels up.

Maps have the next size that halves evenly down to 4 .. 7 pixels, of which an image is the middle.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, leaky_relu

from gancli.errors import SettingError
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
_LAYERS = 3  # convolutions of a block


class R3GANGenerator(Generator):
    """Noise weighs a learned coarsest map, then `blocks` residual blocks at each size, doubled between.

    No tanh, as in the paper: pixels may leave [-1, 1]. channels: width of the finest map, doubled at each
    coarser one up to `max_channels`. group_size: channels that a grouped convolution sees together; all
    where there are fewer, more where it does not divide them. expansion: of the width within a block.
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
            layers += [_mix(before, after), _Up(), *_blocks(after, blocks, len(widths), group_size, expansion)]
        self.stages = nn.Sequential(*layers)
        self.fit = CenterCropOrPad(self.image_shape[1:])
        self.output = he_(nn.Conv2d(widths[-1], self.image_shape[0], 1, bias=False), slope=1)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        coarsest = self.linear(self.noise(z, labels))[:, :, None, None] * self.basis
        images: Tensor = self.output(self.fit(self.stages(coarsest)))
        return images


class R3GANDiscriminator(Discriminator):
    """The generator's mirror image: blocks at each size, halved between, a learned weighing of the coarsest map, head.

    Arguments as for the generator. minibatch: what looks at several samples together before the head.
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
        room = next_divisible_shape(self.image_shape)
        stages, coarsest = stages_for(room)
        widths = widths_for(stages + 1, channels=channels, max_channels=max_channels)
        self.fit = CenterCropOrPad(room[1:])
        layers: list[nn.Module] = [he_(nn.Conv2d(self.image_shape[0], widths[0], 1, bias=False), slope=1)]
        for before, after in pairwise(widths):
            layers += [*_blocks(before, blocks, len(widths), group_size, expansion), _Down(), _mix(before, after)]
        layers += _blocks(widths[-1], blocks, len(widths), group_size, expansion)
        weighing = he_(nn.Conv2d(widths[-1], widths[-1], coarsest, groups=widths[-1], bias=False), slope=1)
        self.stages = nn.Sequential(*layers, weighing, nn.Flatten())
        self.minibatch, features = minibatch_layer(minibatch, widths[-1])
        self.head = ProjectionHead(features, num_classes)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        logits: Tensor = self.head(self.minibatch(self.stages(self.fit(x))), labels)
        return logits


class _Block(nn.Module):
    """x + 1x1 (grouped 3x3 (1x1 x)), a biased leaky ReLU after the first two: maps (B, channels, H, W) to the same.

    depth: residual blocks of the network; the first two weights are scaled by depth^(-1/4), that is
    L^(-1/(2m-2)), and the last starts at zero, so that the network starts linear (Zhang et al., ICLR 2019,
    section 3).
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
        scale = depth ** (-1 / (2 * _LAYERS - 2))
        with torch.no_grad():
            for layer in (self.expand, self.grouped):
                he_(layer, slope=_SLOPE).weight.mul_(scale)
        nn.init.zeros_(self.reduce.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = leaky_relu(self.expand(x), _SLOPE, inplace=True)  # safe: convolutions do not keep their outputs
        residual: Tensor = self.reduce(leaky_relu(self.grouped(y), _SLOPE, inplace=True))
        return x + residual


def _blocks(channels: int, blocks: int, sizes: int, group_size: int, expansion: int) -> list[nn.Module]:
    for name, value in {"blocks": blocks, "group_size": group_size, "expansion": expansion}.items():
        if value < 1:
            raise SettingError(f"{name}={value}: at least 1")
    make = {"depth": blocks * sizes, "group_size": group_size, "expansion": expansion}
    return [_Block(channels, **make) for _ in range(blocks)]


def _mix(before: int, after: int) -> nn.Module:
    return nn.Identity() if before == after else he_(nn.Conv2d(before, after, 1, bias=False), slope=1)


def _doubled(x: Tensor, dim: int) -> Tensor:
    """Twice as long in `dim`: a new pixel is 3/4 of the nearest old one and 1/4 of the next, the edge repeated.

    As `interpolate` has it, but for its backward pass, whose sums have no fixed order on a GPU.
    """
    length = x.shape[dim]
    before = torch.cat([x.narrow(dim, 0, 1), x.narrow(dim, 0, length - 1)], dim)
    after = torch.cat([x.narrow(dim, 1, length - 1), x.narrow(dim, length - 1, 1)], dim)
    near = 0.75 * x
    return torch.stack([near + 0.25 * before, near + 0.25 * after], dim + 1).flatten(dim, dim + 1)


class _Up(nn.Module):
    """Twice the size, bilinear."""

    def forward(self, x: Tensor) -> Tensor:
        return _doubled(_doubled(x, 2), 3)


class _Down(nn.Module):
    """Half the size, bilinear: [1, 3, 3, 1] / 8 along each side, zeros beyond the edge."""

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        # On the device from the start: a copy to it in each pass would make the GPU wait.
        self.kernel = nn.Buffer(torch.outer(taps, taps)[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return conv2d(x, self.kernel.expand(x.shape[1], 1, 4, 4), stride=2, padding=1, groups=x.shape[1])
