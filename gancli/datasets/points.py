"""Points from distributions with a known density: in the plane, and on the line."""

from __future__ import annotations

from math import ceil, pi, sqrt

import torch
from torch import Tensor

from gancli.datasets.base import Batch, SyntheticDataset
from gancli.distributions import Distribution, stratified_uniform
from gancli.errors import require_at_least, require_coordinate, require_memory, require_positive

_BYTES_PER_CENTRE = 40  # of a mixture: coordinates, share, and what is made on the way


class Mixture(SyntheticDataset):
    """An equally weighted mixture of round Gaussians in the plane; a point's label is the index of its centre.

    centres: (K, 2) float32. std: of each coordinate. Raises SettingError.
    """

    def __init__(self, centres: Tensor, *, std: float) -> None:
        super().__init__()
        _check_std(std)
        self.centres, self.std = centres, std
        self.shape, self.num_classes = (2,), len(centres)
        self.mode_shares = torch.full((len(centres),), 1 / len(centres))

    def draw(self, count: int, rng: torch.Generator) -> Batch:
        labels = torch.randint(len(self.centres), (count,), generator=rng)
        return self.centres[labels] + self.std * torch.randn(count, 2, generator=rng), labels

    def modes_of(self, data: Tensor, logits: Tensor | None) -> tuple[Tensor, Tensor]:
        points = data[data.isfinite().all(1)].double()
        distance, index = torch.cdist(points, self.centres.double()).min(1)
        return index, distance < 3 * self.std

    def density(self, points: Tensor) -> Tensor:
        unit = sqrt(2) * self.std
        x, y = (self.centres.to(points.device) / unit).unbind(1)
        parts = []
        for rows in (points.float() / unit).split(256):  # few enough to stay in a processor's cache
            squared = (rows[:, :1] - x).square_() + (rows[:, 1:] - y).square_()  # cdist's rounding error is far larger
            parts.append(squared.neg_().exp_().mean(1))
        return torch.cat(parts) / (2 * pi * self.std**2)


class GaussianRing(Mixture):
    """`modes` Gaussians evenly spaced on a circle around 0 (Metz et al., ICLR 2017). Raises SettingError."""

    def __init__(self, *, modes: int = 8, radius: float = 1.0, std: float = 0.01) -> None:
        require_at_least(1, modes=modes)
        require_positive(radius=radius)
        require_coordinate(radius=radius)
        require_memory(_BYTES_PER_CENTRE * modes, modes=modes)
        angles = 2 * pi * torch.arange(modes) / modes
        super().__init__(radius * torch.stack([angles.cos(), angles.sin()], dim=1), std=std)


class GaussianGrid(Mixture):
    """`side` x `side` Gaussians on a square grid around 0 (Srivastava et al., NeurIPS 2017). Raises SettingError."""

    def __init__(self, *, side: int = 5, spacing: float = 2.0, std: float = 0.05) -> None:
        require_at_least(1, side=side)
        require_positive(spacing=spacing)
        require_coordinate(spacing=spacing)
        require_memory(_BYTES_PER_CENTRE * side**2, side=side)
        coordinates = spacing * (torch.arange(side) - (side - 1) / 2)
        super().__init__(torch.cartesian_prod(coordinates, coordinates), std=std)


class SwissRoll(SyntheticDataset):
    """A spiral of one and a half turns in the plane, its outer end at distance 1, with Gaussian noise of `std`.

    Raises SettingError.
    """

    def __init__(self, *, std: float = 0.02) -> None:
        super().__init__()
        _check_std(std)
        self.std = std
        self.shape = (2,)
        # The density is the mean of Gaussians along the curve. Where their centres lie closer than `std`, the sum is as
        # good as the integral; the curve's speed is 9.5 per unit of `share` at its outer end.
        require_memory(_BYTES_PER_CENTRE * 10 / std, std=std)
        count = ceil(10 / std)
        self._quadrature = Mixture(self._curve((torch.arange(count) + 0.5) / count), std=std)

    @staticmethod
    def _curve(share: Tensor) -> Tensor:
        angle = 1.5 * pi * (1 + 2 * share)
        return angle[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1) / (4.5 * pi)

    def draw(self, count: int, rng: torch.Generator) -> Batch:
        share = torch.rand(count, generator=rng)
        return self._curve(share) + self.std * torch.randn(count, 2, generator=rng), None

    def density(self, points: Tensor) -> Tensor:
        return self._quadrature.density(points)


class Dirac(SyntheticDataset):
    """All of the data in the point 0 of the line (Mescheder et al., ICML 2018, definition 2.1)."""

    def __init__(self) -> None:
        super().__init__()
        self.shape = (1,)

    def draw(self, count: int, rng: torch.Generator) -> Batch:
        return torch.zeros(count, 1), None


class Distribution1d(SyntheticDataset):
    """Points (1,) from a distribution on the line, by the inverse transform method.

    stratified: whether a batch of n holds one sample of each n-th of the distribution.
    """

    distribution: Distribution

    def __init__(self, *, distribution: Distribution, stratified: bool = False) -> None:
        super().__init__()
        self.distribution, self.shape, self.stratified = distribution, (1,), stratified

    def draw(self, count: int, rng: torch.Generator) -> Batch:
        return self.distribution.sample(count, rng)[:, None], None

    def draw_batch(self, count: int, rng: torch.Generator) -> Batch:
        if not self.stratified:
            return self.draw(count, rng)
        return self.distribution.inverse_cdf(stratified_uniform(count, rng)).float()[:, None], None

    def density(self, points: Tensor) -> Tensor:
        return self.distribution.density(points[:, 0]).float()


def _check_std(std: float) -> None:
    require_positive(std=std)
    require_coordinate(std=std)
