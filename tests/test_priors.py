from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from gancli.errors import SettingError
from gancli.priors import Gaussian, InverseCDF, Prior, TruncatedGaussian, Uniform
from gancli.randomness import seeded

COUNT, DIM = 8000, 5


class Exponential:
    """A distribution with nothing but an inverse CDF."""

    def inverse_cdf(self, uniform: Tensor) -> Tensor:
        return -torch.log1p(-uniform.double())


def exponential(*, dim: int = 1) -> InverseCDF:
    return InverseCDF(distribution=Exponential(), dim=dim)  # type: ignore[arg-type]


PRIORS: dict[str, tuple[Any, dict[str, Any], Any]] = {
    "gaussian": (Gaussian, {}, stats.norm()),
    "truncated": (TruncatedGaussian, {"bound": 1.5}, stats.truncnorm(-1.5, 1.5)),
    "uniform": (Uniform, {"low": -0.5, "high": 2.0}, stats.uniform(-0.5, 2.5)),
    "inverse_cdf": (exponential, {}, stats.expon()),
}
every_prior = pytest.mark.parametrize("name", PRIORS)


def make(name: str, dim: int = DIM) -> Prior:
    maker, settings, _ = PRIORS[name]
    return maker(dim=dim, **settings)


def middle(name: str, truncation: float) -> tuple[float, float]:
    """The interval of values that `truncation` keeps."""
    distribution = PRIORS[name][2]
    if name in ("gaussian", "truncated"):
        low, high = distribution.support()
        return max(low, -truncation), min(high, truncation)
    return distribution.ppf(0.5 - truncation / 2), distribution.ppf(0.5 + truncation / 2)


@every_prior
def test_noise_has_its_distribution(name: str) -> None:
    noise, distribution = make(name).sample(COUNT, seeded(name)), PRIORS[name][2]
    assert noise.shape == (COUNT, DIM)
    assert noise.dtype == torch.float32
    error = 5 / math.sqrt(COUNT)  # of the mean, in standard deviations
    assert noise.mean(0).numpy() == pytest.approx(distribution.mean(), rel=0, abs=error * distribution.std())
    assert noise.std(0).numpy() == pytest.approx(distribution.std(), rel=0.06)
    assert stats.kstest(noise.flatten().double().numpy(), distribution.cdf).pvalue > 1e-3


@every_prior
def test_coordinates_and_samples_are_independent(name: str) -> None:
    noise = make(name).sample(COUNT, seeded(name))
    limit = 5 / math.sqrt(COUNT)
    assert (torch.corrcoef(noise.T) - torch.eye(DIM)).abs().max() < limit
    assert torch.corrcoef(torch.stack([noise[1:, 0], noise[:-1, 0]]))[0, 1].abs() < limit


@every_prior
@pytest.mark.parametrize("truncation", [0.1, 0.5, 1.0])
def test_truncation_keeps_the_middle_of_the_distribution(name: str, truncation: float) -> None:
    noise = make(name).sample(COUNT, seeded(name), truncation=truncation).double()
    low, high = middle(name, truncation)
    assert noise.min() >= low - 1e-6
    assert noise.max() <= high + 1e-6 * max(high if math.isfinite(high) else 0, 1)
    distribution = PRIORS[name][2]
    below, above = distribution.cdf(low), distribution.cdf(high)
    assert (
        stats.kstest(noise.flatten().numpy(), lambda x: (distribution.cdf(x) - below) / (above - below)).pvalue > 1e-3
    )


@pytest.mark.parametrize("truncation", [2.0, 3.0, 4.0])
def test_gaussian_truncation_bounds_every_number(truncation: float) -> None:
    noise = Gaussian(dim=100).sample(4000, seeded("tails"), truncation=truncation)
    assert noise.abs().max() <= truncation * (1 + 1e-4)
    assert noise.abs().max() > min(truncation, 3.0) * 0.99, "the whole interval is used"


def test_truncated_gaussian_noise_stays_within_its_bound() -> None:
    prior = TruncatedGaussian(dim=10, bound=1.0)
    assert prior.sample(2000, seeded(0)).abs().max() <= 1 + 1e-6
    assert prior.sample(2000, seeded(0), truncation=3.0).abs().max() <= 1 + 1e-6
    assert 0.45 < prior.sample(2000, seeded(0), truncation=0.5).abs().max() <= 0.5 + 1e-6
    quantiles = prior.inverse_cdf(torch.tensor([0.0, 0.25, 0.5, 1.0]))
    expected = stats.truncnorm(-1.0, 1.0).ppf([0.0, 0.25, 0.5, 1.0])
    torch.testing.assert_close(quantiles, torch.tensor(expected, dtype=torch.float32), atol=1e-5, rtol=0)


@every_prior
def test_noise_depends_on_the_random_generator_only(name: str) -> None:
    first, again = make(name).sample(7, seeded("a")), make(name).sample(7, seeded("a"))
    assert torch.equal(first, again)
    assert not torch.equal(first, make(name).sample(7, seeded("b")))


