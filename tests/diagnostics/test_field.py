"""The vector field of a game, against closed forms and finite differences."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gancli.datasets.points import Dirac, GaussianRing
from gancli.diagnostics.base import Run
from gancli.diagnostics.field import VectorField
from gancli.game import Game
from gancli.losses import Minimax, NonSaturating, Relativistic
from gancli.networks.dirac import DiracDiscriminator, DiracGenerator
from gancli.networks.mlp import MLPDiscriminator, MLPGenerator
from gancli.penalties import R1, R2, WGANGP
from gancli.priors import Gaussian
from gancli.runtime import Stream, seeded


def field_of(dataset, generator, discriminator, *, loss=None, penalties=None, count=32):
    game = Game(
        generator=generator,
        discriminator=discriminator,
        loss=loss or Minimax(),
        prior=Gaussian(dim=generator.latent_dim),
        stream=Stream(seeded("noise"), device=torch.device("cpu")),
        penalties=penalties or {},
    )
    trainer = SimpleNamespace(game=game, dataset=dataset, progress=1.0, seed=0)
    return VectorField(Run("nowhere", trainer), count=count)


def dirac(*, loss=None, penalties=None, at=(0.0, 0.0)):
    generator = DiracGenerator(latent_dim=1, image_shape=(1,), theta=at[0])
    return field_of(Dirac(), generator, DiracDiscriminator(image_shape=(1,), psi=at[1]), loss=loss, penalties=penalties)


def ring(*, width, loss=None, penalties=None):
    torch.manual_seed(3)
    generator = MLPGenerator(latent_dim=2, image_shape=(2,), width=width)
    discriminator = MLPDiscriminator(image_shape=(2,), width=width)
    return field_of(GaussianRing(), generator, discriminator, loss=loss, penalties=penalties)


@pytest.mark.parametrize("loss", [Minimax, NonSaturating])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.5])
@pytest.mark.parametrize("penalty", [R1, R2])
def test_eigenvalues_at_the_dirac_gans_equilibrium_are_those_of_the_closed_form(loss, gamma, penalty):
    """-gamma/2 +- sqrt(gamma^2/4 - f'(0)^2) with f'(0) = 1/2 (Mescheder et al., ICML 2018, section 3)."""
    field = dirac(loss=loss(), penalties={"p": penalty(weight=gamma)} if gamma else {})
    found = np.sort_complex(field.eigenvalues(2))
    root = np.sqrt(gamma**2 / 4 - 0.25 + 0j)
    assert np.abs(found - np.sort_complex(np.array([-gamma / 2 + root, -gamma / 2 - root]))).max() < 1e-5


def test_the_field_is_minus_the_players_gradients():
    field = dirac(at=(0.7, -0.4))
    slope = torch.sigmoid(torch.tensor(0.7 * -0.4, dtype=torch.float64))
    # loss_G = -softplus(psi theta), loss_D = log 2 + softplus(psi theta)
    expected = torch.stack([slope * -0.4, -slope * 0.7])
    torch.testing.assert_close(field.at_point().detach(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("loss", "penalties"),
    [(Minimax(), {}), (Relativistic(), {"r1": R1(weight=0.5), "r2": R2(weight=0.2)})],
    ids=["minimax", "relativistic with r1 and r2"],
)
def test_the_jacobian_agrees_with_finite_differences(loss, penalties):
    field = ring(width=5, loss=loss, penalties=penalties)
    point, jacobian = field.point(), field.jacobian()
    direction = torch.randn(field.size, generator=seeded("direction"), dtype=torch.float64)
    sides = []
    for sign in (1, -1):
        field.move(point + sign * 1e-6 * direction)
        sides.append(field.at_point().detach())
    torch.testing.assert_close(jacobian @ direction, (sides[0] - sides[1]) / 2e-6, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "penalties", [{}, {"r1": R1(weight=1.0)}, {"gp": WGANGP(weight=1.0)}], ids=["none", "r1", "gp"]
)
def test_the_iteration_finds_the_largest_eigenvalues_of_the_dense_matrix(penalties):
    field = ring(width=12, penalties=penalties)
    dense, found = field.eigenvalues(6, dense=True), field.eigenvalues(6, dense=False)
    assert len(dense) == field.size
    for value in [*found[:6], found[np.argmax(found.real)]]:
        assert np.abs(dense - value).min() < 1e-3 * np.abs(dense[0])
    assert np.abs(found[0]) == pytest.approx(np.abs(dense[0]), rel=1e-3)
    assert found.real.max() == pytest.approx(dense.real.max(), abs=1e-3 * np.abs(dense[0]))


def test_looking_changes_neither_networks_nor_noise():
    field = ring(width=4)
    before = [weight.clone() for weight in field.weights]
    field.eigenvalues(2)
    assert all(torch.equal(old, new) for old, new in zip(before, field.weights, strict=True))
    assert torch.equal(field.at_point(), field.at_point())
