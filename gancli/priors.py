"""Priors: the distributions of the generator's input noise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import sqrt

import torch
from torch import Tensor

from gancli.distributions import Distribution, stratified_uniform
from gancli.errors import SettingError, require_at_least, require_coordinate, require_positive


class Prior(ABC):
    """Noise with `dim` independent coordinates.

    Every prior is sampled by the inverse transform method: its inverse CDF is applied to numbers from U(0, 1), or from
    the middle of that interval if truncated (Devroye, Non-Uniform Random Variate Generation, 1986, section II.2).
    Constructors raise SettingError.
    """

    def __init__(self, *, dim: int) -> None:
        require_at_least(1, dim=dim)
        self.dim = dim

    def sample(self, count: int, rng: torch.Generator, *, truncation: float | None = None) -> Tensor:
        """Returns independent noise (count, dim) float32 on the generator's device.

        truncation: keeps only the middle of the distribution, as `bounds` says; None keeps all of it. Raises
        SettingError.
        """
        low, high = (0.0, 1.0) if truncation is None else self.bounds(truncation)
        uniform = torch.rand(count, self.dim, generator=rng, device=rng.device)
        return self.inverse_cdf(low + (high - low) * uniform)

    def sample_batch(self, count: int, rng: torch.Generator) -> Tensor:
        """Returns noise (count, dim) for a training step; unlike those of `sample`, rows may depend on each other."""
        return self.sample(count, rng)

    @abstractmethod
    def inverse_cdf(self, uniform: Tensor) -> Tensor:
        """Returns the quantiles at `uniform`, elementwise, as float32."""

    @abstractmethod
    def bounds(self, truncation: float) -> tuple[float, float]:
        """Returns the interval of U(0, 1) that `truncation` keeps. Raises SettingError if it is out of range."""

    def between(self, a: Tensor, b: Tensor, share: float) -> Tensor:
        """Returns noise at the fraction `share` (0 to 1) of the way from a to b, both (..., dim)."""
        return torch.lerp(a, b, share)


class Gaussian(Prior):
    """The standard normal distribution. Truncation t keeps |z| <= t (Brock et al., ICLR 2019, section 3.1)."""

    def sample(self, count: int, rng: torch.Generator, *, truncation: float | None = None) -> Tensor:
        if truncation is None:  # faster than the inverse CDF
            return torch.randn(count, self.dim, generator=rng, device=rng.device)
        return super().sample(count, rng, truncation=truncation)

    def inverse_cdf(self, uniform: Tensor) -> Tensor:
        inside = uniform.double().clamp(1e-12, 1 - 1e-12)
        return (sqrt(2.0) * torch.erfinv(2 * inside - 1)).float()

    def bounds(self, truncation: float) -> tuple[float, float]:
        if not truncation > 0:
            raise SettingError(f"truncation={truncation}: a number of standard deviations above 0")
        tail = 0.5 - 0.5 * torch.erf(torch.tensor(truncation / sqrt(2.0), dtype=torch.float64)).item()
        return tail, 1 - tail

    def between(self, a: Tensor, b: Tensor, share: float) -> Tensor:
        # Spherical interpolation (White, 2016): points on a straight line are shorter than Gaussian noise is.
        lengths = a.norm(dim=-1, keepdim=True) * b.norm(dim=-1, keepdim=True)  # 0 for the mean, in no direction
        cosine = torch.where(lengths > 0, (a * b).sum(-1, keepdim=True) / lengths, 1.0)
        angle = torch.acos(cosine.clamp(-1, 1))
        sine = torch.sin(angle)
        arc = (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / sine.clamp(min=1e-4)
        return torch.where(sine < 1e-4, torch.lerp(a, b, share), arc)


class TruncatedGaussian(Gaussian):
    """The standard normal distribution restricted to |z| <= bound, in training too."""

    def __init__(self, *, dim: int, bound: float = 2.0) -> None:
        super().__init__(dim=dim)
        require_positive(bound=bound)
        require_coordinate(bound=bound)
        self.bound = bound

    def sample(self, count: int, rng: torch.Generator, *, truncation: float | None = None) -> Tensor:
        low, high = self.bounds(self.bound if truncation is None else min(truncation, self.bound))
        uniform = torch.rand(count, self.dim, generator=rng, device=rng.device)
        return super().inverse_cdf(low + (high - low) * uniform)

    def inverse_cdf(self, uniform: Tensor) -> Tensor:
        low, high = self.bounds(self.bound)
        return super().inverse_cdf(low + (high - low) * uniform)


class _TruncatedByProbability(Prior):
    """Base of the priors whose truncation t, 0 < t <= 1, keeps the middle of the distribution with probability t."""

    def bounds(self, truncation: float) -> tuple[float, float]:
        if not 0 < truncation <= 1:
            raise SettingError(
                f"truncation={truncation}: for this prior the fraction of it to keep, above 0 and at most 1"
            )
        return 0.5 - truncation / 2, 0.5 + truncation / 2


class Uniform(_TruncatedByProbability):
    """U(low, high).

    stratified: whether, in each coordinate, the n rows of `sample_batch` have one number in each of n equal intervals
    (see `distributions.stratified_uniform`).
    """

    def __init__(self, *, dim: int, low: float = -1.0, high: float = 1.0, stratified: bool = False) -> None:
        super().__init__(dim=dim)
        require_coordinate(low=low, high=high)
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


class InverseCDF(_TruncatedByProbability):
    """`distribution` in each of `dim` independent coordinates."""

    def __init__(self, *, distribution: Distribution, dim: int = 1) -> None:
        super().__init__(dim=dim)
        self.distribution = distribution

    def inverse_cdf(self, uniform: Tensor) -> Tensor:
        return self.distribution.inverse_cdf(uniform).float()
