"""One-dimensional data, where the exact answers are known."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY

from gancli.datasets.points import Distribution1d
from gancli.diagnostics.base import TrainedRun
from gancli.diagnostics.one_dimensional import InverseTransform, OptimalDiscriminator, pushforward_density
from gancli.distributions import Exponential, GaussianMixture, Normal
from gancli.game import Game
from gancli.losses import LeastSquares, Minimax, MinimaxLinear
from gancli.networks.base import Discriminator, Generator
from gancli.priors import Gaussian, Uniform
from gancli.randomness import Stream, seeded


class Exact(Generator):
    """The map from u to F^-1(change(u))."""

    def __init__(self, distribution, change=lambda u: u):
        super().__init__(latent_dim=1, image_shape=(1,))
        self.distribution, self.change = distribution, change

    def forward(self, z, labels=None):
        return self.distribution.inverse_cdf(self.change(z.double())).float()


class Optimal(Discriminator):
    """The logit of p / (p + q) for q = N(shift, 1) and p = N(0, 1)."""

    def __init__(self, shift):
        super().__init__(image_shape=(1,))
        self.shift = shift

    def forward(self, x, labels=None):
        return 0.5 * self.shift**2 - self.shift * x[:, 0]


def run_of(tmp_path, distribution, generator, *, prior=None, discriminator=None, loss=None):
    game = Game(
        generator=generator,
        discriminator=discriminator or Optimal(0.0),
        loss=loss or Minimax(),
        prior=prior or Uniform(dim=1, low=0.0, high=1.0),
        stream=Stream(seeded("noise"), device=torch.device("cpu")),
    )
    ema = SimpleNamespace(network=generator)
    return TrainedRun(
        tmp_path,
        SimpleNamespace(game=game, dataset=Distribution1d(distribution=distribution), seed=0, images=10, ema=ema),
    )


DISTRIBUTIONS = [Normal(mean=1.0, std=2.0), Exponential(rate=3.0), GaussianMixture(means=[-2.0, 2.0], stds=[0.5, 0.5])]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=lambda distribution: type(distribution).__name__)
def test_the_inverse_cdf_has_no_error(tmp_path, distribution):
    numbers = InverseTransform(samples=100_000)(run_of(tmp_path, distribution, Exact(distribution))).numbers
    assert numbers["mean_error"] < 1e-5 and numbers["sup_error"] < 1e-4
    assert numbers["map"] == "F^-1, monotone"
    assert numbers["ks"] < 0.006 and numbers["ks_exact"] < 0.006


def test_the_mirror_image_of_the_inverse_cdf_is_recognised(tmp_path):
    distribution = Exponential()
    numbers = InverseTransform(samples=1000)(
        run_of(tmp_path, distribution, Exact(distribution, lambda u: 1 - u))
    ).numbers
    assert numbers["mean_error"] < 1e-4 and numbers["map"] == "mirror image, monotone"


def test_a_map_that_folds_has_the_right_distribution_but_is_not_monotone(tmp_path):
    distribution = Normal()
    result = InverseTransform(samples=100_000)(
        run_of(tmp_path, distribution, Exact(distribution, lambda u: (2 * u - 1).abs()))
    )
    assert result.numbers["map"].endswith("not monotone") and "not monotone" in result.text
    assert result.numbers["mean_error"] > 0.3 and result.numbers["ks"] < 0.006


def test_errors_are_in_standard_deviations_of_the_distribution(tmp_path):
    distribution, shifted = Normal(std=5.0), Normal(mean=1.0, std=5.0)
    numbers = InverseTransform(samples=1000)(run_of(tmp_path, distribution, Exact(shifted))).numbers
    assert numbers["mean_error"] == pytest.approx(0.2, rel=1e-2)


def test_other_noise_is_mapped_through_its_quantiles(tmp_path):
    class Doubled(Exact):
        def forward(self, z, labels=None):
            return 2 * z

    distribution = Normal(std=2.0)
    numbers = InverseTransform(samples=1000)(
        run_of(tmp_path, distribution, Doubled(distribution), prior=Gaussian(dim=1))
    ).numbers
    assert numbers["mean_error"] < 1e-5


def test_the_density_of_a_pushed_forward_distribution():
    u = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    x = torch.linspace(-1.5, 4.5, 61, dtype=torch.float64)
    middle = (x[1:] + x[:-1]) / 2
    torch.testing.assert_close(
        pushforward_density(3 * u - 1, x), torch.where((middle > -1) & (middle < 2), 1 / 3, 0.0).double()
    )
    folded = pushforward_density((2 * u - 1).abs(), torch.linspace(0, 1, 11, dtype=torch.float64))
    torch.testing.assert_close(folded, torch.ones(10, dtype=torch.float64), atol=1e-3, rtol=0)


@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0])
def test_the_optimal_discriminator_has_no_distance_to_itself(tmp_path, shift):
    generator = Exact(Normal(mean=shift))
    run = run_of(tmp_path, Normal(), generator, discriminator=Optimal(shift))
    numbers = OptimalDiscriminator()(run).numbers
    assert numbers["distance_to_best"] < 0.01
    assert (numbers["best_from_half"] < 0.01) == (shift == 0.0)


def test_the_optimal_discriminator_of_either_game_as_a_function_of_the_ratio_of_densities():
    ratio = torch.tensor([0.1, 0.5, 1.0, 4.0])
    torch.testing.assert_close(MinimaxLinear().optimal(ratio, torch.ones(4)), torch.tensor([0.1, 0.5, 1.0, 1.0]))
    torch.testing.assert_close(Minimax().optimal(ratio, torch.ones(4)), ratio / (1 + ratio))


@pytest.mark.parametrize("loss", [Minimax(), MinimaxLinear()], ids=lambda loss: type(loss).__name__)
def test_the_optimal_discriminator_minimises_the_loss(loss):
    """At each point it minimises p l_D(real logit) + q l_D(fake logit), here by search over logits."""
    logits = torch.linspace(-12, 12, 24_001, dtype=torch.float64)
    no_fake_loss, no_real_loss = torch.full_like(logits, -1e9), torch.full_like(logits, 1e9)
    for p, q in ((0.3, 0.9), (0.5, 0.6), (0.2, 0.2)):
        real_loss = loss.discriminator(logits, no_fake_loss)
        fake_loss = loss.discriminator(no_real_loss, logits)
        best = logits[(p * real_loss + q * fake_loss).argmin()].sigmoid()
        expected = loss.optimal(torch.tensor(p), torch.tensor(q))
        assert float(best) == pytest.approx(float(expected), abs=2e-3)


def test_the_optimal_discriminator_suits_only_losses_with_a_closed_form(tmp_path):
    assert not OptimalDiscriminator().suits(run_of(tmp_path, Normal(), Exact(Normal()), loss=LeastSquares()))


def test_after_training_figures_and_numbers_are_in_the_run_folder(cli):
    words = [word for word in TINY if not word.startswith(("network.", "prior.", "train."))]
    words += ["experiment=inverse_transform", "loss=nonsaturating", "train.images=2048", "hydra.run.dir=run"]
    words += ["diagnostic=[inverse_transform,optimal_discriminator]"]
    result = cli("train", *words)
    assert result.status == 0, result.err
    assert "the learned map is" in Path("run/train.log").read_text()
    for name in ("inverse_transform", "optimal_discriminator"):
        found = json.loads(Path(f"run/theory/{name}.json").read_text())
        assert found["images"] == 2048 and found["numbers"]
        assert Path(f"run/theory/{name}.png").read_bytes().startswith(b"\x89PNG")