def test_gaussian_quantiles_are_finite_at_the_ends() -> None:
    values = Gaussian(dim=1).inverse_cdf(torch.tensor([0.0, 0.5, 0.975, 1.0]))
    assert values.isfinite().all()
    assert values[1] == 0
    assert values[2].item() == pytest.approx(stats.norm.ppf(0.975), abs=1e-4)


@pytest.mark.parametrize(
    ("prior", "settings", "named"),
    [
        (Gaussian, {"dim": 0}, "dim=0"),
        (Uniform, {"dim": -3}, "dim=-3"),
        (Uniform, {"dim": 2, "low": 1.0, "high": 1.0}, "low=1.0, high=1.0"),
        (TruncatedGaussian, {"dim": 2, "bound": 0.0}, "bound=0.0"),
    ],
)
def test_wrong_settings_are_named(prior: Any, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingError, match=f"^{named}: "):
        prior(**settings)


@pytest.mark.parametrize(
    ("name", "truncation"),
    [(name, 0.0) for name in PRIORS] + [("uniform", 1.1), ("inverse_cdf", 2.0)],
)
def test_truncation_out_of_range_is_refused(name: str, truncation: float) -> None:
    with pytest.raises(SettingError, match=f"^truncation={truncation}: "):
        make(name).sample(3, seeded(0), truncation=truncation)


@every_prior
@pytest.mark.parametrize("shape", [(64,), (6, 64), (2, 3, 64)], ids=str)
def test_between_starts_at_a_and_ends_at_b(name: str, shape: tuple[int, ...]) -> None:
    prior = make(name, 64)
    a, b = (prior.sample(math.prod(shape) // 64, seeded(key)).view(shape) for key in "ab")
    torch.testing.assert_close(prior.between(a, b, 0.0), a, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(prior.between(a, b, 1.0), b, rtol=1e-4, atol=1e-5)
    assert prior.between(a, b, 0.3).shape == shape


def test_between_uniform_noise_is_a_straight_line() -> None:
    prior = Uniform(dim=64)
    a, b = prior.sample(6, seeded("a")), prior.sample(6, seeded("b"))
    torch.testing.assert_close(prior.between(a, b, 0.25), 0.75 * a + 0.25 * b)


def test_between_gaussian_noise_is_an_arc_of_constant_speed() -> None:
    a, b = (3 * torch.nn.functional.normalize(Gaussian(dim=64).sample(6, seeded(key)), dim=1) for key in "ab")
    for share in (0.2, 0.5, 0.9):
        found = Gaussian(dim=64).between(a, b, share)
        torch.testing.assert_close(found.norm(dim=1), torch.full((6,), 3.0))
        angle = torch.acos((a * b).sum(1) / 9)
        torch.testing.assert_close(torch.acos((a * found).sum(1) / 9), share * angle, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(torch.acos((found * b).sum(1) / 9), (1 - share) * angle, rtol=1e-3, atol=1e-3)


def test_between_parallel_gaussian_noise_is_a_straight_line() -> None:
    a = Gaussian(dim=8).sample(3, seeded("a"))
    torch.testing.assert_close(Gaussian(dim=8).between(a, a, 0.5), a)
    torch.testing.assert_close(Gaussian(dim=8).between(a, 3 * a, 0.5), 2 * a)
    assert Gaussian(dim=8).between(a, -a, 0.5).isfinite().all()


def test_between_the_mean_and_gaussian_noise_is_a_straight_line() -> None:
    a, mean = Gaussian(dim=8).sample(3, seeded("a")), torch.zeros(3, 8)
    torch.testing.assert_close(Gaussian(dim=8).between(mean, a, 0.25), a / 4)
    torch.testing.assert_close(Gaussian(dim=8).between(a, mean, 0.25), 3 * a / 4)


def test_between_treats_each_row_of_a_batch_separately() -> None:
    prior = Gaussian(dim=16)
    a, b = prior.sample(4, seeded("a")), prior.sample(4, seeded("b"))
    a[2] = torch.eye(16)[0]
    b[2] = 2 * a[2]  # parallel: no arc
    rows = torch.stack([prior.between(a[row], b[row], 0.4) for row in range(4)])
    torch.testing.assert_close(prior.between(a, b, 0.4), rows)


def test_stratified_noise_has_one_number_in_each_interval_and_independent_coordinates() -> None:
    prior = Uniform(dim=2, low=-1.0, high=3.0, stratified=True)
    shares = (prior.sample_batch(1000, seeded("stratified_uniform")) + 1) / 4
    for column in shares.T:
        assert torch.equal((column * 1000).long().clamp(max=999).unique(), torch.arange(1000))
    assert abs(torch.corrcoef(shares.T)[0, 1]) < 0.1
    first = torch.stack([prior.sample_batch(4, seeded("stratified_uniform", n))[0, 0] for n in range(1000)])
    assert stats.kstest(first, stats.uniform(-1, 4).cdf).pvalue > 1e-3, "each number by itself is uniform"
    assert torch.equal(prior.sample(8, seeded(0)), Uniform(dim=2, low=-1.0, high=3.0).sample(8, seeded(0)))
