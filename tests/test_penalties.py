from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from gancli.commands.train import warn_of_lazy_penalties
from gancli.errors import SettingError
from gancli.game import DiscriminatorOutput, Game, Penalty
from gancli.losses import NonSaturating, Relativistic
from gancli.networks.base import Discriminator, Generator
from gancli.penalties import DRAGAN, R1, R2, WGANGP, Consensus, Roth
from gancli.randomness import Stream, seeded
from gancli.schedules import Linear

BATCH, SHAPE = 6, (2, 2, 2)
SIZE = math.prod(SHAPE)


class LinearDiscriminator(Discriminator):
    """w.x + b, and a record of the calls."""

    def __init__(self, shape: Sequence[int] = SHAPE) -> None:
        super().__init__(image_shape=shape)
        self.w = nn.Parameter(torch.linspace(-1, 2, SIZE))
        self.b = nn.Parameter(torch.tensor(0.5))
        self.calls: list[tuple[Tensor, Tensor | None]] = []

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        self.calls.append((x.detach().clone(), labels))
        return self.logits(x.flatten(1))

    def logits(self, x: Tensor) -> Tensor:
        return x @ self.w + self.b


class QuadraticDiscriminator(LinearDiscriminator):
    """x.S x / 2 + w.x + b, whose gradient in x is S x + w for a symmetric S."""

    def __init__(self) -> None:
        super().__init__()
        mixed = torch.randn(SIZE, SIZE, generator=seeded("S"))
        self.s = nn.Parameter((mixed + mixed.T) / 2)

    def logits(self, x: Tensor) -> Tensor:
        return 0.5 * ((x @ self.s) * x).sum(1) + super().logits(x)


class UnusedGenerator(Generator):
    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        raise AssertionError("this penalty must not call the generator")


def game_of(discriminator: Discriminator) -> Game:
    return Game(
        generator=UnusedGenerator(latent_dim=1, image_shape=SHAPE),
        discriminator=discriminator,
        loss=NonSaturating(),
        prior=None,  # type: ignore[arg-type]
        stream=Stream(seeded("penalties"), device=torch.device("cpu")),
    )


def batches() -> tuple[Tensor, Tensor]:
    rng = seeded("batches")
    return torch.randn(BATCH, *SHAPE, generator=rng), 2 * torch.randn(BATCH, *SHAPE, generator=rng) + 1


def outputs(game: Game, labels: Tensor | None = None) -> tuple[DiscriminatorOutput, DiscriminatorOutput]:
    real, fake = batches()
    return game.discriminate_detached(real, labels), game.discriminate_detached(fake, labels)


@pytest.mark.parametrize("make", [R1, R2, WGANGP, DRAGAN])
def test_values_and_gradients_of_a_linear_discriminator_equal_the_closed_form(make: type[Penalty]) -> None:
    d = LinearDiscriminator()
    game = game_of(d)
    values = make(weight=1.0)(*outputs(game), game, None)
    norm = d.w.detach().norm()
    expected = 0.5 * norm**2 if make in (R1, R2) else (norm - 1) ** 2
    assert values.shape == (BATCH,)
    torch.testing.assert_close(values.detach(), expected.expand(BATCH), rtol=1e-5, atol=0)

    (by_w,) = torch.autograd.grad(values.mean(), d.w)
    w = d.w.detach()
    torch.testing.assert_close(by_w, w if make in (R1, R2) else 2 * (norm - 1) * w / norm, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("make", "which"), [(R1, 0), (R2, 1)])
def test_values_and_gradients_of_a_quadratic_discriminator_equal_the_closed_form(
    make: type[Penalty], which: int
) -> None:
    d = QuadraticDiscriminator()
    game = game_of(d)
    values = make(weight=1.0)(*outputs(game), game, None)
    x = batches()[which].flatten(1).double()
    s, w = d.s.detach().double(), d.w.detach().double()
    by_x = x @ s + w
    torch.testing.assert_close(values.detach().double(), 0.5 * by_x.square().sum(1), rtol=1e-5, atol=0)

    by_s, by_w = torch.autograd.grad(values.mean(), (d.s, d.w))
    torch.testing.assert_close(by_w.double(), by_x.mean(0), rtol=1e-5, atol=1e-5)
    # Autograd treats S as not symmetric: the gradient at x is (S + S^T) x / 2 + w.
    outer = torch.einsum("bi,bj->ij", by_x, x) / BATCH
    torch.testing.assert_close(by_s.double(), (outer + outer.T) / 2, rtol=1e-5, atol=1e-5)


def test_wgan_gp_penalises_points_between_pairs_of_real_and_fake() -> None:
    d = QuadraticDiscriminator()
    game = game_of(d)
    values = WGANGP(weight=1.0)(*outputs(game), game, None).detach()
    (real, fake), (points, _) = batches(), d.calls[-1]
    shares = ((points - fake) / (real - fake)).flatten(1)
    torch.testing.assert_close(
        shares, shares[:, :1].expand_as(shares), rtol=1e-3, atol=1e-4
    )  # the same in all coordinates
    assert ((shares > 0) & (shares < 1)).all()
    assert shares[:, 0].std() > 0.1, "pairs have different shares"
    norms = (points.flatten(1) @ d.s + d.w).detach().norm(dim=1)
    torch.testing.assert_close(values, (norms - 1).square(), rtol=1e-4, atol=1e-5)


