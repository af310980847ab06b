from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from conftest import TINY
from torch import Tensor, nn

from gancli.device import Stream, seeded
from gancli.game import DiscriminatorOutput, Game
from gancli.losses import NonSaturating
from gancli.networks.base import Discriminator, Generator
from gancli.penalties import DRAGAN, R1, R2, WGANGP, Consensus, Penalty, Roth
from gancli.schedules import Linear

EVERY = [R1, R2, WGANGP, DRAGAN, Roth]
BATCH, SHAPE = 6, (2, 2, 2)
SIZE = math.prod(SHAPE)


class Counting(Discriminator):
    def __init__(self, shape: Sequence[int] = SHAPE) -> None:
        super().__init__(image_shape=shape)
        self.w = nn.Parameter(torch.linspace(-1, 2, SIZE))
        self.b = nn.Parameter(torch.tensor(0.5))
        self.seen: list[tuple[Tensor, Tensor | None]] = []

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        self.seen.append((x.detach().clone(), labels))
        return self.logits(x.flatten(1))

    def logits(self, x: Tensor) -> Tensor:
        return x @ self.w + self.b


class Quadratic(Counting):
    """x.S x / 2 + w.x + b, whose gradient in x is S x + w for a symmetric S."""

    def __init__(self) -> None:
        super().__init__()
        mixed = torch.randn(SIZE, SIZE, generator=seeded("S"))
        self.s = nn.Parameter((mixed + mixed.T) / 2)

    def logits(self, x: Tensor) -> Tensor:
        return 0.5 * ((x @ self.s) * x).sum(1) + super().logits(x)


class Nothing(Generator):
    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        raise AssertionError("a penalty does not need the generator")


def game_of(discriminator: Discriminator) -> Game:
    return Game(
        generator=Nothing(latent_dim=1, image_shape=SHAPE),
        discriminator=discriminator,
        loss=NonSaturating(),
        prior=None,  # type: ignore[arg-type]
        stream=Stream(seeded("penalties"), device=torch.device("cpu")),
    )


def batches() -> tuple[Tensor, Tensor]:
    rng = seeded("batches")
    return torch.randn(BATCH, *SHAPE, generator=rng), 2 * torch.randn(BATCH, *SHAPE, generator=rng) + 1


def scored(game: Game, labels: Tensor | None = None) -> tuple[DiscriminatorOutput, DiscriminatorOutput]:
    real, fake = batches()
    return game.discriminate_detached(real, labels), game.discriminate_detached(fake, labels)


@pytest.mark.parametrize("make", [R1, R2, WGANGP, DRAGAN])
def test_linear_discriminator_has_the_closed_form(make: type[Penalty]) -> None:
    d = Counting()
    game = game_of(d)
    values = make(weight=1.0)(*scored(game), game, None)
    norm = d.w.detach().norm()
    expected = 0.5 * norm**2 if make in (R1, R2) else (norm - 1) ** 2
    assert values.shape == (BATCH,)
    torch.testing.assert_close(values.detach(), expected.expand(BATCH), rtol=1e-5, atol=0)

    (by_w,) = torch.autograd.grad(values.mean(), d.w)
    w = d.w.detach()
    torch.testing.assert_close(by_w, w if make in (R1, R2) else 2 * (norm - 1) * w / norm, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("make", "which"), [(R1, 0), (R2, 1)])
def test_quadratic_discriminator_has_the_analytic_gradient(make: type[Penalty], which: int) -> None:
    d = Quadratic()
    game = game_of(d)
    values = make(weight=1.0)(*scored(game), game, None)
    x = batches()[which].flatten(1).double()
    s, w = d.s.detach().double(), d.w.detach().double()
    by_x = x @ s + w
    torch.testing.assert_close(values.detach().double(), 0.5 * by_x.square().sum(1), rtol=1e-5, atol=0)

    by_s, by_w = torch.autograd.grad(values.mean(), (d.s, d.w))
    torch.testing.assert_close(by_w.double(), by_x.mean(0), rtol=1e-5, atol=1e-5)
    # The input's gradient is (S + S^T) x / 2 + w, hence both orders.
    outer = torch.einsum("bi,bj->ij", by_x, x) / BATCH
    torch.testing.assert_close(by_s.double(), (outer + outer.T) / 2, rtol=1e-5, atol=1e-5)


def test_wgan_gp_measures_between_pairs_of_real_and_fake() -> None:
    d = Quadratic()
    game = game_of(d)
    values = WGANGP(weight=1.0)(*scored(game), game, None).detach()
    (real, fake), (points, _) = batches(), d.seen[-1]
    shares = ((points - fake) / (real - fake)).flatten(1)
    torch.testing.assert_close(shares, shares[:, :1].expand_as(shares), rtol=1e-3, atol=1e-4)  # one share for a pair
    assert ((shares > 0) & (shares < 1)).all()
    assert shares[:, 0].std() > 0.1, "and another for the next"
    norms = (points.flatten(1) @ d.s + d.w).detach().norm(dim=1)
    torch.testing.assert_close(values, (norms - 1).square(), rtol=1e-4, atol=1e-5)


