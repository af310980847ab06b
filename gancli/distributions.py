"""One-dimensional distributions with a known CDF, so that the inverse transform method samples them exactly.

The last section parses the formulas that `Expression` takes as a CDF.
"""

from __future__ import annotations

import ast
import operator
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from math import e, pi, sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gancli.errors import SettingError, require_coordinate, require_positive
from gancli.files.user_paths import expand

_LARGEST_TABLE = 2**28  # bytes
_LONGEST_FORMULA = 1_000  # characters
_MOST_COMPONENTS = 1_000
_TAIL = 1e-12  # probabilities are kept this far from 0 and 1, where some quantiles are infinite


def stratified_uniform(count: int, rng: torch.Generator) -> Tensor:
    """Returns (count,) float64: one uniform number in each of `count` equal intervals of (0, 1), in random order.

    Each number by itself is from U(0, 1), but means over all have a far smaller variance than with independent numbers
    (stratified sampling; McKay, Beckman and Conover, Technometrics 1979).
    """
    order = torch.randperm(count, generator=rng, device=rng.device)
    return (order + torch.rand(count, generator=rng, device=rng.device, dtype=torch.float64)) / count


class Distribution(ABC):
    """A distribution with its CDF F, density F' and inverse CDF.

    These are elementwise on tensors of any shape and compute in float64. Constructors raise SettingError.
    """

    @abstractmethod
    def cdf(self, x: Tensor) -> Tensor:
        """Returns F(x), in [0, 1]."""

    @abstractmethod
    def inverse_cdf(self, u: Tensor) -> Tensor:
        """Returns the x with F(x) = u, finite for all u in [0, 1]."""

    @abstractmethod
    def density(self, x: Tensor) -> Tensor:
        """Returns F'(x), at least 0."""

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        """Returns (count,) float32 samples, by the inverse CDF of U(0, 1) (Devroye, 1986, section II.2)."""
        return self.inverse_cdf(torch.rand(count, generator=rng, dtype=torch.float64)).float()


class Normal(Distribution):
    """N(mean, std^2)."""

    def __init__(self, *, mean: float = 0.0, std: float = 1.0) -> None:
        require_positive(std=std)
        require_coordinate(mean=mean, std=std)
        self.mean, self.std = mean, std

    def cdf(self, x: Tensor) -> Tensor:
        probability: Tensor = torch.special.ndtr((x.double() - self.mean) / self.std)
        return probability

    def inverse_cdf(self, u: Tensor) -> Tensor:
        standard: Tensor = torch.special.ndtri(_clamp(u))
        return self.mean + self.std * standard

    def density(self, x: Tensor) -> Tensor:
        return torch.exp(-0.5 * ((x.double() - self.mean) / self.std).square()) / (self.std * sqrt(2 * pi))


class Exponential(Distribution):
    """F(x) = 1 - exp(-rate x) for x >= 0."""

    def __init__(self, *, rate: float = 1.0) -> None:
        require_positive(rate=rate)
        require_coordinate(rate=rate)
        self.rate = rate

    def cdf(self, x: Tensor) -> Tensor:
        return -torch.expm1(-self.rate * x.double().clamp(min=0))

    def inverse_cdf(self, u: Tensor) -> Tensor:
        return -torch.log1p(-_clamp(u)) / self.rate

    def density(self, x: Tensor) -> Tensor:
        return torch.where(x >= 0, self.rate * torch.exp(-self.rate * x.double().clamp(min=0)), 0.0)


