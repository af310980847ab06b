"""Noise that the generator turns into data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import sqrt

import torch
from torch import Tensor

from gancli.distributions import Distribution, stratified_uniform
from gancli.errors import SettingError


class Prior(ABC):
    """Independent noise in `dim` dimensions.

    Every prior is the inverse transform method: U(0, 1), cut to its middle when truncated, through an
    inverse CDF (Devroye, Non-Uniform Random Variate Generation, 1986, section II.2).
    """

    def __init__(self, *, dim: int) -> None:
        if dim < 1:
            raise SettingError(f"dim={dim}: noise needs at least 1 dimension")
        self.dim = dim

    def sample(self, count: int, rng: torch.Generator, *, truncation: float | None = None) -> Tensor:
        """Noise (count, dim) float32 on the generator's device.

        truncation: keep to the middle of the distribution, in the unit that `bounds` states; None for all of it.
        """
        low, high = (0.0, 1.0) if truncation is None else self.bounds(truncation)
        uniform = torch.rand(count, self.dim, generator=rng, device=rng.device)
        return self.inverse_cdf(low + (high - low) * uniform)

    def sample_batch(self, count: int, rng: torch.Generator) -> Tensor:
        """The same for a training step; rows may depend on one another."""
        return self.sample(count, rng)

    @abstractmethod
    def inverse_cdf(self, uniform: Tensor) -> Tensor:
        """The value below which a share `uniform` of the noise lies, elementwise."""

    @abstractmethod
    def bounds(self, truncation: float) -> tuple[float, float]:
        """The part of U(0, 1) that stays. Raises ValueError where `truncation` has no meaning."""

    def between(self, a: Tensor, b: Tensor, share: float) -> Tensor:
        """A point on the way from noise a to noise b, both (..., dim), that is still likely noise."""
        return torch.lerp(a, b, share)


class Gaussian(Prior):
    """N(0, 1). Truncation t keeps |z| <= t (Brock et al., ICLR 2019, section 3.1)."""

    def sample(self, count: int, rng: torch.Generator, *, truncation: float | None = None) -> Tensor:
        if truncation is None:  # the same distribution by a faster way
            return torch.randn(count, self.dim, generator=rng, device=rng.device)
        return super().sample(count, rng, truncation=truncation)

    def inverse_cdf(self, uniform: Tensor) -> Tensor:
        inside = uniform.double().clamp(1e-12, 1 - 1e-12)
        return (sqrt(2.0) * torch.erfinv(2 * inside - 1)).float()

    def bounds(self, truncation: float) -> tuple[float, float]:
        if truncation <= 0:
            raise SettingError(f"truncation={truncation}: a number of standard deviations above 0")
        tail = 0.5 - 0.5 * torch.erf(torch.tensor(truncation / sqrt(2.0), dtype=torch.float64)).item()
        return tail, 1 - tail

    def between(self, a: Tensor, b: Tensor, share: float) -> Tensor:
        # A straight line leaves the shell where Gaussian noise lives; the arc stays on it (White, 2016).
        unit_a, unit_b = a / a.norm(dim=-1, keepdim=True), b / b.norm(dim=-1, keepdim=True)
        angle = torch.acos((unit_a * unit_b).sum(-1, keepdim=True).clamp(-1, 1))
        sine = torch.sin(angle)
        arc = (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / sine.clamp(min=1e-4)
        return torch.where(sine < 1e-4, torch.lerp(a, b, share), arc)


class TruncatedGaussian(Gaussian):
    """N(0, 1) kept to |z| <= bound, in training too."""

    def __init__(self, *, dim: int, bound: float = 2.0) -> None:
        super().__init__(dim=dim)
        if bound <= 0:
            raise SettingError(f"bound={bound}: a number of standard deviations above 0")
        self.bound = bound

    def sample(self, count: int, rng: torch.Generator, *, truncation: float | None = None) -> Tensor:
        within = self.bound if truncation is None else min(truncation, self.bound)
        return super().sample(count, rng, truncation=within)


class _Share(Prior):
    """Truncation t, 0 < t <= 1, keeps the middle share t of the distribution."""

    def bounds(self, truncation: float) -> tuple[float, float]:
        if not 0 < truncation <= 1:
            raise SettingError(
                f"truncation={truncation}: for this prior the share of it to keep, above 0 and at most 1"
            )
        return 0.5 - truncation / 2, 0.5 + truncation / 2


class Uniform(_Share):
    """U(low, high). stratified: each coordinate of a batch of n has one number from each n-th of the interval."""

    def __init__(self, *, dim: int, low: float = -1.0, high: float = 1.0, stratified: bool = False) -> None:
        super().__init__(dim=dim)
        if not low < high:
            raise SettingError(f"low={low}, high={high}: low must be below high")
        self.low, self.high, self.stratified = low, high, stratified

    def sample_batch(self, count: int, rng: torch.Generator) -> Tensor:
        if not self.stratified:
            return self.sample(count, rng)
        columns = [stratified_uniform(count, rng).float() for _ in range(self.dim)]
        return self.inverse_cdf(torch.stack(columns, dim=1))

    def inverse_cdf(self, uniform: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * uniform


class InverseCDF(_Share):
    """Any one-dimensional distribution in each coordinate, through its inverse CDF applied to U(0, 1)."""

    def __init__(self, *, distribution: Distribution, dim: int = 1) -> None:
        super().__init__(dim=dim)
        self.distribution = distribution

    def inverse_cdf(self, uniform: Tensor) -> Tensor:
        return self.distribution.inverse_cdf(uniform).float()
