"""Points lie where the settings say, and the density is that of the points."""

from math import pi

import pytest
import torch

from gancli import distributions
from gancli.datasets.points import Distribution1d, GaussianGrid, GaussianRing, Mixture, SwissRoll
from gancli.errors import SettingError
from gancli.randomness import seeded

WIDE = {
    "ring": lambda: GaussianRing(modes=5, radius=1.5, std=0.2),
    "grid": lambda: GaussianGrid(side=3, spacing=1.5, std=0.3),
    "roll": lambda: SwissRoll(std=0.1),
}


def test_the_centres_of_the_ring():
    ring = GaussianRing(modes=8, radius=2.0)
    assert ring.num_classes == 8 and tuple(ring.shape) == (2,)
    assert torch.allclose(ring.centres.norm(dim=1), torch.full((8,), 2.0))
    gaps = (ring.centres - ring.centres.roll(1, 0)).norm(dim=1)
    assert torch.allclose(gaps, gaps[0].expand(8), atol=1e-5)
    assert torch.allclose(ring.centres[2], torch.tensor([0.0, 2.0]), atol=1e-6)
    assert ring.centres.mean(0).abs().max() < 1e-6


def test_the_centres_of_the_grid():
    grid = GaussianGrid()
    assert grid.num_classes == len(grid.centres) == 25
    assert {tuple(centre) for centre in grid.centres.tolist()} == {
        (float(x), float(y)) for x in range(-4, 5, 2) for y in range(-4, 5, 2)
    }


@pytest.mark.parametrize("data", [GaussianRing(), GaussianGrid()], ids=["ring", "grid"])
def test_points_of_a_mixture_are_spread_around_their_centres(data):
    points, labels = data.draw(20_000, seeded(0))
    assert points.dtype == torch.float32
    assert torch.equal(torch.cdist(points, data.centres).argmin(1), labels)
    noise = points - data.centres[labels]
    assert torch.allclose(noise.std(0), torch.full((2,), data.std), rtol=0.03)
    assert noise.mean(0).abs().max() < 0.03 * data.std
    expected = 20_000 / data.num_classes
    assert (labels.bincount(minlength=data.num_classes) - expected).abs().max() < 5 * expected**0.5


def test_points_of_the_roll_lie_around_its_curve():
    data = SwissRoll(std=0.001)
    points, labels = data.draw(5_000, seeded(0))
    assert labels is None and data.num_classes == 0
    radius = points.norm(dim=1)
    assert float(radius.min()) == pytest.approx(1 / 3, abs=0.01)
    assert float(radius.max()) == pytest.approx(1, abs=0.01)
    assert float(radius.mean()) == pytest.approx(2 / 3, abs=0.01)  # uniform in the angle
    angle = torch.atan2(points[:, 1], points[:, 0])
    turns = (4.5 * pi * radius - angle) / (2 * pi)  # radius is angle / 4.5 pi, so this is an integer
    assert (turns - turns.round()).abs().max() < 0.02
    curve = SwissRoll._curve(torch.linspace(0, 1, 4001))
    wide = SwissRoll(std=0.02).draw(5_000, seeded(1))[0]
    distance = torch.cdist(wide, curve).amin(1).square().mean().sqrt()  # the noise across the curve
    assert float(distance) == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("name", WIDE)
def test_the_density_integrates_to_one(name):
    data, side, reach = WIDE[name](), 101, 3.0
    line = torch.linspace(-reach, reach, side)
    density = data.density(torch.cartesian_prod(line, line))
    assert density.shape == (side * side,) and (density >= 0).all()
    assert float(density.sum()) * (2 * reach / (side - 1)) ** 2 == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", WIDE)
