"""Modes, reverse KL and distances on the line, for samples whose numbers are known exactly."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from gancli.datasets import stacked_mnist
from gancli.datasets.digits import Digits
from gancli.datasets.points import Distribution1d, GaussianGrid, GaussianRing, SwissRoll
from gancli.datasets.stacked_mnist import StackedMNIST
from gancli.distributions import Exponential, Normal, Uniform
from gancli.metrics.base import Samples
from gancli.metrics.features import Random
from gancli.metrics.modes import Line, Modes
from gancli.randomness import seeded

RING = GaussianRing(modes=4, radius=1.0, std=0.1)  # centres (1, 0), (0, 1), (-1, 0), (0, -1)
NAN = float("nan")


def modes(points, dataset=RING):
    return Modes()(Samples(torch.as_tensor(points)), Samples(torch.zeros(2, 2)), dataset)


def test_one_sample_in_each_mode():
    zero = pytest.approx(0, abs=1e-7)
    assert modes(RING.centres) == {"reverse_kl": zero, "modes": 4, "modes_held": 4, "high_quality": 1}


def test_a_collapsed_sample():
    values = modes(RING.centres[:1].expand(50, 2))
    assert values == {"reverse_kl": pytest.approx(math.log(4)), "modes": 1, "modes_held": 1, "high_quality": 1}


def test_shares_by_hand():
    points = RING.centres[torch.tensor([0, 0, 0, 1])]
    expected = 0.75 * math.log(0.75 / 0.25) + 0.25 * math.log(0.25 / 0.25)
    assert modes(points)["reverse_kl"] == pytest.approx(expected)


def test_samples_within_three_standard_deviations_are_of_high_quality():
    inside, outside = RING.centres.clone(), RING.centres.clone()
    inside[:, 0] += 0.29
    outside[:, 0] += 0.31
    assert modes(inside)["high_quality"] == 1 and modes(inside)["modes"] == 4
    assert modes(outside) == dict.fromkeys(("modes", "modes_held", "high_quality"), 0) | {
        "reverse_kl": pytest.approx(0, abs=1e-7)
    }
    half = modes(torch.cat([inside[:2], outside[2:]]))
    assert half["high_quality"] == 0.5 and half["modes"] == 2


def test_a_stray_sample_finds_a_mode_and_does_not_hold_it():
    points = RING.centres[torch.tensor([0] * 298 + [1] * 3 + [2] * 4)]
    values = modes(points)
    assert values["modes"] == 3 and values["modes_held"] == 2  # a hundredth of 305 is more than 3
    assert values["high_quality"] == 1


def test_points_that_are_not_finite_belong_to_no_mode():
    points = torch.cat([RING.centres, torch.tensor([[NAN, 0.0], [0.0, NAN], [math.inf, 0.0], [NAN, NAN]])])
    assert modes(points) == {"reverse_kl": pytest.approx(0, abs=1e-7), "modes": 4, "modes_held": 4, "high_quality": 0.5}
    nothing = modes(torch.full((3, 2), NAN))
    assert math.isnan(nothing["reverse_kl"]) and nothing["modes"] == 0 and nothing["high_quality"] == 0


def test_real_samples_of_the_grid_are_in_all_of_its_modes():
    grid = GaussianGrid()
    values = modes(grid.reference("train", 5_000)[0], grid)
    assert values["modes"] == 25
    # A Gaussian in the plane is within three standard deviations with probability 1 - exp(-9/2).
    assert values["high_quality"] == pytest.approx(1 - math.exp(-4.5), abs=0.006)
    assert 0 < values["reverse_kl"] == pytest.approx(24 / (2 * 5_000), rel=0.8)  # the expected value, (K - 1) / 2 n


def logits_of(digits):
    """Logits (N, 30) of a classifier that recognises these triples of digits."""
    return 5.0 * torch.nn.functional.one_hot(torch.tensor(digits), 10).flatten(1)


class Classified(Samples):
    """Images that the classifier takes for these triples of digits."""

    def __init__(self, digits):
        super().__init__(torch.zeros(len(digits), 3, 28, 28, dtype=torch.uint8))
        self.digits = digits

    @property
    def logits(self):
        return logits_of(self.digits)


@pytest.fixture
def stacked(monkeypatch):
    """Stacked MNIST of eleven images: digit d is an image of brightness d, and there are two zeros."""
    labels = torch.tensor([0, *range(10)])
    images = labels.to(torch.uint8)[:, None, None, None].expand(-1, 1, 28, 28).contiguous()
    monkeypatch.setattr(stacked_mnist, "load", lambda name, **how: (images, labels))
    return StackedMNIST()


def test_a_mode_of_stacked_mnist_is_three_digits(stacked):
    index, good = stacked.modes_of(None, logits_of([(0, 0, 0), (1, 2, 3), (9, 0, 7), (0, 4, 0)]))
    assert index.tolist() == [0, 123, 907, 40] and good.all()


def test_the_label_of_stacked_mnist_is_that_of_its_three_digits(stacked):
    data, labels = stacked.reference("train", 50)
    assert data.dtype == torch.uint8 and data.shape == (50, 3, 28, 28)
    seen = data[:, :, 0, 0].long()
    assert torch.equal(labels, seen[:, 0] * 100 + seen[:, 1] * 10 + seen[:, 2])
    index, _ = stacked.modes_of(data, logits_of(seen.tolist()))
    assert torch.equal(index, labels)
    images, digits = stacked.labelled("train", 60_000)
    assert images.shape == (11, 1, 28, 28) and torch.equal(images[:, 0, 0, 0].long(), digits)


def test_reverse_kl_of_stacked_mnist_is_against_its_own_shares(stacked):
    shares = torch.tensor([2, *[1] * 9]) / 11
    assert stacked.mode_shares.shape == (1000,)
    assert float(stacked.mode_shares[907]) == pytest.approx(float(shares[9] * shares[0] * shares[7]))
    values = Modes()(Classified([(0, 0, 0), (1, 2, 3)]), None, stacked)
    expected = 0.5 * math.log(0.5 / (2 / 11) ** 3) + 0.5 * math.log(0.5 / (1 / 11) ** 3)
    assert values == {"reverse_kl": pytest.approx(expected), "modes": 2}


def test_the_metrics_apply_to_data_with_modes_or_on_the_line(stacked):
    digits = Digits()
    random = Random(digits, device=torch.device("cpu"))
    assert Modes().suits(RING, None) and not Modes().suits(SwissRoll(), None) and not Modes().suits(digits, random)
    assert not Modes().suits(stacked, random), "an extractor without classes"
    assert Line().suits(Distribution1d(distribution=Normal()), None) and not Line().suits(RING, None)


DISTRIBUTIONS = {
    "normal": (Normal(mean=1.0, std=2.0), stats.norm(1.0, 2.0)),
    "exponential": (Exponential(rate=0.5), stats.expon(scale=2.0)),
    "uniform": (Uniform(low=-1.0, high=3.0), stats.uniform(-1.0, 4.0)),
}


def line(distribution, x):
    return Line()(Samples(torch.as_tensor(x)[:, None]), None, Distribution1d(distribution=distribution))


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("shift", [0.0, 0.7, -0.7])
def test_kolmogorov_smirnov_equals_scipys(name, shift):
    distribution, reference = DISTRIBUTIONS[name]
    x = distribution.sample(200, seeded("line")).double() + shift
    assert line(distribution, x)["ks"] == pytest.approx(stats.kstest(x.numpy(), reference.cdf).statistic, abs=1e-9)


def test_ks_of_few_samples_by_hand():
    # F_n of one sample at 0.3 jumps from 0 to 1 there: sup |F_n - F| = max(0.3, 0.7).
    assert line(Uniform(), torch.tensor([0.3]))["ks"] == pytest.approx(0.7)
    assert line(Uniform(), torch.tensor([0.8]))["ks"] == pytest.approx(0.8)
    assert line(Uniform(), torch.tensor([0.75, 0.25]))["ks"] == pytest.approx(0.25)


def test_wasserstein_1_of_a_shift_is_the_shift():
    # The distribution's own quantiles at the midpoints, shifted: in closed form |shift| exactly.
    for distribution, _ in DISTRIBUTIONS.values():
        quantiles = distribution.inverse_cdf((torch.arange(100, dtype=torch.float64) + 0.5) / 100)
        assert line(distribution, quantiles)["wasserstein1"] == pytest.approx(0, abs=1e-6)
        for shift in (0.25, -3.0):
            shuffled = (quantiles + shift)[torch.randperm(100, generator=seeded("mixed"))]
            assert line(distribution, shuffled)["wasserstein1"] == pytest.approx(abs(shift), abs=1e-5)


def test_wasserstein_1_of_a_point_is_the_mean_absolute_deviation():
    # All samples in one point c: E|X - c|. For U(0, 1) and c = 1/2 that is 1/4, for N(0, 1) and 0 sqrt(2/pi).
    assert line(Uniform(), torch.full((2_000,), 0.5))["wasserstein1"] == pytest.approx(0.25, rel=1e-3)
    assert line(Normal(), torch.zeros(20_000))["wasserstein1"] == pytest.approx(math.sqrt(2 / math.pi), rel=1e-3)


def test_wasserstein_1_is_close_to_scipys_between_two_samples():
    distribution, reference = DISTRIBUTIONS["normal"]
    x = distribution.sample(300, seeded("line")).double().numpy() * 1.5
    dense = reference.ppf((np.arange(20_000) + 0.5) / 20_000)
    assert line(distribution, torch.as_tensor(x))["wasserstein1"] == pytest.approx(
        stats.wasserstein_distance(x, dense), rel=0.02
    )