class Uniform(Distribution):
    """U(low, high)."""

    def __init__(self, *, low: float = 0.0, high: float = 1.0) -> None:
        require_coordinate(low=low, high=high)
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
    """A mixture of normal distributions. weights: in any unit; None for equal weights.

    The inverse CDF is computed by bisection.
    """

    def __init__(self, *, means: list[float], stds: list[float], weights: list[float] | None = None) -> None:
        weights = [1.0] * len(means) if weights is None else weights
        if not means or not len(means) == len(stds) == len(weights):
            raise SettingError(
                f"means={means}, stds={stds}, weights={weights}: one of each per component, at least one"
            )
        require_positive(stds=stds)
        require_coordinate(means=means, stds=stds)
        if len(means) > _MOST_COMPONENTS:
            raise SettingError(f"means: {len(means):,} components, at most {_MOST_COMPONENTS:,}")
        if min(weights) < 0 or sum(weights) <= 0:
            raise SettingError(f"weights={weights}: at least 0 each, and not all 0")
        self.means, self.stds, unnormalized = (
            torch.tensor(values, dtype=torch.float64) for values in (means, stds, weights)
        )
        self.weights = unnormalized / unnormalized.sum()

    def cdf(self, x: Tensor) -> Tensor:
        probability: Tensor = torch.special.ndtr(self._standardize(x)) @ self.weights
        return probability

    def density(self, x: Tensor) -> Tensor:
        return torch.exp(-0.5 * self._standardize(x).square()) @ (self.weights / (self.stds * sqrt(2 * pi)))

    def inverse_cdf(self, u: Tensor) -> Tensor:
        u = _clamp(u)
        quantiles = self.means + self.stds * torch.special.ndtri(u)[..., None]
        low, high = quantiles.aminmax(dim=-1)  # the mixture's quantile lies between those of its components
        return _bisect(self.cdf, u, low, high)

    def _standardize(self, x: Tensor) -> Tensor:
        """Returns the distance of x to each component's mean in its standard deviations: (*x.shape, components)."""
        return (x.double()[..., None] - self.means) / self.stds


