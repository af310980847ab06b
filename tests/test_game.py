"""Update rules, optimizers and penalties on the Dirac-GAN, whose dynamics are known in closed form."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from gancli.augment.instance_noise import InstanceNoise
from gancli.errors import SettingError
from gancli.game import PLAYERS, Game
from gancli.losses import Minimax, NonSaturating, Wasserstein
from gancli.networks.dirac import DiracDiscriminator, DiracGenerator
from gancli.optimizers import ClippedSGD, OptimisticAdam, OptimisticSGD
from gancli.penalties import DRAGAN, R1, R2, WGANGP, Consensus, Roth
from gancli.priors import Uniform
from gancli.randomness import Stream, seeded
from gancli.updates import Alternating, Extragradient, Simultaneous

LR = 0.2


def distances(
    *, update, steps, loss=None, penalty=None, optimizer=torch.optim.SGD, augment=None, batch=2, start=(1.0, 1.0), lr=LR
):
    """Returns the distances to the equilibrium (0, 0), first the initial one, then one per step."""
    theta, psi = start
    game = Game(
        generator=DiracGenerator(latent_dim=1, image_shape=(1,), theta=theta),
        discriminator=DiracDiscriminator(image_shape=(1,), psi=psi),
        loss=loss or Minimax(),
        prior=Uniform(dim=1),
        stream=Stream(seeded("noise"), device=torch.device("cpu")),
        penalties={"penalty": penalty} if penalty else {},
        **({"augment": augment} if augment else {}),
    )
    classes = optimizer if isinstance(optimizer, dict) else dict.fromkeys(PLAYERS, optimizer)
    optimizers = {player: make(game.network(player).parameters(), lr=lr) for player, make in classes.items()}
    real = torch.zeros(batch, 1)
    results = [math.hypot(*start)]
    for step in range(steps):
        for player_update in update.player_updates(game, lambda k: (real, None), step=step, progress=0.0):
            for player in player_update.players:
                optimizers[player].step()
                optimizers[player].zero_grad()
        results.append(math.hypot(game.generator.theta.item(), game.discriminator.psi.item()))
    return results


CLIPPED = {"generator": torch.optim.SGD, "discriminator": partial(ClippedSGD, clip=1.0)}
RULES = {"simultaneous": Simultaneous(), "alternating": Alternating()}
CONVERGENT = {
    "r1": {"penalty": R1(weight=1.0)},
    "r2": {"penalty": R2(weight=1.0)},
    "roth": {"penalty": Roth(weight=1.0)},
    "consensus": {"penalty": Consensus(weight=1.0)},
    "instance noise": {"augment": InstanceNoise(std=1.0), "batch": 1024},
    "optimistic": {"optimizer": OptimisticSGD},
}
NOT_CONVERGENT = {
    "minimax": {},
    "wasserstein": {"loss": Wasserstein()},
    "wgan-gp": {"loss": Wasserstein(), "penalty": WGANGP(weight=1.0)},
    "dragan": {"penalty": DRAGAN(weight=1.0)},
    "non-saturating": {"loss": NonSaturating()},
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("method", CONVERGENT)
def test_methods_that_converge_in_theory_converge(rule, method):
    results = distances(update=RULES[rule], steps=200, lr=0.5, **CONVERGENT[method])
    assert max(results[-50:]) < 0.05 * results[0]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("method", NOT_CONVERGENT)
def test_methods_that_do_not_converge_in_theory_stay_away(rule, method):
    results = distances(update=RULES[rule], steps=150, lr=0.5, **NOT_CONVERGENT[method])
    assert min(results[-50:]) > 0.2 * results[0]  # the non-saturating game approaches as 1 / sqrt(steps)


@pytest.mark.parametrize("rule", RULES)
def test_the_non_saturating_game_follows_its_closed_form(rule):
    """Averaged over a turn, to third order: dr = -h r^3 / 16 per step, plus h^2 r / 8 with simultaneous updates."""
    lr = 0.4
    results = distances(update=RULES[rule], steps=400, loss=NonSaturating(), lr=lr)
    turn = round(4 * math.pi / lr)
    for steps in (200, 400):
        expected = math.sqrt(8 / (lr * steps)) if rule == "alternating" else math.sqrt(2 * lr)
        assert np.mean(results[steps - turn : steps]) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("rule", RULES)
def test_clipping_keeps_the_game_on_a_circle(rule):
    results = distances(update=RULES[rule], steps=150, loss=Wasserstein(), optimizer=CLIPPED)
    assert min(results[-50:]) > 0.9 and max(results[-50:]) < 1.5


def test_simultaneous_descent_spirals_outwards_and_alternating_descent_circles():
    spiral = distances(update=Simultaneous(), steps=100, loss=Wasserstein())
    assert spiral[-1] == pytest.approx(spiral[0] * (1 + LR**2) ** 50, rel=1e-3)  # |1 + i lr|^2 = 1 + lr^2 per step
    circle = distances(update=Alternating(), steps=100, loss=Wasserstein())
    assert min(circle) > 0.8 and max(circle) < 1.25 * circle[0]


def test_extragradient_equals_the_closed_form_of_a_bilinear_game():
    results = distances(update=Extragradient(), steps=60, loss=Wasserstein())
    factor = abs(1 - LR**2 + 1j * LR)  # w - h v(w - h v(w)) with v a rotation
    assert results[-1] == pytest.approx(results[0] * factor**60, rel=1e-4)


def test_optimistic_steps_are_twice_the_gradient_minus_the_previous_one():
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer, gradients = OptimisticSGD([weight], lr=0.1), torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5]])
    expected, previous = weight.detach().clone(), gradients[0]
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
        expected -= 0.1 * (2 * gradient - previous)
        previous = gradient
        torch.testing.assert_close(weight.detach(), expected)


def test_optimistic_adam_uses_the_direction_of_adam():
    weight, adam_weight = (torch.nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2))
    optimistic = OptimisticAdam([weight], lr=0.1, betas=(0.5, 0.9))
    adam = torch.optim.Adam([adam_weight], lr=0.1, betas=(0.5, 0.9))
    points, adam_steps = [weight.detach().clone()], []
    for gradient in torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5]]):
        before = adam_weight.detach().clone()
        weight.grad, adam_weight.grad = gradient.clone(), gradient.clone()
        optimistic.step()
        adam.step()
        adam_steps.append(adam_weight.detach() - before)
        points.append(weight.detach().clone())
    torch.testing.assert_close(points[1] - points[0], adam_steps[0])
    torch.testing.assert_close(points[3] - points[2], 2 * adam_steps[2] - adam_steps[1])


def test_consensus_moves_both_players_down_the_norm_of_their_gradients():
    """With the Wasserstein loss v = (psi, -theta), so that w times half its squared norm adds w (theta, psi)."""
    results = distances(update=Simultaneous(), steps=1, loss=Wasserstein(), penalty=Consensus(weight=0.5))
    theta, psi = 1 + LR * (1 - 0.5), 1 + LR * (-1 - 0.5)
    assert results[1] == pytest.approx(math.hypot(theta, psi), rel=1e-5)


def test_instance_noise_has_its_standard_deviation_and_is_differentiable():
    noise = InstanceNoise(std=0.3)
    images = torch.zeros(500, 3, 4, 4, requires_grad=True)
    noisy = noise(images, torch.rand(500, noise.draws_for((3, 4, 4)), generator=seeded("uniform")))
    assert noisy.std().item() == pytest.approx(0.3, rel=0.02)
    (slope,) = torch.autograd.grad(noisy.sum(), images)
    assert slope.eq(1).all()
    with pytest.raises(SettingError, match=r"^std=-1.0: at least 0"):
        InstanceNoise(std=-1.0)
