"""Fully connected networks, for points and small images."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi, prod
from typing import cast

import torch
from torch import Tensor, nn

from gancli.errors import SettingError
from gancli.networks.base import Discriminator, Generator
from gancli.networks.layers import ClassEmbedding, Minibatch, ProjectionHead, apply_spectral_norm, he_, minibatch_layer

_SLOPE = 0.2


class MLPGenerator(Generator):
    """`depth` hidden layers of `width` units with leaky ReLU; tanh at the end for images, nothing for points.

    fourier: frequency, in periods per unit of noise, of random sines and cosines of the noise that join it, so
    that a map with steep steps is learned soon (Tancik et al., NeurIPS 2020, eq. 5); 0 for none.
    bias_range: [low, high], between which the bias_range of the first layer's units pass through random points; without, all
    pass through the origin, and a map of few noise dimensions can hardly bend elsewhere.
    """

    def __init__(
        self,
        *,
        latent_dim: int,
        image_shape: Sequence[int],
        num_classes: int = 0,
        width: int = 128,
        depth: int = 2,
        fourier: float = 0.0,
        bias_range: list[float] | None = None,
    ) -> None:
        super().__init__(latent_dim=latent_dim, image_shape=image_shape, num_classes=num_classes)
        self.noise = ClassEmbedding(latent_dim, num_classes)
        self.fourier = FourierFeatures(self.noise.features, width // 2, fourier)
        self.hidden = _hidden(self.fourier.outputs, width=width, depth=depth, bias_range=bias_range)
        self.output = he_(nn.Linear(width, prod(self.image_shape)), slope=1)
        self.bound = nn.Tanh() if len(self.image_shape) == 3 else nn.Identity()

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        flat = self.bound(self.output(self.hidden(self.fourier(self.noise(z, labels)))))
        samples: Tensor = flat.unflatten(1, self.image_shape)
        return samples


class MLPDiscriminator(Discriminator):
    """The same hidden layers on the flattened sample, then a projection head.

    spectral_norm: keep the largest singular value of every weight at 1. minibatch: what looks at
    several samples together before the head. fourier, bias_range: as for the generator, of the sample.
    """

    def __init__(
        self,
        *,
        image_shape: Sequence[int],
        num_classes: int = 0,
        width: int = 128,
        depth: int = 2,
        fourier: float = 0.0,
        bias_range: list[float] | None = None,
        spectral_norm: bool = False,
        minibatch: Minibatch = "none",
    ) -> None:
        super().__init__(image_shape=image_shape, num_classes=num_classes)
        self.fourier = FourierFeatures(prod(self.image_shape), width // 2, fourier)
        self.hidden = _hidden(self.fourier.outputs, width=width, depth=depth, bias_range=bias_range)
        self.minibatch, features = minibatch_layer(minibatch, width)
        self.head = ProjectionHead(features, num_classes)
        if spectral_norm:
            apply_spectral_norm(self)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        logits: Tensor = self.head(self.minibatch(self.hidden(self.fourier(x.flatten(1)))), labels)
        return logits


class FourierFeatures(nn.Module):
    """x (B, inputs) to x, sin(2 pi W x), cos(2 pi W x): (B, outputs), W fixed, of N(0, frequency^2); to x for 0."""

    def __init__(self, inputs: int, count: int, frequency: float) -> None:
        super().__init__()
        if frequency < 0:
            raise SettingError(f"fourier={frequency}: a frequency, 0 or more")
        self.outputs = inputs + 2 * count if frequency else inputs
        self.waves = nn.Buffer(2 * pi * frequency * torch.randn(inputs, count)) if frequency else None

    def forward(self, x: Tensor) -> Tensor:
        if self.waves is None:
            return x
        phases = x @ self.waves
        return torch.cat([x, phases.sin(), phases.cos()], dim=1)


def _hidden(inputs: int, *, width: int, depth: int, bias_range: list[float] | None) -> nn.Sequential:
    if bias_range is not None and not (len(bias_range) == 2 and bias_range[0] < bias_range[1]):
        raise SettingError(f"bias_range={bias_range}: two ends, the lower one first")
    if width < 1:
        raise SettingError(f"width={width}: at least 1")
    if depth < 1:
        raise SettingError(f"depth={depth}: at least 1 hidden layer")
    layers: list[nn.Module] = []
    for layer in range(depth):
        layers += [he_(nn.Linear(width if layer else inputs, width), slope=_SLOPE), nn.LeakyReLU(_SLOPE)]
    if bias_range is not None:
        first, (low, high) = cast(nn.Linear, layers[0]), bias_range
        first.bias.data = -(first.weight * (low + (high - low) * torch.rand(width, inputs))).sum(1).detach()
    return nn.Sequential(*layers)
