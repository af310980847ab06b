"""DCGAN: strided convolutions (Radford et al., ICLR 2016), for sides that halve evenly down to 4 .. 7 pixels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from gancli.errors import require_at_least
from gancli.networks.attention import AttentionAt
from gancli.networks.base import Discriminator, Generator
from gancli.networks.convolution import Conv2d, ConvTranspose2d
from gancli.networks.layers import (
    ClassEmbedding,
    Minibatch,
    Norm,
    ProjectionHead,
    apply_spectral_norm,
    dcgan_,
    he_,
    make_norm,
    minibatch_layer,
    stages_for,
    widths_for,
)

_SLOPE = 0.2
# The activations may work in place: convolutions and normalisations save their inputs for the backward pass, not their
# outputs, and (leaky) ReLU is differentiated, once or twice, from its output.


class DCGANGenerator(Generator):
    """A linear layer to the coarsest feature map, a 4x4 transposed convolution of stride 2 per stage, and a tanh.

    Images of a single stage (8x8 to 14x14 pixels) get a 3x3 convolution at the coarsest size before it.
    channels: channels of the finest hidden map, doubled at each coarser one up to `max_channels`. norm: normalisation
    of every hidden map; "none" changes the initialisation from N(0, 0.02) to He's. attention: smaller side of the maps
    that self-attention follows (see `AttentionAt`), 0 for none.
    """

    def __init__(
        self,
        *,
        latent_dim: int,
        image_shape: Sequence[int],
        num_classes: int = 0,
        channels: int = 32,
        max_channels: int = 512,
        norm: Norm = "batch",
        attention: int = 0,
    ) -> None:
        super().__init__(latent_dim=latent_dim, image_shape=image_shape, num_classes=num_classes)
        stages, (height, width) = stages_for(self.image_shape)
        widths = widths_for(max(stages, 2), channels=channels, max_channels=max_channels)[::-1]
        bias = norm == "none"  # normalisation subtracts a bias
        self.noise = ClassEmbedding(latent_dim, num_classes)
        self.linear = nn.Linear(self.noise.features, widths[0] * height * width, bias=bias)
        self.coarsest = (widths[0], height, width)
        layers: list[nn.Module] = [make_norm(norm, widths[0]), nn.ReLU(inplace=True)]
        sides = [min(height, width) * (1 if stages == 1 else 2**stage) for stage in range(1, len(widths))]
        attend = AttentionAt(attention, sides)
        for (before, after), side in zip(pairwise(widths), sides, strict=True):
            if stages == 1:
                layers += [Conv2d(before, after, 3, padding=1, bias=bias)]
            else:
                layers += [ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=bias)]
            layers += [make_norm(norm, after), nn.ReLU(inplace=True), *attend(side, after)]
        output = ConvTranspose2d(widths[-1], self.image_shape[0], 4, stride=2, padding=1)
        self.stages = nn.Sequential(*layers, output, nn.Tanh())
        if norm == "none":
            he_(self, slope=0)
            he_(output, slope=1)
        else:
            dcgan_(self)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        images: Tensor = self.stages(self.linear(self.noise(z, labels)).unflatten(1, self.coarsest))
        return images

    def first_weight(self) -> Tensor:
        return self.linear.weight[:, : self.latent_dim]


class DCGANDiscriminator(Discriminator):
    """A 4x4 convolution of stride 2 and a leaky ReLU per stage, then a projection head.

    Images of a single stage (8x8 to 14x14 pixels) get a 3x3 convolution at the coarsest size after it.
    channels, max_channels: as for the generator. norm: normalisation in all stages but the first. hidden: units of a
    fully connected layer before the head, as in InfoGAN's network for MNIST (Chen et al., NeurIPS 2016, appendix C.1),
    0 for none; small images have few stages, so that no convolution has the whole image in its receptive field.
    spectral_norm: whether the largest singular value of every weight is kept at 1. minibatch: the layer before the
    head that compares the samples of a batch (see `minibatch_layer`). attention: as for the generator.
    """

    def __init__(
        self,
        *,
        image_shape: Sequence[int],
        num_classes: int = 0,
        channels: int = 32,
        max_channels: int = 512,
        norm: Norm = "none",
        hidden: int = 0,
        spectral_norm: bool = False,
        minibatch: Minibatch = "none",
        attention: int = 0,
    ) -> None:
        super().__init__(image_shape=image_shape, num_classes=num_classes)
        stages, (height, width) = stages_for(self.image_shape)
        widths = widths_for(max(stages, 2), channels=channels, max_channels=max_channels)
        layers = [Conv2d(self.image_shape[0], widths[0], 4, stride=2, padding=1), nn.LeakyReLU(_SLOPE, inplace=True)]
        sides = [
            min(height, width) * (1 if stages == 1 else 2 ** (stages - 1 - stage)) for stage in range(1, len(widths))
        ]
        attend = AttentionAt(attention, sides)
        for (before, after), side in zip(pairwise(widths), sides, strict=True):
            kernel, stride = (3, 1) if stages == 1 else (4, 2)
            layers += [Conv2d(before, after, kernel, stride=stride, padding=1, bias=norm == "none")]
            layers += [make_norm(norm, after), nn.LeakyReLU(_SLOPE, inplace=True), *attend(side, after)]
        self.stages = he_(nn.Sequential(*layers), slope=_SLOPE)
        features = widths[-1] * height * width
        self.hidden = he_(_hidden_layer(features, hidden), slope=_SLOPE)
        self.minibatch, features = minibatch_layer(minibatch, hidden or features)
        self.head = ProjectionHead(features, num_classes)
        if spectral_norm:
            apply_spectral_norm(self)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        logits: Tensor = self.head(self.minibatch(self.hidden(self.stages(x).flatten(1))), labels)
        return logits


def _hidden_layer(features: int, units: int) -> nn.Module:
    require_at_least(0, hidden=units)
    return nn.Sequential(nn.Linear(features, units), nn.LeakyReLU(_SLOPE)) if units else nn.Identity()
