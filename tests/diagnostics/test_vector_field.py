"""The vector field of a game, against closed forms and finite differences."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gancli.augment.base import NoAugment
from gancli.augment.instance_noise import InstanceNoise
from gancli.datasets.points import Dirac, GaussianRing
from gancli.diagnostics.base import TrainedRun
from gancli.diagnostics.vector_field import VectorField
from gancli.errors import UserError
from gancli.game import Game
from gancli.losses import Minimax, NonSaturating, Relativistic, Wasserstein
from gancli.networks.dirac import DiracDiscriminator, DiracGenerator
from gancli.networks.mlp import MLPDiscriminator, MLPGenerator
from gancli.penalties import DRAGAN, R1, R2, WGANGP, Consensus, Roth
from gancli.priors import Gaussian
from gancli.randomness import Stream, seeded
from gancli.schedules import Linear


def field_of(dataset, generator, discriminator, *, loss=None, penalties=None, augment=None, count=32):
    game = Game(
        generator=generator,
        discriminator=discriminator,
        loss=loss or Minimax(),
        prior=Gaussian(dim=generator.latent_dim),
        stream=Stream(seeded("noise"), device=torch.device("cpu")),
        penalties=penalties or {},
        augment=augment or NoAugment(),
    )
    trainer = SimpleNamespace(game=game, dataset=dataset, progress=1.0, seed=0)
    return VectorField(TrainedRun("nowhere", trainer), count=count)


def dirac(*, at=(0.0, 0.0), **parts):
    generator = DiracGenerator(latent_dim=1, image_shape=(1,), theta=at[0])
    return field_of(Dirac(), generator, DiracDiscriminator(image_shape=(1,), psi=at[1]), **parts)


def ring(*, width, fourier=0.0, **parts):
    torch.manual_seed(3)
    generator = MLPGenerator(latent_dim=2, image_shape=(2,), width=width)
    discriminator = MLPDiscriminator(image_shape=(2,), width=width, fourier=fourier)
    return field_of(GaussianRing(), generator, discriminator, **parts)


@pytest.mark.parametrize("loss", [Minimax, NonSaturating])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.5])
@pytest.mark.parametrize("penalty", [R1, R2, Roth])
def test_eigenvalues_at_the_dirac_gans_equilibrium_are_those_of_the_closed_form(loss, gamma, penalty):
    """-gamma/2 +- sqrt(gamma^2/4 - f'(0)^2) with f'(0) = 1/2 (Mescheder et al., ICML 2018, section 3); sigmoid(0)^2 is
    1/4, so Roth's penalty, on real and fake samples together, counts half as much."""
    weight = 2 * gamma if penalty is Roth else gamma
    assert_eigenvalues(
        dirac(loss=loss(), penalties={"p": penalty(weight=weight)} if gamma else {}), *closed_form(gamma)
    )


@pytest.mark.parametrize(("loss", "slope"), [(Minimax(), 0.5), (NonSaturating(), 0.5), (Wasserstein(), 1.0)])
@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_eigenvalues_under_consensus_are_those_of_the_closed_form(loss, slope, weight):
    """v is A x with A = ((0, s), (-s, 0)), so v - w grad |v|^2 / 2 is (A - w s^2) x."""
    real = -weight * slope**2
    field = dirac(loss=loss, penalties={"c": Consensus(weight=weight)})
    assert_eigenvalues(field, complex(real, slope), complex(real, -slope))


def test_eigenvalues_under_instance_noise_are_those_of_the_closed_form():
    """gamma is std^2 / 2 (Mescheder et al., ICML 2018, lemma 3.2), here of the samples drawn."""
    assert_eigenvalues(dirac(augment=InstanceNoise(std=1.0), count=200_000), *closed_form(0.5), within=0.01)


def test_a_scheduled_augmentation_has_its_present_strength():
    """The run is at its end, where the schedule has reached 0."""
    assert_eigenvalues(dirac(augment=InstanceNoise(std=Linear(start=1.0, end=0.0))), *closed_form(0.0))


def closed_form(gamma):
    root = np.sqrt(gamma**2 / 4 - 0.25 + 0j)
    return -gamma / 2 + root, -gamma / 2 - root


def assert_eigenvalues(field, *exact, within=1e-5):
    found, missing = field.eigenvalues(2)
    assert missing == 0
    assert np.abs(np.sort_complex(found) - np.sort_complex(np.array(exact))).max() < within


def test_the_field_is_the_negative_gradient_of_each_player():
    field = dirac(at=(0.7, -0.4))
    slope = torch.sigmoid(torch.tensor(0.7 * -0.4, dtype=torch.float64))
    # loss_G = -softplus(psi theta), loss_D = log 2 + softplus(psi theta)
    expected = torch.stack([slope * -0.4, -slope * 0.7])
    torch.testing.assert_close(field.evaluate().detach(), expected, rtol=1e-6, atol=1e-7)


def test_consensus_adds_the_negative_gradient_of_the_squared_norm():
    """With the Wasserstein loss v = (psi, -theta), so the gradient of |v|^2 / 2 is (theta, psi)."""
    field = dirac(at=(0.7, -0.4), loss=Wasserstein(), penalties={"c": Consensus(weight=0.3)})
    expected = torch.tensor([-0.4 - 0.3 * 0.7, -0.7 + 0.3 * 0.4], dtype=torch.float64)
    torch.testing.assert_close(field.evaluate().detach(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("fourier", [0.0, 0.5])
@pytest.mark.parametrize(
    ("loss", "parts"),
    [
        (Minimax(), {}),
        (Relativistic(), {"penalties": {"r1": R1(weight=0.5), "r2": R2(weight=0.2)}}),
        (NonSaturating(), {"penalties": {"roth": Roth(weight=0.5), "consensus": Consensus(weight=0.1)}}),
        (Wasserstein(), {"penalties": {"gp": WGANGP(weight=10.0)}}),
        (Minimax(), {"penalties": {"dragan": DRAGAN(weight=1.0)}, "augment": InstanceNoise(std=0.1)}),
    ],
    ids=["minimax", "relativistic with r1 and r2", "roth and consensus", "wgan-gp", "dragan with instance noise"],
)
def test_the_jacobian_agrees_with_finite_differences(loss, parts, fourier):
    """With fourier > 0 the discriminator's gradient depends on x, so penalties depend on the generator too."""
    field = ring(width=5, fourier=fourier, loss=loss, **parts)
    point, jacobian = field.parameters(), field.jacobian()
    direction = torch.randn(field.size, generator=seeded("direction"), dtype=torch.float64)
    sides = []
    for sign in (1, -1):
        field.set_parameters(point + sign * 1e-6 * direction)
        sides.append(field.evaluate().detach())
    expected = (sides[0] - sides[1]) / 2e-6
    largest = expected.abs().max().item()
    torch.testing.assert_close(jacobian @ direction, expected, rtol=1e-5, atol=1e-7 * max(1.0, largest))


@pytest.mark.parametrize(
    "penalties", [{}, {"r1": R1(weight=1.0)}, {"gp": WGANGP(weight=1.0)}], ids=["none", "r1", "gp"]
)
def test_the_iteration_finds_the_largest_eigenvalues_of_the_dense_matrix(penalties):
    field = ring(width=12, penalties=penalties)
    (dense, _), (found, missing) = field.eigenvalues(6, dense=True), field.eigenvalues(6, dense=False, products=200)
    assert len(dense) == field.size and missing == 0
    different = [np.abs(found - value) > 1e-6 * np.abs(dense[0]) for value in found]
    assert all(row.sum() == len(found) - 1 for row in different), "no eigenvalue occurs twice"
    for value in [*found[:6], found[np.argmax(found.real)]]:
        assert np.abs(dense - value).min() < 1e-3 * np.abs(dense[0])
    assert np.abs(found[0]) == pytest.approx(np.abs(dense[0]), rel=1e-3)
    assert found.real.max() == pytest.approx(dense.real.max(), abs=1e-3 * np.abs(dense[0]))


def test_a_count_above_the_size_of_the_game():
    """Then every eigenvalue is found, and the repeated eigenvalue 0 once."""
    field = ring(width=2)
    found, missing = field.eigenvalues(10_000, products=10_000, dense=False)
    dense, _ = field.eigenvalues(1, dense=True)
    assert missing == 0 and len(found) <= field.size
    assert all(np.abs(found - value).min() < 1e-5 * np.abs(dense[0]) for value in dense)


def test_too_few_products_report_missing_eigenvalues():
    found, missing = ring(width=12).eigenvalues(6, products=7, dense=False)
    assert missing > 0 and len(found) <= 12 - missing


@pytest.mark.parametrize("dense", [True, False])
def test_a_players_block_has_the_curvature_of_its_own_loss(dense):
    """At the equilibrium G's block is 0 and D's is minus the weight of R1; away from it, G's loss curves too."""
    field = dirac(penalties={"r1": R1(weight=0.5)})
    assert field.eigenvalues(1, player="generator", dense=dense)[0] == pytest.approx([0.0], abs=1e-9)
    assert field.eigenvalues(1, player="discriminator", dense=dense)[0] == pytest.approx([-0.5])
    field = dirac(at=(0.7, -0.4))
    slope = 1 / (1 + np.exp(0.7 * 0.4))  # loss_G = -softplus(psi theta), with curvature -psi^2 s (1 - s)
    found, _ = field.eigenvalues(1, player="generator", dense=dense)
    assert found == pytest.approx([0.16 * slope * (1 - slope)], rel=1e-5)


@pytest.mark.parametrize("dense", [True, False])
def test_gradients_that_are_not_finite_are_an_error_and_not_a_traceback(dense):
    field = dirac()
    field.set_parameters(torch.tensor([float("nan"), 1.0], dtype=torch.float64))
    with pytest.raises(UserError, match="not finite at these weights; diagnose another checkpoint"):
        field.eigenvalues(2, dense=dense)


def test_computing_eigenvalues_changes_neither_weights_nor_noise():
    field = ring(width=4)
    before = [weight.clone() for weight in field.weights]
    field.eigenvalues(2)
    assert all(torch.equal(old, new) for old, new in zip(before, field.weights, strict=True))
    assert torch.equal(field.evaluate(), field.evaluate())