def test_the_density_is_that_of_the_points(name):
    data, count = WIDE[name](), 5_000
    points = data.draw(count, seeded(2))[0]
    density = data.density(points)
    # E[p(x)] over the points is the integral of p^2 over the plane.
    line = torch.linspace(-3, 3, 101)
    squared = float(data.density(torch.cartesian_prod(line, line)).square().sum()) * (6 / 100) ** 2
    assert float(density.mean()) == pytest.approx(squared, rel=0.04)
    inside = ((points >= 0) & (points <= 1)).all(1).float().mean()
    cells = (torch.arange(40) + 0.5) / 40
    assert float(data.density(torch.cartesian_prod(cells, cells)).mean()) == pytest.approx(float(inside), abs=0.02)


@pytest.mark.parametrize(
    "make", [GaussianRing, GaussianGrid, lambda: SwissRoll(std=0.001)], ids=["ring", "grid", "roll"]
)
def test_the_density_of_narrow_gaussians_is_exact(make):
    data = make()
    points = data.draw(100, seeded(0))[0]
    if isinstance(data, SwissRoll):
        centres = data._curve((torch.arange(50_000) + 0.5) / 50_000).double()
    else:
        centres = data.centres.double()
    squared = (points.double()[:, None] - centres).square().sum(-1)
    exact = torch.exp(-0.5 * squared / data.std**2).mean(1) / (2 * pi * data.std**2)
    assert ((data.density(points) - exact) / exact).abs().max() < 1e-3


def test_the_density_at_a_centre():
    data = Mixture(torch.tensor([[0.0, 0.0], [100.0, 0.0]]), std=0.5)
    assert float(data.density(torch.zeros(1, 2))) == pytest.approx(0.5 / (2 * pi * 0.25))


def test_points_of_a_distribution_on_the_line():
    data = Distribution1d(distribution=distributions.Normal(mean=3.0, std=2.0))
    points, labels = data.batch(0, size=4_000, seed=0)
    assert points.shape == (4_000, 1) and labels is None and tuple(data.shape) == (1,)
    assert points.dtype == torch.float32
    assert float(points.mean()) == pytest.approx(3, abs=0.12)
    assert float(points.std()) == pytest.approx(2, rel=0.05)
    density = data.density(torch.tensor([[3.0], [5.0]]))
    assert density.dtype == torch.float32
    assert density.tolist() == pytest.approx([0.19947, 0.12099], abs=1e-5)
    line = torch.linspace(-15, 21, 3601)[:, None]
    assert float(data.density(line).sum()) * 0.01 == pytest.approx(1, abs=1e-4)


def test_stratified_batches_have_a_sample_of_each_part_and_references_are_independent_draws():
    distribution = distributions.Normal(mean=3.0, std=2.0)
    data, independent = (
        Distribution1d(distribution=distribution, stratified=True),
        Distribution1d(distribution=distribution),
    )
    shares = distribution.cdf(data.batch(0, size=100, seed=0)[0][:, 0])
    assert torch.equal((shares * 100).long().sort().values, torch.arange(100))
    assert not torch.equal(shares, shares.sort().values), "in random order, since each process takes a slice"
    assert torch.equal(data.reference("train", 50)[0], independent.reference("train", 50)[0])
    assert torch.equal(data.holdout(50)[0], independent.holdout(50)[0])


def test_no_holdout_point_is_in_a_batch():
    data = GaussianRing()
    held_out = data.holdout(16)[0]
    assert torch.equal(held_out, data.holdout(16)[0])
    drawn = torch.cat([data.batch(step, size=16, seed=0)[0] for step in range(8)])
    assert torch.cdist(drawn, held_out).min() > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianRing(modes=0), "modes=0: at least 1"),
        (lambda: GaussianGrid(side=0), "side=0: at least 1"),
        (lambda: GaussianRing(std=0.0), "std=0.0: a number above 0"),
        (lambda: GaussianGrid(std=-1.0), "std=-1.0: a number above 0"),
        (lambda: SwissRoll(std=0.0), "std=0.0: a number above 0"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(SettingError) as caught:
        make()
    assert str(caught.value) == message
