"""The Dirac-GAN (Mescheder et al., ICML 2018, section 2): one parameter for each player."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gancli.errors import SettingError, require_coordinate
from gancli.networks.base import Discriminator, Generator


class DiracGenerator(Generator):
    """G(z) = theta for any noise (Mescheder et al., ICML 2018, definition 2.1). theta: initial value."""

    def __init__(
        self, *, latent_dim: int, image_shape: Sequence[int], num_classes: int = 0, theta: float = 1.0
    ) -> None:
        super().__init__(latent_dim=latent_dim, image_shape=image_shape, num_classes=num_classes)
        _require_one_dimension(self.image_shape)
        require_coordinate(theta=theta)
        self.theta = nn.Parameter(torch.tensor(float(theta)))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.theta.expand(len(z), 1)

    def logged_parameters(self) -> dict[str, Tensor]:
        return {"theta": self.theta.detach()}


class DiracDiscriminator(Discriminator):
    """D(x) = psi * x, as a logit (Mescheder et al., ICML 2018, definition 2.1). psi: initial value."""

    def __init__(self, *, image_shape: Sequence[int], num_classes: int = 0, psi: float = 1.0) -> None:
        super().__init__(image_shape=image_shape, num_classes=num_classes)
        _require_one_dimension(self.image_shape)
        require_coordinate(psi=psi)
        self.psi = nn.Parameter(torch.tensor(float(psi)))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.psi * x[:, 0]

    def logged_parameters(self) -> dict[str, Tensor]:
        return {"psi": self.psi.detach()}


def _require_one_dimension(shape: Sequence[int]) -> None:
    if tuple(shape) != (1,):
        raise SettingError(f"image_shape={tuple(shape)}: this network needs one-dimensional points; use dataset=dirac")
