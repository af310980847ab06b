"""Residual networks of SNGAN (Miyato et al., ICLR 2018, appendix B.4), for sides that halve evenly to 4 .. 7 pixels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from gancli.networks.attention import AttentionAt
from gancli.networks.base import Discriminator, Generator
from gancli.networks.convolution import Conv2d
from gancli.networks.layers import (
    ClassEmbedding,
    Minibatch,
    Norm,
    ProjectionHead,
    apply_spectral_norm,
    he_,
    make_norm,
    minibatch_layer,
    stages_for,
    widths_for,
)


class ResNetGenerator(Generator):
    """A linear layer to the coarsest map, a residual block that doubles the size per stage, a 3x3 convolution and tanh.

    channels: channels of the finest map, doubled at each coarser one up to `max_channels`. norm: normalisation before
    every ReLU. attention: smaller side of the maps that self-attention follows (see `AttentionAt`), 0 for none.
    """

    def __init__(
        self,
        *,
        latent_dim: int,
        image_shape: Sequence[int],
        num_classes: int = 0,
        channels: int = 64,
        max_channels: int = 512,
        norm: Norm = "batch",
        attention: int = 0,
    ) -> None:
        super().__init__(latent_dim=latent_dim, image_shape=image_shape, num_classes=num_classes)
        stages, (height, width) = stages_for(self.image_shape)
        widths = widths_for(stages, channels=channels, max_channels=max_channels)[::-1]
        self.noise = ClassEmbedding(latent_dim, num_classes)
        self.linear = he_(nn.Linear(self.noise.features, widths[0] * height * width), slope=1)
        self.coarsest = (widths[0], height, width)
        sides = [min(height, width) * 2**stage for stage in range(1, stages + 1)]
        attend = AttentionAt(attention, sides)
        blocks: list[nn.Module] = []
        for (before, after), side in zip(pairwise([widths[0], *widths]), sides, strict=True):
            blocks += [_Block(before, after, norm=norm, resize="up"), *attend(side, after)]
        self.blocks = nn.Sequential(*blocks)
        output = he_(Conv2d(widths[-1], self.image_shape[0], 3, padding=1), slope=1)
        self.output = nn.Sequential(make_norm(norm, widths[-1]), nn.ReLU(), output, nn.Tanh())

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        coarsest = self.linear(self.noise(z, labels)).unflatten(1, self.coarsest)
        images: Tensor = self.output(self.blocks(coarsest))
        return images

    def first_weight(self) -> Tensor:
        return self.linear.weight[:, : self.latent_dim]


class ResNetDiscriminator(Discriminator):
    """A residual block that halves the size per stage, one that keeps it, a sum over pixels, and a projection head.

    channels, max_channels: as for the generator. norm: normalisation in all blocks but the first. spectral_norm:
    whether the largest singular value of every weight is kept at 1. minibatch: the layer before the head that compares
    the samples of a batch (see `minibatch_layer`). attention: as for the generator.
    """

    def __init__(
        self,
        *,
        image_shape: Sequence[int],
        num_classes: int = 0,
        channels: int = 64,
        max_channels: int = 512,
        norm: Norm = "none",
        spectral_norm: bool = True,
        minibatch: Minibatch = "none",
        attention: int = 0,
    ) -> None:
        super().__init__(image_shape=image_shape, num_classes=num_classes)
        stages, coarsest = stages_for(self.image_shape)
        widths = widths_for(stages, channels=channels, max_channels=max_channels)
        sides = [min(coarsest) * 2 ** (stages - stage) for stage in range(1, stages + 1)]
        attend = AttentionAt(attention, sides)
        blocks: list[nn.Module] = []
        for (before, after), side in zip(pairwise(widths), sides[1:], strict=True):
            blocks += [_Block(before, after, norm=norm, resize="down"), *attend(side, after)]
        self.blocks = nn.Sequential(
            _Block(self.image_shape[0], widths[0], norm="none", resize="down", activate=False),
            *attend(sides[0], widths[0]),
            *blocks,
            _Block(widths[-1], widths[-1], norm=norm, resize="keep"),
            make_norm(norm, widths[-1]),
            nn.ReLU(),
        )
        self.minibatch, features = minibatch_layer(minibatch, widths[-1])
        self.head = ProjectionHead(features, num_classes)
        if spectral_norm:
            apply_spectral_norm(self)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        logits: Tensor = self.head(self.minibatch(self.blocks(x).sum((2, 3))), labels)
        return logits


class _Block(nn.Module):
    """The sum of a shortcut and of norm, ReLU, 3x3 convolution, norm, ReLU, 3x3 convolution.

    activate: whether the first norm and ReLU are there; False for images, whose negative pixels ReLU would drop.
    """

    def __init__(
        self, before: int, after: int, *, norm: Norm, resize: Literal["up", "down", "keep"], activate: bool = True
    ) -> None:
        super().__init__()
        up = nn.Upsample(scale_factor=2) if resize == "up" else nn.Identity()
        down = nn.AvgPool2d(2) if resize == "down" else nn.Identity()
        bias = norm == "none"  # normalisation subtracts a bias
        self.residual = nn.Sequential(
            # This ReLU is not in place, because the shortcut reads the same input.
            *([make_norm(norm, before), nn.ReLU()] if activate else []),
            up,
            he_(Conv2d(before, after, 3, padding=1, bias=bias), slope=0),
            make_norm(norm, after),
            nn.ReLU(inplace=True),
            he_(Conv2d(after, after, 3, padding=1), slope=0),
            down,
        )
        # A 1x1 convolution commutes with up- and downsampling, and is cheapest on the smaller map.
        is_identity = before == after and resize == "keep"
        project = nn.Identity() if is_identity else he_(Conv2d(before, after, 1), slope=1)
        self.shortcut = nn.Sequential(down, project, up)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.residual(x) + self.shortcut(x)
        return total
