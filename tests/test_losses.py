from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from gancli import losses
from gancli.losses import Loss

REAL = np.array([-3.0, -1.5, -0.25, 0.0, 0.5, 1.75, 4.0])
FAKE = np.array([2.5, 0.0, -1.25, -0.5, 3.0, -4.0, 0.75])


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


Formula = Callable[[np.ndarray, np.ndarray], np.ndarray]

# As functions of (real, fake) logits: D's loss, G's loss, and the derivatives of D's loss with respect to real and fake
# logits and of G's with respect to fake logits, derived by hand.
FORMULAS: dict[str, tuple[Formula, Formula, Formula, Formula, Formula]] = {
    "Minimax": (
        lambda r, f: -np.log(sigmoid(r)) - np.log(1 - sigmoid(f)),
        lambda r, f: np.log(1 - sigmoid(f)),
        lambda r, f: sigmoid(r) - 1,
        lambda r, f: sigmoid(f),
        lambda r, f: -sigmoid(f),
    ),
    "MinimaxLinear": (
        lambda r, f: -np.log(sigmoid(r)) - (1 - sigmoid(f)),
        lambda r, f: 1 - sigmoid(f),
        lambda r, f: sigmoid(r) - 1,
        lambda r, f: sigmoid(f) * (1 - sigmoid(f)),
        lambda r, f: -sigmoid(f) * (1 - sigmoid(f)),
    ),
    "NonSaturating": (
        lambda r, f: -np.log(sigmoid(r)) - np.log(1 - sigmoid(f)),
        lambda r, f: -np.log(sigmoid(f)),
        lambda r, f: sigmoid(r) - 1,
        lambda r, f: sigmoid(f),
        lambda r, f: sigmoid(f) - 1,
    ),
    "LeastSquares": (
        lambda r, f: ((r - 1) ** 2 + f**2) / 2,
        lambda r, f: (f - 1) ** 2 / 2,
        lambda r, f: r - 1,
        lambda r, f: f,
        lambda r, f: f - 1,
    ),
    "Hinge": (
        lambda r, f: np.maximum(0, 1 - r) + np.maximum(0, 1 + f),
        lambda r, f: -f,
        lambda r, f: np.where(r < 1, -1.0, 0.0),
        lambda r, f: np.where(f > -1, 1.0, 0.0),
        lambda r, f: np.full_like(f, -1.0),
    ),
    "Wasserstein": (
        lambda r, f: f - r,
        lambda r, f: -f,
        lambda r, f: np.full_like(r, -1.0),
        lambda r, f: np.full_like(f, 1.0),
        lambda r, f: np.full_like(f, -1.0),
    ),
    "Relativistic": (
        lambda r, f: -np.log(sigmoid(r - f)),
        lambda r, f: -np.log(sigmoid(f - r)),
        lambda r, f: sigmoid(r - f) - 1,
        lambda r, f: 1 - sigmoid(r - f),
        lambda r, f: sigmoid(f - r) - 1,
    ),
}
every_loss = pytest.mark.parametrize("name", FORMULAS)


def make(name: str) -> Loss:
    return getattr(losses, name)()


def leaf(values: np.ndarray | list[float], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, requires_grad=True)


def test_every_loss_has_its_formula_here() -> None:
    classes = {value for value in vars(losses).values() if isinstance(value, type) and issubclass(value, Loss)}
    assert {kind.__name__ for kind in classes - {Loss}} == set(FORMULAS)


