"""Fully connected networks, for points and small images."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi, prod
from typing import cast

import torch
from torch import Tensor, nn

from gancli.errors import SettingError, require_at_least, require_between, require_coordinate
from gancli.networks.base import Discriminator, Generator
from gancli.networks.layers import (
    MAX_DEPTH,
    ClassEmbedding,
    Minibatch,
    ProjectionHead,
    apply_spectral_norm,
    he_,
    minibatch_layer,
)

_SLOPE = 0.2


class MLPGenerator(Generator):
    """`depth` hidden layers of `width` units with leaky ReLU, then a linear layer, with a tanh for images.

    fourier: standard deviation of the random frequencies, in periods per unit of noise, of the sines and cosines that
    are concatenated with the noise, so that steep maps are learned quickly (Tancik et al., NeurIPS 2020, eq. 5); 0 for
    none. bias_range: [low, high]; initialises the biases of the first layer so that each unit's pre-activation is zero
    at a random point, uniform in [low, high] in each input dimension. With None the biases start at zero, so that all
    units change slope at the origin and a map of few noise dimensions is nearly linear elsewhere. Raises SettingError.
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
        self.hidden = _hidden_layers(self.fourier.outputs, width=width, depth=depth, bias_range=bias_range)
        self.output = he_(nn.Linear(width, prod(self.image_shape)), slope=1)
        self.bound = nn.Tanh() if len(self.image_shape) == 3 else nn.Identity()

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        flat = self.bound(self.output(self.hidden(self.fourier(self.noise(z, labels)))))
        samples: Tensor = flat.unflatten(1, self.image_shape)
        return samples

    def first_weight(self) -> Tensor | None:
        if self.fourier.waves is not None:
            return None
        return cast(nn.Linear, self.hidden[0]).weight[:, : self.latent_dim]


class MLPDiscriminator(Discriminator):
    """The generator's hidden layers on the flattened sample, then a projection head.

    fourier, bias_range: as for the generator, with the sample in place of the noise. spectral_norm: whether the
    largest singular value of every weight is kept at 1. minibatch: the layer before the head that compares the samples
    of a batch (see `minibatch_layer`). Raises SettingError.
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
        self.hidden = _hidden_layers(self.fourier.outputs, width=width, depth=depth, bias_range=bias_range)
        self.minibatch, features = minibatch_layer(minibatch, width)
        self.head = ProjectionHead(features, num_classes)
        if spectral_norm:
            apply_spectral_norm(self)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        logits: Tensor = self.head(self.minibatch(self.hidden(self.fourier(x.flatten(1)))), labels)
        return logits


class FourierFeatures(nn.Module):
    """Maps x (B, inputs) to the concatenation of x, sin(2 pi x W) and cos(2 pi x W): (B, outputs).

    W (inputs, count) is drawn once from N(0, frequency^2) and not trained. With frequency 0 the output is x.
    """

    def __init__(self, inputs: int, count: int, frequency: float) -> None:
        super().__init__()
        require_at_least(0, fourier=frequency)
        require_between(0, 10**6, fourier=frequency)  # beyond, waves are shorter than float32 tells positions apart
        self.outputs = inputs + 2 * count if frequency else inputs
        self.waves = nn.Buffer(2 * pi * frequency * torch.randn(inputs, count)) if frequency else None

    def forward(self, x: Tensor) -> Tensor:
        if self.waves is None:
            return x
        phases = x @ self.waves
        return torch.cat([x, phases.sin(), phases.cos()], dim=1)


def _hidden_layers(inputs: int, *, width: int, depth: int, bias_range: list[float] | None) -> nn.Sequential:
    if bias_range is not None and not (len(bias_range) == 2 and bias_range[0] < bias_range[1]):
        raise SettingError(f"bias_range={bias_range}: two numbers, the lower one first")
    require_coordinate(bias_range=bias_range)
    require_at_least(1, width=width, depth=depth)
    require_between(1, MAX_DEPTH, depth=depth)
    layers: list[nn.Module] = []
    for layer in range(depth):
        layers += [he_(nn.Linear(width if layer else inputs, width), slope=_SLOPE), nn.LeakyReLU(_SLOPE)]
    if bias_range is not None:
        first, (low, high) = cast(nn.Linear, layers[0]), bias_range
        first.bias.data = -(first.weight * (low + (high - low) * torch.rand(width, inputs))).sum(1).detach()
    return nn.Sequential(*layers)
