"""Density and coverage equal loops written from the paper, and so does the search for neighbours."""

from types import SimpleNamespace

import pytest
import torch

from gancli.errors import SettingError
from gancli.metrics import coverage
from gancli.metrics.base import Samples
from gancli.metrics.coverage import DensityCoverage, nearest
from gancli.randomness import seeded


def points(count, *key, dims=3, scale=1.0):
    return scale * torch.randn(count, dims, generator=seeded("points", *key))


def distance(a, b):
    return float((a.double() - b.double()).square().sum().sqrt())


def by_hand(fake, real, k):
    """Naeem et al., ICML 2020: eq. 5 is density, eq. 8 coverage, NND_k the distance to the k-th other real sample."""
    radii = []
    for i, x in enumerate(real):
        others = sorted(distance(x, other) for j, other in enumerate(real) if j != i)
        radii.append(others[k - 1])
    density = sum(distance(y, x) < radius for y in fake for x, radius in zip(real, radii, strict=True))
    coverage = sum(any(distance(y, x) < radius for y in fake) for x, radius in zip(real, radii, strict=True))
    return {"density": density / (k * len(fake)), "coverage": coverage / len(real)}


def score(fake, real, **settings):
    return DensityCoverage(**settings)(Samples(fake), Samples(real), SimpleNamespace())


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("scale", [0.3, 1.0, 1.7])
def test_density_and_coverage_are_those_of_the_paper(monkeypatch, k, scale):
    monkeypatch.setattr(coverage, "ROWS", 7)  # several pieces of the distance matrix
    fake, real = points(31, "fake", scale=scale), points(40, "real")
    expected = by_hand(fake, real, k)
    assert 0 < expected["coverage"] < 1, "otherwise the comparison proves little"
    assert score(fake, real, neighbours=k) == pytest.approx(expected, rel=1e-12)


def test_density_of_concentrated_samples_exceeds_1_and_their_coverage_is_low():
    values = score(points(50, "fake", scale=0.2), points(50, "real"), neighbours=5)
    assert values["density"] > 1 > values["coverage"]


def test_equal_samples_cover_everything_and_distant_ones_nothing():
    real = points(30, "real")
    assert score(real, real)["coverage"] == 1
    assert score(real + 100, real) == {"density": 0, "coverage": 0}


def test_with_few_real_samples_k_is_the_number_of_others():
    real, fake = points(4, "real"), points(9, "fake")
    assert score(fake, real, neighbours=5) == pytest.approx(by_hand(fake, real, 3))


def test_count_limits_either_side():
    fake, real = points(60, "fake"), points(60, "real")
    fewer = by_hand(Samples(fake).feature_subset(20), Samples(real).feature_subset(20), 5)
    assert score(fake, real, count=20) == pytest.approx(fewer) != by_hand(fake, real, 5)


@pytest.mark.parametrize(("name", "least"), [("neighbours", 1), ("count", 2)])
def test_too_small_settings_are_refused(name, least):
    with pytest.raises(SettingError, match=f"{name}=0: at least {least}"):
        DensityCoverage(**{name: 0})


def test_nearest_neighbours_with_and_without_the_point_itself(monkeypatch):
    monkeypatch.setattr(coverage, "ROWS", 4)
    queries, among = points(10, "queries"), points(25, "among")
    distances, indices = nearest(queries, among, count=3)
    for row, point in enumerate(queries):
        order = sorted(range(25), key=lambda j: distance(point, among[j]))
        assert indices[row].tolist() == order[:3]
        assert distances[row].tolist() == pytest.approx([distance(point, among[j]) for j in order[:3]], rel=1e-5)
    _, itself = nearest(among, among)
    assert itself[:, 0].tolist() == list(range(25))
    _, others = nearest(among, among, skip=1)
    assert all(other != row for row, other in enumerate(others[:, 0].tolist()))


@pytest.mark.parametrize("copies", [1, 2, 8])
def test_the_same_samples_have_density_and_coverage_1_however_many_copies_there_are(copies, caplog):
    caplog.set_level("INFO")
    coverage._tell_of_copies.cache_clear()
    real = points(30, "real").repeat(copies, 1)
    assert score(real.flip(0), real) == {"density": 1, "coverage": 1}
    assert ("copies of others, which count once" in caplog.text) == (copies > 1)


def test_real_samples_that_are_all_equal_have_no_neighbourhood():
    with pytest.raises(ArithmeticError, match="all real samples are equal"):
        score(points(5, "fake"), torch.zeros(5, 3))
