"""Update rules, optimizers and penalties of games, on the Dirac-GAN, whose answers are known in closed form."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from gancli.augment.instance_noise import InstanceNoise
from gancli.device import Stream, seeded
from gancli.game import Game
from gancli.losses import Minimax, NonSaturating, Wasserstein
from gancli.networks.dirac import DiracDiscriminator, DiracGenerator
from gancli.optimizers import ClippedSGD, OptimisticAdam, OptimisticSGD
from gancli.penalties import DRAGAN, R1, R2, WGANGP, Consensus, Roth
from gancli.priors import Uniform
from gancli.updates import Alternating, Extragradient, Simultaneous

LR = 0.2


def played(
    *, update, steps, loss=None, penalty=None, optimizer=torch.optim.SGD, augment=None, batch=2, start=(1.0, 1.0)
):
    """Distances to the equilibrium, one per step, the first before any."""
    theta, psi = start
    game = Game(
        generator=DiracGenerator(latent_dim=1, image_shape=(1,), theta=theta),
        discriminator=DiracDiscriminator(image_shape=(1,), psi=psi),
        loss=loss or Minimax(),
        prior=Uniform(dim=1),
        stream=Stream(seeded("noise"), device=torch.device("cpu")),
        penalties={"it": penalty} if penalty else {},
        **({"augment": augment} if augment else {}),
    )
    kinds = optimizer if isinstance(optimizer, dict) else dict.fromkeys(("generator", "discriminator"), optimizer)
    players = {player: make(game.network(player).parameters(), lr=LR) for player, make in kinds.items()}
    real = torch.zeros(batch, 1)
    distances = [math.hypot(*start)]
    for step in range(steps):
        for stage in update.stages(game, lambda k: (real, None), step=step, progress=0.0):
            for player in stage.players:
                players[player].step()
                players[player].zero_grad()
        distances.append(math.hypot(game.generator.theta.item(), game.discriminator.psi.item()))
    return distances


WGAN = {"generator": torch.optim.SGD, "discriminator": partial(ClippedSGD, clip=1.0)}
RULES = {"simultaneous": Simultaneous(), "alternating": Alternating()}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "how",
    [
        {"penalty": R1(weight=1.0)},
        {"penalty": R2(weight=1.0)},
        {"penalty": Roth(weight=1.0)},
        {"penalty": Consensus(weight=1.0)},
        {"augment": InstanceNoise(std=1.0), "batch": 1024},
        {"optimizer": OptimisticSGD},
    ],
    ids=["r1", "r2", "roth", "consensus", "instance noise", "optimistic"],
)
def test_what_converges_in_theory_converges(rule, how):
    distances = played(update=RULES[rule], steps=1000, **how)
    assert max(distances[-50:]) < 0.03 * distances[0]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"loss": Wasserstein()},
        {"loss": Wasserstein(), "optimizer": WGAN},
        {"loss": Wasserstein(), "penalty": WGANGP(weight=1.0)},
        {"penalty": DRAGAN(weight=1.0)},
        {"loss": NonSaturating()},
    ],
    ids=["minimax", "wasserstein", "wgan", "wgan-gp", "dragan", "non-saturating"],
)
def test_what_does_not_converge_in_theory_stays_away(rule, how):
    distances = played(update=RULES[rule], steps=700, **how)
    assert min(distances[-50:]) > 0.1 * distances[0]  # the non-saturating game creeps, as 1 / sqrt(steps)


def test_the_non_saturating_game_creeps_in_or_stays_away_as_its_closed_form_says():
    """Averaged over a turn, to third order: dr = -h r^3 / 16 a step, and h^2 r / 8 more for a simultaneous one."""
    creeping, staying = (
        played(update=rule, steps=2000, loss=NonSaturating()) for rule in (Alternating(), Simultaneous())
    )
    for steps in (1000, 2000):
        assert np.mean(creeping[steps - 32 : steps]) == pytest.approx(math.sqrt(8 / (LR * steps)), rel=0.05)
        assert np.mean(staying[steps - 32 : steps]) == pytest.approx(math.sqrt(2 * LR), rel=0.05)


def test_clipping_keeps_the_discriminator_steep_at_most_so_and_the_game_on_its_circle():
    for rule in RULES.values():
        distances = played(update=rule, steps=700, loss=Wasserstein(), optimizer=WGAN)
        assert min(distances[-50:]) > 0.9 and max(distances[-50:]) < 1.5


def test_simultaneous_descent_spirals_outwards_and_alternating_descent_circles():
    out = played(update=Simultaneous(), steps=500, loss=Wasserstein())
    assert out[-1] == pytest.approx(out[0] * (1 + LR**2) ** 250, rel=1e-3)  # |1 + i lr|^2 = 1 + lr^2 a step
    circle = played(update=Alternating(), steps=500, loss=Wasserstein())
    assert min(circle) > 0.8 and max(circle) < 1.25 * circle[0]


def test_extragradient_is_the_closed_form_of_a_bilinear_game():
    found = played(update=Extragradient(), steps=60, loss=Wasserstein())
    factor = abs(1 - LR**2 + 1j * LR)  # w - h v(w - h v(w)) with v a rotation
    assert found[-1] == pytest.approx(found[0] * factor**60, rel=1e-4)


def test_optimistic_steps_are_twice_the_gradient_less_the_one_before():
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer, gradients = OptimisticSGD([weight], lr=0.1), torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5]])
    expected, previous = weight.detach().clone(), gradients[0]
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
        expected -= 0.1 * (2 * gradient - previous)
        previous = gradient
        torch.testing.assert_close(weight.detach(), expected)


def test_optimistic_adam_takes_adams_direction():
    mine, theirs = (torch.nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2))
    optimistic = OptimisticAdam([mine], lr=0.1, betas=(0.5, 0.9))
    adam = torch.optim.Adam([theirs], lr=0.1, betas=(0.5, 0.9))
    points, steps = [mine.detach().clone()], []
    for gradient in torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5]]):
        before = theirs.detach().clone()
        mine.grad, theirs.grad = gradient.clone(), gradient.clone()
        optimistic.step()
        adam.step()
        steps.append(theirs.detach() - before)
        points.append(mine.detach().clone())
    torch.testing.assert_close(points[1] - points[0], steps[0])
    torch.testing.assert_close(points[3] - points[2], 2 * steps[2] - steps[1])


def test_consensus_moves_player_both_down_the_norm_of_their_gradients():
    """On the Dirac-GAN with the Wasserstein loss v = (psi, -theta), so half its squared norm pulls to 0 at weight w."""
    found = played(update=Simultaneous(), steps=1, loss=Wasserstein(), penalty=Consensus(weight=0.5))
    theta, psi = 1 + LR * (1 - 0.5), 1 + LR * (-1 - 0.5)
    assert found[1] == pytest.approx(math.hypot(theta, psi), rel=1e-5)


def test_instance_noise_has_its_standard_deviation_and_a_slope():
    noise = InstanceNoise(std=0.3)
    images = torch.zeros(500, 3, 4, 4, requires_grad=True)
    made = noise(images, torch.rand(500, noise.draws_for((3, 4, 4)), generator=seeded("uniform")))
    assert made.std().item() == pytest.approx(0.3, rel=0.02)
    (slope,) = torch.autograd.grad(made.sum(), images)
    assert slope.eq(1).all()
    with pytest.raises(ValueError, match="std=-1"):
        InstanceNoise(std=-1.0)
