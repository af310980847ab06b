"""Fully connected networks, for points and small images."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from gancli.networks.base import Discriminator, Generator
from gancli.networks.layers import LabelledNoise, ProjectionHead, he_, spectral

_SLOPE = 0.2


class MLPGenerator(Generator):
    """`depth` hidden layers of `width` units with leaky ReLU; tanh at the end for images, nothing for points."""

    def __init__(
        self,
        *,
        latent_dim: int,
        image_shape: Sequence[int],
        num_classes: int = 0,
        width: int = 128,
        depth: int = 2,
    ) -> None:
        super().__init__(latent_dim=latent_dim, image_shape=image_shape, num_classes=num_classes)
        self.noise = LabelledNoise(latent_dim, num_classes)
        self.hidden = _hidden(self.noise.features, width=width, depth=depth)
        self.output = he_(nn.Linear(width, prod(self.image_shape)), slope=1)
        self.bound = nn.Tanh() if len(self.image_shape) == 3 else nn.Identity()

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        flat = self.bound(self.output(self.hidden(self.noise(z, labels))))
        samples: Tensor = flat.unflatten(1, self.image_shape)
        return samples


class MLPDiscriminator(Discriminator):
    """The same hidden layers on the flattened sample, then a projection head.

    spectral_norm: keep the largest singular value of every weight at 1.
    """

    def __init__(
        self,
        *,
        image_shape: Sequence[int],
        num_classes: int = 0,
        width: int = 128,
        depth: int = 2,
        spectral_norm: bool = False,
    ) -> None:
        super().__init__(image_shape=image_shape, num_classes=num_classes)
        self.hidden = _hidden(prod(self.image_shape), width=width, depth=depth)
        self.head = ProjectionHead(width, num_classes)
        if spectral_norm:
            spectral(self)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        logits: Tensor = self.head(self.hidden(x.flatten(1)), labels)
        return logits


def _hidden(inputs: int, *, width: int, depth: int) -> nn.Sequential:
    if width < 1:
        raise ValueError(f"width={width}: at least 1")
    if depth < 1:
        raise ValueError(f"depth={depth}: at least 1 hidden layer")
    layers: list[nn.Module] = []
    for layer in range(depth):
        layers += [he_(nn.Linear(width if layer else inputs, width), slope=_SLOPE), nn.LeakyReLU(_SLOPE)]
    return nn.Sequential(*layers)
