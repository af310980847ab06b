"""Laws on the line whose CDF is known, so that the inverse transform method samples them exactly."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from math import inf, pi, sqrt
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gancli.errors import SettingError
from gancli.expressions import formula

_TAIL = 1e-12  # U(0, 1) is kept this far from its ends, where some distributions have their infinities


def stratified_uniform(count: int, rng: torch.Generator) -> Tensor:
    """(count,) float64 of U(0, 1), one from each `count`-th of it, in random order: stratified sampling.

    Each alone is uniform; together they fill the line evenly, so that means over them are far less noisy
    (McKay, Beckman and Conover, Technometrics 1979).
    """
    order = torch.randperm(count, generator=rng, device=rng.device)
    return (order + torch.rand(count, generator=rng, device=rng.device, dtype=torch.float64)) / count


class Distribution(ABC):
    """A distribution by its CDF F, density F' and inverse CDF; all elementwise on tensors of any shape, in float64."""

    @abstractmethod
    def cdf(self, x: Tensor) -> Tensor:
        """F(x), in [0, 1]."""

    @abstractmethod
    def inverse_cdf(self, u: Tensor) -> Tensor:
        """The x with F(x) = u, finite for u in [0, 1]."""

    @abstractmethod
    def density(self, x: Tensor) -> Tensor:
        """F'(x), 0 or more."""

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        """(count,) float32: the inverse CDF of U(0, 1) (Devroye, 1986, section II.2)."""
        return self.inverse_cdf(torch.rand(count, generator=rng, dtype=torch.float64)).float()


class Normal(Distribution):
    """N(mean, std^2)."""

    def __init__(self, *, mean: float = 0.0, std: float = 1.0) -> None:
        _positive("std", std)
        self.mean, self.std = mean, std

    def cdf(self, x: Tensor) -> Tensor:
        share: Tensor = torch.special.ndtr((x.double() - self.mean) / self.std)
        return share

    def inverse_cdf(self, u: Tensor) -> Tensor:
        standard: Tensor = torch.special.ndtri(_inside(u))
        return self.mean + self.std * standard

    def density(self, x: Tensor) -> Tensor:
        return torch.exp(-0.5 * ((x.double() - self.mean) / self.std).square()) / (self.std * sqrt(2 * pi))


class Exponential(Distribution):
    """F(x) = 1 - exp(-rate x) for x >= 0."""

    def __init__(self, *, rate: float = 1.0) -> None:
        _positive("rate", rate)
        self.rate = rate

    def cdf(self, x: Tensor) -> Tensor:
        return -torch.expm1(-self.rate * x.double().clamp(min=0))

    def inverse_cdf(self, u: Tensor) -> Tensor:
        return -torch.log1p(-_inside(u)) / self.rate

    def density(self, x: Tensor) -> Tensor:
        return torch.where(x >= 0, self.rate * torch.exp(-self.rate * x.double().clamp(min=0)), 0.0)