def test_dragan_measures_around_real_samples() -> None:
    d = Quadratic()
    game = game_of(d)
    values = DRAGAN(weight=1.0)(*scored(game), game, None).detach()
    (real, _), (points, _) = batches(), d.seen[-1]
    away = (points - real) / real.std()
    assert ((away >= 0) & (away <= 0.5 + 1e-6)).all()
    assert away.std() > 0.1, "each coordinate goes its own way"
    norms = (points.flatten(1) @ d.s + d.w).detach().norm(dim=1)
    torch.testing.assert_close(values, (norms - 1).square(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [WGANGP, DRAGAN])
def test_a_flat_discriminator_gives_a_finite_gradient(make: type[Penalty]) -> None:
    d = Counting()
    nn.init.zeros_(d.w)
    game = game_of(d)
    values = make(weight=1.0)(*scored(game), game, None)
    torch.testing.assert_close(values.detach(), torch.ones(BATCH), rtol=1e-5, atol=0)
    (by_w,) = torch.autograd.grad(values.mean(), d.w)
    assert by_w.isfinite().all()


def test_roths_weighs_each_sample_by_how_much_the_discriminator_is_mistaken() -> None:
    d = Counting()
    game = game_of(d)
    real, fake = scored(game)
    values = Roth(weight=1.0)(real, fake, game, None)
    mistaken = (1 - real.logits.sigmoid()).square() + fake.logits.sigmoid().square()
    torch.testing.assert_close(values, 0.5 * mistaken * d.w.square().sum(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("make", [WGANGP, Consensus])
def test_points_are_in_one_graph_with_the_generator_only_where_the_fakes_are(make: type[Penalty]) -> None:
    """A training step must not reach it through D's penalty; who looks at the whole game must."""
    game = game_of(Quadratic())
    scale = nn.Parameter(torch.ones(()))
    game.weights["generator"], (real, fake) = [scale], batches()
    inputs = real.requires_grad_()
    whole = DiscriminatorOutput(scale * fake, game.discriminate(scale * fake, None))
    value = make(weight=1.0)(DiscriminatorOutput(inputs, game.discriminate(inputs, None)), whole, game, None).mean()
    assert torch.autograd.grad(value, scale)[0] != 0
    if make is WGANGP:
        cut = game.discriminate_detached(scale * fake, None)
        value = make(weight=1.0)(game.discriminate_detached(real, None), cut, game, None).mean()
        assert torch.autograd.grad(value, (scale, cut.inputs), allow_unused=True) == (None, None)


@pytest.mark.parametrize(("make", "extra"), [(R1, 0), (R2, 0), (Roth, 0), (WGANGP, 1), (DRAGAN, 1)])
def test_forward_passes(make: type[Penalty], extra: int) -> None:
    d = Quadratic()
    game, labels = game_of(d), torch.arange(BATCH)
    pair = scored(game, labels)
    make(weight=1.0)(*pair, game, labels)
    assert len(d.seen) == 2 + extra
    assert all(given is labels for _, given in d.seen)


@pytest.mark.parametrize("make", EVERY)
def test_touches_fake_says_whether_the_value_hangs_on_the_fakes_own_scores(make: type[Penalty]) -> None:
    game = game_of(Quadratic())
    real, fake = scored(game)
    value = make(weight=1.0)(real, fake, game, None).mean()
    found = torch.autograd.grad(value, (fake.inputs, fake.logits), allow_unused=True)
    assert any(gradient is not None for gradient in found) is make.touches_fake


def test_r1_and_r2_share_nothing_but_the_gradient_is_computed_once() -> None:
    game = game_of(Quadratic())
    real, fake = scored(game)
    assert not real.has_gradient
    R1(weight=1.0)(real, fake, game, None)
    assert real.has_gradient
    assert not fake.has_gradient
    assert real.gradient() is real.gradient()


def test_interval_skips_steps_and_keeps_the_mean_strength() -> None:
    penalty = R1(weight=3.0, interval=4)
    assert [step for step in range(12) if penalty.due(step, 0.5)] == [0, 4, 8]
    assert penalty.factor(0.5) == 12.0
    mean = sum(penalty.factor(0.5) for step in range(400) if penalty.due(step, 0.5)) / 400
    assert mean == 3.0


def test_weight_may_be_a_schedule_and_zero_switches_off() -> None:
    penalty = R1(weight=Linear(start=0.0, end=8.0), interval=2)
    assert not penalty.due(0, 0.0)
    assert penalty.due(0, 0.5)
    assert not penalty.due(1, 0.5)
    assert penalty.factor(0.25) == pytest.approx(4.0)
    assert penalty.factor(1.0) == pytest.approx(16.0)
    assert not R1(weight=0.0).due(0, 0.0)


@pytest.mark.parametrize("make", EVERY)
@pytest.mark.parametrize(
    ("settings", "named"),
    [({"weight": -0.1}, "weight=-0.1"), ({"weight": 1.0, "interval": 0}, "interval=0")],
)
def test_bad_settings_are_named(make: type[Penalty], settings: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}: "):
        make(**settings)


def test_lazy_penalties_on_points_are_warned_of(cli):
    words = [word for word in TINY if "channels" not in word]
    words += ["dataset=gaussian_ring", "network=mlp", "penalty=[r1,r2]"]
    for loss, interval, told in (("relativistic", 4, 1), ("relativistic", 1, 0), ("nonsaturating", 4, 0)):
        result = cli(
            "train", *words, f"loss={loss}", f"penalty.r2.interval={interval}", f"hydra.run.dir={loss}{interval}"
        )
        assert result.status == 0 and result.err.count("penalty.r2.interval: on points") == told