def test_dragan_penalises_points_near_real_samples() -> None:
    d = QuadraticDiscriminator()
    game = game_of(d)
    values = DRAGAN(weight=1.0)(*outputs(game), game, None).detach()
    (real, _), (points, _) = batches(), d.calls[-1]
    shift = (points - real) / real.std()
    assert ((shift >= 0) & (shift <= 0.5 + 1e-6)).all()
    assert shift.std() > 0.1, "coordinates have different shifts"
    norms = (points.flatten(1) @ d.s + d.w).detach().norm(dim=1)
    torch.testing.assert_close(values, (norms - 1).square(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [WGANGP, DRAGAN])
def test_the_gradient_of_a_constant_discriminators_penalty_is_finite(make: type[Penalty]) -> None:
    d = LinearDiscriminator()
    nn.init.zeros_(d.w)
    game = game_of(d)
    values = make(weight=1.0)(*outputs(game), game, None)
    torch.testing.assert_close(values.detach(), torch.ones(BATCH), rtol=1e-5, atol=0)
    (by_w,) = torch.autograd.grad(values.mean(), d.w)
    assert by_w.isfinite().all()


def test_roth_weighs_each_sample_by_the_discriminators_error() -> None:
    d = LinearDiscriminator()
    game = game_of(d)
    real, fake = outputs(game)
    values = Roth(weight=1.0)(real, fake, game, None)
    errors = (1 - real.logits.sigmoid()).square() + fake.logits.sigmoid().square()
    torch.testing.assert_close(values, 0.5 * errors * d.w.square().sum(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("make", [WGANGP, Consensus])
def test_gradients_reach_the_generator_only_where_the_fakes_are_in_its_graph(make: type[Penalty]) -> None:
    """`Game.gradients` needs them; in a training step they would be wasted."""
    game = game_of(QuadraticDiscriminator())
    scale = nn.Parameter(torch.ones(()))
    game.weights["generator"], (real, fake) = [scale], batches()
    inputs = real.requires_grad_()
    attached = DiscriminatorOutput(scale * fake, game.discriminate(scale * fake, None))
    value = make(weight=1.0)(DiscriminatorOutput(inputs, game.discriminate(inputs, None)), attached, game, None).mean()
    assert torch.autograd.grad(value, scale)[0] != 0
    if make is WGANGP:
        detached = game.discriminate_detached(scale * fake, None)
        value = make(weight=1.0)(game.discriminate_detached(real, None), detached, game, None).mean()
        assert torch.autograd.grad(value, (scale, detached.inputs), allow_unused=True) == (None, None)


@pytest.mark.parametrize(("make", "extra"), [(R1, 0), (R2, 0), (Roth, 0), (WGANGP, 1), (DRAGAN, 1)])
def test_only_penalties_at_other_points_need_a_forward_pass(make: type[Penalty], extra: int) -> None:
    d = QuadraticDiscriminator()
    game, labels = game_of(d), torch.arange(BATCH)
    pair = outputs(game, labels)
    make(weight=1.0)(*pair, game, labels)
    assert len(d.calls) == 2 + extra
    assert all(passed is labels for _, passed in d.calls)


@pytest.mark.parametrize("make", [R1, R2, WGANGP, DRAGAN, Roth])
def test_reaches_says_whether_the_value_depends_on_the_fakes_logits_or_gradients(make: type[Penalty]) -> None:
    game = game_of(QuadraticDiscriminator())
    real, fake = outputs(game)
    value = make(weight=1.0)(real, fake, game, None).mean()
    gradients = torch.autograd.grad(value, (fake.inputs, fake.logits), allow_unused=True)
    assert any(gradient is not None for gradient in gradients) is (make.reaches == "inputs")


def test_the_gradient_at_the_samples_is_computed_once() -> None:
    game = game_of(QuadraticDiscriminator())
    real, fake = outputs(game)
    assert not real.has_gradient
    R1(weight=1.0)(real, fake, game, None)
    assert real.has_gradient
    assert not fake.has_gradient
    assert real.gradient() is real.gradient()


def test_interval_skips_steps_and_keeps_the_mean_factor() -> None:
    penalty = R1(weight=3.0, interval=4)
    assert [step for step in range(12) if penalty.due(step, 0.5)] == [0, 4, 8]
    assert penalty.factor(0.5) == 12.0
    mean = sum(penalty.factor(0.5) for step in range(400) if penalty.due(step, 0.5)) / 400
    assert mean == 3.0


def test_weight_may_be_a_schedule_and_zero_means_not_due() -> None:
    penalty = R1(weight=Linear(start=0.0, end=8.0), interval=2)
    assert not penalty.due(0, 0.0)
    assert penalty.due(0, 0.5)
    assert not penalty.due(1, 0.5)
    assert penalty.factor(0.25) == pytest.approx(4.0)
    assert penalty.factor(1.0) == pytest.approx(16.0)
    assert not R1(weight=0.0).due(0, 0.0)


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"weight": -0.1}, "weight=-0.1"), ({"weight": 1.0, "interval": 0}, "interval=0")],
)
def test_wrong_settings_are_named(settings: dict[str, float], named: str) -> None:
    with pytest.raises(SettingError, match=f"^{named}: "):
        R1(**settings)


@pytest.mark.parametrize(
    ("loss", "interval", "shape", "warnings"),
    [
        (Relativistic(), 4, (2,), 1),
        (Relativistic(), 1, (2,), 0),
        (NonSaturating(), 4, (2,), 0),
        (Relativistic(), 4, SHAPE, 0),
    ],
)
def test_lazy_penalties_with_a_relativistic_loss_on_points_are_warned_of(
    loss, interval, shape, warnings, caplog
) -> None:
    penalties = {"r1": R1(weight=1.0), "r2": R2(weight=1.0, interval=interval)}
    warn_of_lazy_penalties(loss, penalties, SimpleNamespace(shape=shape))  # type: ignore[arg-type]
    assert caplog.text.count("penalty.r2.interval: on points") == warnings
    assert "r1" not in caplog.text