class Expression(Distribution):
    """The distribution whose CDF is the formula `cdf` of x between `low` and `high`, such as "1 - exp(-x**2)".

    The formula (see `_parse_formula`) must not decrease and must rise from 0 to 1, within 0.001. The density is its
    derivative, the inverse CDF is computed by bisection.
    """

    def __init__(self, *, cdf: str, low: float = -20.0, high: float = 20.0) -> None:
        require_coordinate(low=low, high=high)
        if not low < high:
            raise SettingError(f"low={low}, high={high}: low must be below high")
        if len(cdf) > _LONGEST_FORMULA:
            raise SettingError(f"cdf={cdf[:40]}…: longer than {_LONGEST_FORMULA} characters")
        try:
            self.formula = _parse_formula(cdf)
        except ValueError as error:
            raise SettingError(f"cdf={cdf}: {error}") from None
        self.low, self.high = low, high
        grid = self.formula(torch.linspace(low, high, 10_001, dtype=torch.float64))
        if not grid.isfinite().all() or grid.diff().min() < -1e-9:
            raise SettingError(f"cdf={cdf}: not finite and increasing between low={low} and high={high}")
        first, last = float(grid[0]), float(grid[-1])
        if abs(first) > 1e-3 or abs(last - 1) > 1e-3:
            raise SettingError(
                f"cdf={cdf}: goes from {first:.4g} to {last:.4g} between low={low} and high={high}, not from 0 to 1"
            )

    def cdf(self, x: Tensor) -> Tensor:
        inside = self.formula(x.double().clamp(self.low, self.high)).clamp(0, 1)
        return torch.where(x >= self.high, 1.0, torch.where(x <= self.low, 0.0, inside))

    def inverse_cdf(self, u: Tensor) -> Tensor:
        u = _clamp(u)
        return _bisect(self.cdf, u, torch.full_like(u, self.low), torch.full_like(u, self.high))

    def density(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            inside = x.detach().double().clamp(self.low, self.high).requires_grad_()
            (slope,) = torch.autograd.grad(self.formula(inside).sum(), inside)
        return torch.where((x >= self.low) & (x <= self.high), slope.nan_to_num(posinf=0.0).clamp_min(0), 0.0)


class Table(Distribution):
    """The distribution of a table of samples, with a CDF that is linear between neighbouring samples.

    This is definition 7 of Hyndman & Fan, The American Statistician 1996. Equal samples make the CDF jump: their value
    has a probability but no density. path: a text file with a number per line, or a .npy file with one column; the
    numbers are rounded to float32, like the samples of any distribution.
    """

    def __init__(self, *, path: str) -> None:
        file = expand(path, key="path")
        if file.exists() and not file.is_file():
            raise SettingError(f"path={path}: not readable as a table of numbers: it is no regular file")
        if file.exists() and file.stat().st_size > _LARGEST_TABLE:
            raise SettingError(f"path={path}: larger than {_LARGEST_TABLE:,} bytes; a part of the samples will do")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # NumPy warns of empty files and too large numbers, errors below
                table = np.load(file, allow_pickle=False) if file.suffix == ".npy" else np.loadtxt(file, delimiter=",")
                if table.dtype.kind not in "iuf":
                    raise ValueError(f"it holds {table.dtype}, not numbers")
                values = np.sort(np.ravel(table).astype(np.float32)).astype(np.float64)
            if np.squeeze(table).ndim != 1:
                raise ValueError(f"it has the shape {np.shape(table)}, not one column")
        except (OSError, ValueError, EOFError, TypeError, MemoryError) as error:
            raise SettingError(f"path={path}: not readable as a table of numbers: {error}") from None
        if len(values) < 2 or not np.isfinite(values).all() or values[0] == values[-1]:
            raise SettingError(f"path={path}: needs at least two different, finite numbers")
        self.x = torch.from_numpy(values)
        self.intervals = len(values) - 1

    def cdf(self, x: Tensor) -> Tensor:
        x = x.double()
        below = torch.searchsorted(self.x, x.contiguous(), right=True).clamp(1, self.intervals) - 1
        gap = self.x[below + 1] - self.x[below]
        inside = (below + (x - self.x[below]) / torch.where(gap > 0, gap, 1.0)) / self.intervals
        return torch.where(x >= self.x[-1], 1.0, torch.where(x < self.x[0], 0.0, inside))

    def inverse_cdf(self, u: Tensor) -> Tensor:
        position = u.double().clamp(0, 1) * self.intervals
        below = position.long().clamp(max=self.intervals - 1)
        return torch.lerp(self.x[below], self.x[below + 1], position - below)

    def density(self, x: Tensor) -> Tensor:
        gap = self.x.diff()
        slope = torch.where(gap > 0, 1 / (self.intervals * gap), 0.0)
        below = torch.searchsorted(self.x, x.double().contiguous(), right=True).clamp(1, self.intervals) - 1
        return torch.where((x >= self.x[0]) & (x <= self.x[-1]), slope[below], 0.0)


def _bisect(cdf: Callable[[Tensor], Tensor], u: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Returns the x between `low` and `high` with cdf(x) = u, elementwise, for an increasing cdf."""
    for _ in range(48):  # each step halves the interval; an initial length of 40 ends at 1.4e-13
        middle = (low + high) / 2
        below = cdf(middle) < u
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def _clamp(u: Tensor) -> Tensor:
    return u.double().clamp(_TAIL, 1 - _TAIL)


# Formulas of x: arithmetic and the functions below. They are never passed to eval, so that a configuration of unknown
# origin cannot run code.

_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_CONSTANTS = {"pi": pi, "e": e}
_FUNCTIONS = ("exp", "log", "sqrt", "erf", "sin", "cos", "tan", "atan", "tanh", "abs", "sigmoid")


def _parse_formula(text: str) -> Callable[[Tensor], Tensor]:
    """Returns the function of x that `text` describes, elementwise. Raises ValueError for anything but a formula."""
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError("not a formula; write * for multiplication and ** for powers") from None
    _check(tree)
    return lambda x: torch.as_tensor(_evaluate(tree, x), dtype=x.dtype).expand_as(x)


def _check(node: ast.expr) -> None:
    """Raises ValueError if `_evaluate` cannot evaluate the tree below `node`."""
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        _check(node.left)
        _check(node.right)
    elif isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        _check(node.operand)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS:
        if len(node.args) != 1 or node.keywords:
            raise ValueError(f"{node.func.id} takes exactly one argument")
        _check(node.args[0])
    elif isinstance(node, ast.Name):
        if node.id != "x" and node.id not in _CONSTANTS:
            known = f"x, {', '.join(_CONSTANTS)} and the functions {', '.join(_FUNCTIONS)}"
            raise ValueError(f"unknown name {node.id}; known are {known}")
    elif not (isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and abs(node.value) < 1e300):
        raise ValueError(f"{ast.unparse(node)} is not arithmetic of x")


def _evaluate(node: ast.expr, x: Tensor) -> Any:
    """Returns the value of the tree below `node`; numbers become float64 tensors, as powers of int could be huge."""
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_evaluate(node.left, x), _evaluate(node.right, x))
    if isinstance(node, ast.UnaryOp):
        return _OPERATORS[type(node.op)](_evaluate(node.operand, x))
    if isinstance(node, ast.Call):
        assert isinstance(node.func, ast.Name)
        return getattr(torch, node.func.id)(_evaluate(node.args[0], x))
    if isinstance(node, ast.Name):
        return x if node.id == "x" else x.new_tensor(_CONSTANTS[node.id])
    assert isinstance(node, ast.Constant) and isinstance(node.value, (int, float))
    return x.new_tensor(float(node.value))