@every_loss
def test_values_equal_the_formulas_for_each_sample(name: str) -> None:
    loss, (of_d, of_g, *_) = make(name), FORMULAS[name]
    real, fake = torch.from_numpy(REAL), torch.from_numpy(FAKE)
    by_d, by_g = loss.discriminator(real, fake), loss.generator(fake, real)
    assert by_d.shape == by_g.shape == (len(REAL),)
    np.testing.assert_allclose(by_d, of_d(REAL, FAKE), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(by_g, of_g(REAL, FAKE), rtol=1e-12, atol=1e-14)


@every_loss
def test_gradients_equal_the_derivatives(name: str) -> None:
    loss, (_, _, d_by_real, d_by_fake, g_by_fake) = make(name), FORMULAS[name]
    real, fake = leaf(REAL), leaf(FAKE)
    by_real, by_fake = torch.autograd.grad(loss.discriminator(real, fake).sum(), (real, fake))
    np.testing.assert_allclose(by_real, d_by_real(REAL, FAKE), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(by_fake, d_by_fake(REAL, FAKE), rtol=1e-12, atol=1e-14)
    (wanted,) = torch.autograd.grad(loss.generator(fake, real).sum(), fake)
    np.testing.assert_allclose(wanted, g_by_fake(REAL, FAKE), rtol=1e-12, atol=1e-14)


@every_loss
def test_values_and_gradients_are_finite_for_large_logits(name: str) -> None:
    real = leaf([-50.0, -50.0, 50.0, 50.0], torch.float32)
    fake = leaf([-50.0, 50.0, -50.0, 50.0], torch.float32)
    loss = make(name)
    values = [loss.discriminator(real, fake), loss.generator(fake, real)]
    grads = [*torch.autograd.grad(values[0].sum(), (real, fake)), *torch.autograd.grad(values[1].sum(), fake)]
    assert all(tensor.isfinite().all() for tensor in [*values, *grads])
    assert values[0][1] >= 50 or name == "Relativistic", "D pays for confident errors"
    assert values[0][1] > values[0][2], "and less for confident correct logits"


@every_loss
def test_the_players_push_the_fake_logit_in_opposite_directions(name: str) -> None:
    real, fake = leaf(np.zeros(1)), leaf(np.array([0.5]))
    (by_d,) = torch.autograd.grad(make(name).discriminator(real, fake).sum(), fake)
    (by_g,) = torch.autograd.grad(make(name).generator(fake, real).sum(), fake)
    assert by_d > 0 > by_g


@pytest.mark.parametrize("name", ["Minimax", "Wasserstein"])
def test_zero_sum_losses_have_opposite_gradients_at_fake_logits(name: str) -> None:
    fake, real = leaf(FAKE), leaf(REAL)
    (by_d,) = torch.autograd.grad(make(name).discriminator(real, fake).sum(), fake)
    (by_g,) = torch.autograd.grad(make(name).generator(fake, real).sum(), fake)
    torch.testing.assert_close(by_g, -by_d, rtol=1e-14, atol=0)


def test_nonsaturating_has_a_gradient_where_that_of_minimax_vanishes() -> None:
    fake, real = leaf([-30.0]), leaf([0.0])
    (flat,) = torch.autograd.grad(losses.Minimax().generator(fake, real).sum(), fake)
    (steep,) = torch.autograd.grad(losses.NonSaturating().generator(fake, real).sum(), fake)
    assert abs(flat) < 1e-12
    assert steep == pytest.approx(-1.0)


@every_loss
def test_threshold_is_the_optimal_logit_where_real_and_fake_samples_are_equal(name: str) -> None:
    loss = make(name)
    same = torch.linspace(-2, 2, 401, dtype=torch.float64)
    if loss.threshold is None:  # the loss depends on differences of logits only
        shifted = loss.discriminator(same + 5, same.flip(0) + 5)
        assert torch.allclose(shifted, loss.discriminator(same, same.flip(0)))
        return
    if name == "MinimaxLinear":  # the optimal D is min(1, p/q) = 1: no finite logit
        assert (loss.discriminator(same, same).diff() < 0).all()
        return
    at_threshold = torch.full((1,), loss.threshold, dtype=torch.float64)
    best = loss.discriminator(at_threshold, at_threshold)
    assert (loss.discriminator(same, same) >= best - 1e-12).all()


def test_least_squares_counts_a_logit_above_one_half_as_real() -> None:
    loss = losses.LeastSquares()
    assert loss.threshold is not None and loss.threshold == 0.5
    # The targets are 1 and 0: 0.4 is nearer to fake, 0.6 nearer to real.
    for logit, is_real in [(0.4, False), (0.6, True)]:
        as_real = loss.discriminator(torch.tensor([logit]), torch.tensor([0.0]))
        as_fake = loss.discriminator(torch.tensor([1.0]), torch.tensor([logit]))
        assert bool(as_real < as_fake) is is_real is (logit > loss.threshold)


@every_loss
def test_relativistic_says_whether_the_generator_loss_depends_on_real_logits(name: str) -> None:
    fake, real = leaf(FAKE), torch.from_numpy(REAL)
    same = torch.equal(make(name).generator(fake, real), make(name).generator(fake, real + 1))
    assert same is not make(name).relativistic