class Uniform(Distribution):
    """Constant density between low and high."""

    def __init__(self, *, low: float = 0.0, high: float = 1.0) -> None:
        if not low < high:
            raise SettingError(f"low={low}, high={high}: low must be below high")
        self.low, self.high = low, high

    def cdf(self, x: Tensor) -> Tensor:
        return ((x.double() - self.low) / (self.high - self.low)).clamp(0, 1)

    def inverse_cdf(self, u: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * u.double()

    def density(self, x: Tensor) -> Tensor:
        return ((x >= self.low) & (x <= self.high)).double() / (self.high - self.low)


class GaussianMixture(Distribution):
    """Normal distributions with weights (equal where none are given); its inverse CDF is found by bisection."""

    def __init__(self, *, means: list[float], stds: list[float], weights: list[float] | None = None) -> None:
        weights = [1.0] * len(means) if weights is None else weights
        if not means or not len(means) == len(stds) == len(weights):
            raise SettingError(f"means={means}, stds={stds}, weights={weights}: as many of each, at least one")
        for std in stds:
            _positive("stds", std)
        if min(weights) < 0 or sum(weights) <= 0:
            raise SettingError(f"weights={weights}: shares of 0 or more, not all 0")
        shares = torch.tensor(weights, dtype=torch.float64)
        self.means, self.stds = (torch.tensor(values, dtype=torch.float64) for values in (means, stds))
        self.weights = shares / shares.sum()

    def cdf(self, x: Tensor) -> Tensor:
        share: Tensor = torch.special.ndtr(self._standard(x)) @ self.weights
        return share

    def density(self, x: Tensor) -> Tensor:
        return torch.exp(-0.5 * self._standard(x).square()) @ (self.weights / (self.stds * sqrt(2 * pi)))

    def inverse_cdf(self, u: Tensor) -> Tensor:
        u = _inside(u)
        quantiles = self.means + self.stds * torch.special.ndtri(u)[..., None]
        low, high = quantiles.aminmax(dim=-1)  # the mixture's quantile lies between its parts'
        return _bisected(self.cdf, u, low, high)

    def _standard(self, x: Tensor) -> Tensor:
        """(*x.shape, K): in standard deviations of each part."""
        return (x.double()[..., None] - self.means) / self.stds


class Expression(Distribution):
    """The distribution whose CDF is the formula `cdf` of x between `low` and `high` (see `gancli.expressions`).

    Its density is the formula's derivative, its inverse CDF is found by bisection. The formula must rise from 0 to 1,
    to a thousandth. Raises ValueError.
    """

    def __init__(self, *, cdf: str, low: float = -20.0, high: float = 20.0) -> None:
        if not low < high:
            raise SettingError(f"low={low}, high={high}: low must be below high")
        try:
            self.formula = formula(cdf)
        except ValueError as error:
            raise SettingError(f"cdf={cdf}: {error}") from None
        self.low, self.high = low, high
        grid = self.formula(torch.linspace(low, high, 10_001, dtype=torch.float64))
        if not grid.isfinite().all() or grid.diff().min() < -1e-9:
            raise SettingError(f"cdf={cdf}: it does not rise everywhere between low={low} and high={high}")
        first, last = float(grid[0]), float(grid[-1])
        if abs(first) > 1e-3 or abs(last - 1) > 1e-3:
            raise SettingError(
                f"cdf={cdf}: it goes from {first:.4g} to {last:.4g} between low={low} and high={high}, not 0 to 1"
            )

    def cdf(self, x: Tensor) -> Tensor:
        inside = self.formula(x.double().clamp(self.low, self.high)).clamp(0, 1)
        return torch.where(x >= self.high, 1.0, torch.where(x <= self.low, 0.0, inside))

    def inverse_cdf(self, u: Tensor) -> Tensor:
        u = _inside(u)
        return _bisected(self.cdf, u, torch.full_like(u, self.low), torch.full_like(u, self.high))

    def density(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            at = x.detach().double().clamp(self.low, self.high).requires_grad_()
            (slope,) = torch.autograd.grad(self.formula(at).sum(), at)
        return torch.where((x >= self.low) & (x <= self.high), slope.nan_to_num(posinf=0.0).clamp_min(0), 0.0)


class Table(Distribution):
    """The distribution of a table of samples: its quantiles are linear between one sample and the next larger one.

    Hyndman & Fan, The American Statistician 1996, definition 7. Equal samples are a jump of the CDF, a probability of
    their value that has no density. Samples are float32, as those of any distribution. path: text with a number per line, or
    .npy with one column. Raises ValueError.
    """

    def __init__(self, *, path: str) -> None:
        file = Path(path).expanduser()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # numpy's, of an empty file or a number too large: errors below
                read = np.load(file, allow_pickle=False) if file.suffix == ".npy" else np.loadtxt(file, delimiter=",")
                values = np.sort(np.ravel(read).astype(np.float32)).astype(np.float64)
            if np.squeeze(read).ndim != 1:
                raise ValueError(f"it has the shape {np.shape(read)}, not one column")
        except (OSError, ValueError, EOFError) as error:
            raise SettingError(f"path={path}: not readable as a table of numbers: {error}") from None
        if len(values) < 2 or not np.isfinite(values).all() or values[0] == values[-1]:
            raise SettingError(f"path={path}: a distribution needs at least two different, finite numbers")
        self.x = torch.from_numpy(values)
        self.intervals = len(values) - 1

    def cdf(self, x: Tensor) -> Tensor:
        x = x.double()
        below = torch.searchsorted(self.x, x.contiguous(), right=True).clamp(1, self.intervals) - 1
        gap = self.x[below + 1] - self.x[below]
        inside = (below + (x - self.x[below]) / torch.where(gap > 0, gap, 1.0)) / self.intervals
        return torch.where(x >= self.x[-1], 1.0, torch.where(x < self.x[0], 0.0, inside))

    def inverse_cdf(self, u: Tensor) -> Tensor:
        place = u.double().clamp(0, 1) * self.intervals
        below = place.long().clamp(max=self.intervals - 1)
        return torch.lerp(self.x[below], self.x[below + 1], place - below)

    def density(self, x: Tensor) -> Tensor:
        gap = self.x.diff()
        slope = torch.where(gap > 0, 1 / (self.intervals * gap), 0.0)
        index = torch.searchsorted(self.x, x.double().contiguous(), right=True).clamp(1, self.intervals) - 1
        return torch.where((x >= self.x[0]) & (x <= self.x[-1]), slope[index], 0.0)


def _bisected(cdf: Callable[[Tensor], Tensor], u: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The x between `low` and `high` with cdf(x) = u, elementwise, for a cdf that rises."""
    for _ in range(48):  # each halves the interval: to 1e-13 of one of 40
        middle = (low + high) / 2
        below = cdf(middle) < u
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def _inside(u: Tensor) -> Tensor:
    return u.double().clamp(_TAIL, 1 - _TAIL)


def _positive(name: str, value: float) -> None:
    if not 0 < value < inf:
        raise SettingError(f"{name}={value}: must be above 0 and finite")
