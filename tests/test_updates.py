from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gancli import losses
from gancli.game import Game, DiscriminatorOutput
from gancli.losses import Loss
from gancli.networks.base import Discriminator, Generator
from gancli.networks.dcgan import DCGANDiscriminator, DCGANGenerator
from gancli.networks.mlp import MLPDiscriminator, MLPGenerator
from gancli.networks.resnet import ResNetDiscriminator, ResNetGenerator
from gancli.penalties import R1, R2, WGANGP, Penalty
from gancli.device import Stream, seeded
from gancli.updates import Alternating, Simultaneous, PlayerUpdate

BATCH, LATENT, SHAPE, CLASSES = 6, 5, (1, 16, 16), 3
SMALL = {"channels": 4, "max_channels": 8}


def below(base: type) -> list[type]:
    return [found for child in base.__subclasses__() for found in (child, *below(child))]


LOSSES = [found for found in below(Loss) if found.__module__ == losses.__name__]

FAMILIES: dict[str, tuple[type[Generator], dict[str, Any], type[Discriminator], dict[str, Any]]] = {
    "mlp": (MLPGenerator, {"width": 16}, MLPDiscriminator, {"width": 16}),
    "dcgan": (DCGANGenerator, SMALL, DCGANDiscriminator, SMALL),
    "dcgan-batch": (DCGANGenerator, SMALL, DCGANDiscriminator, {**SMALL, "norm": "batch"}),
    "dcgan-spectral": (DCGANGenerator, SMALL, DCGANDiscriminator, {**SMALL, "spectral_norm": True}),
    "resnet": (ResNetGenerator, SMALL, ResNetDiscriminator, SMALL),
}
PENALTIES: dict[str, dict[str, Penalty]] = {
    "none": {},
    "r1": {"r1": R1(weight=2.0)},
    "r2": {"r2": R2(weight=2.0)},
    "r1+r2": {"r1": R1(weight=0.5, interval=4), "r2": R2(weight=3.0)},
    "wgan_gp": {"wgan_gp": WGANGP(weight=10.0)},
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for networks this small, more of them only get in each other's way
    yield
    torch.set_num_threads(threads)


class Normal:
    dim = LATENT

    def batch(self, count: int, rng: torch.Generator) -> Tensor:
        return torch.randn(count, LATENT, generator=rng)


def game_of(
    generator: Generator, discriminator: Discriminator, loss: Loss, penalties: dict[str, Penalty] | None = None
) -> Game:
    return Game(
        generator=generator,
        discriminator=discriminator,
        loss=loss,
        prior=Normal(),  # type: ignore[arg-type]
        stream=Stream(seeded("noise"), device=torch.device("cpu")),
        penalties=penalties or {},
    )


def family(name: str, classes: int = 0) -> tuple[Generator, Discriminator]:
    make_g, of_g, make_d, of_d = FAMILIES[name]
    torch.manual_seed(1)
    generator = make_g(latent_dim=LATENT, image_shape=SHAPE, num_classes=classes, **of_g)
    return generator, make_d(image_shape=SHAPE, num_classes=classes, **of_d)


def batch(k: int = 0, classes: int = 0) -> tuple[Tensor, Tensor | None]:
    rng = seeded("batch", k)
    samples = torch.rand(BATCH, *SHAPE, generator=rng) * 2 - 1
    return samples, torch.randint(classes, (BATCH,), generator=rng) if classes else None


def two_pass(
    game: Game, samples: Tensor, labels: Tensor | None, *, dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
    """Plain autograd at the same weights: D's gradients, G's gradients, and the values."""
    rng = seeded("noise")
    generator, discriminator = copy.deepcopy(game.generator).to(dtype), copy.deepcopy(game.discriminator).to(dtype)
    samples = samples.to(dtype).requires_grad_()
    images = generator(torch.randn(BATCH, LATENT, generator=rng).to(dtype), labels)
    real, fake = discriminator(samples, labels), discriminator(images, labels)
    loss_d = game.loss.discriminator(real, fake).mean()
    loss_g = game.loss.generator(fake, real).mean()
    values = {"discriminator": loss_d.detach(), "generator": loss_g.detach()}
    total = loss_d
    for name, penalty in game.penalties.items():
        if name == "wgan_gp":
            share = torch.rand(BATCH, generator=rng).to(dtype).view(BATCH, 1, 1, 1)
            points = (share * samples + (1 - share) * images).detach().requires_grad_()
            (slope,) = torch.autograd.grad(discriminator(points, labels).sum(), points, create_graph=True)
            value = (slope.flatten(1).norm(dim=1) - 1).square().mean()
        elif name == "drift":
            value = fake.square().mean()
        else:
            logits, where = (real, samples) if name == "r1" else (fake, images)
            (slope,) = torch.autograd.grad(logits.sum(), where, create_graph=True)
            value = 0.5 * slope.square().flatten(1).sum(1).mean()
        values[name] = value.detach()
        total = total + penalty.weight * penalty.interval * value  # type: ignore[operator]
    by_d = torch.autograd.grad(total, list(discriminator.parameters()), retain_graph=True)
    by_g = torch.autograd.grad(loss_g, list(generator.parameters()))
    return list(by_d), list(by_g), values


def one_stage(game: Game, samples: Tensor, labels: Tensor | None = None, *, step: int = 0) -> PlayerUpdate:
    (stage,) = Simultaneous().stages(game, lambda k: (samples, labels), step=step, progress=0.5)
    return stage


def grads(network: nn.Module) -> list[Tensor]:
    found = [parameter.grad for parameter in network.parameters()]
    assert all(gradient is not None for gradient in found)
    return found  # type: ignore[return-value]


def assert_same(found: list[Tensor], expected: list[Tensor], *, relative: float = 1e-4) -> None:
    """Each within `relative` of its own norm; some are zero but for rounding, hence the share of the norm of all."""
    whole = torch.cat([gradient.flatten() for gradient in expected]).norm()
    assert whole > 0
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        error = (mine.to(theirs.dtype) - theirs).norm()
        assert error <= relative * theirs.norm() + 1e-2 * relative * whole, (error, theirs.norm(), whole)


@pytest.mark.parametrize("penalties", PENALTIES)
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("name", FAMILIES)
def test_one_stage_is_two_pass(name: str, loss: type[Loss], penalties: str) -> None:
    game = game_of(*family(name), loss(), PENALTIES[penalties])
    samples, labels = batch()
    by_d, by_g, values = two_pass(game, samples, labels)
    stage = one_stage(game, samples, labels)
    assert_same(grads(game.discriminator), by_d)
    assert_same(grads(game.generator), by_g)
    assert stage.players == ("discriminator", "generator")
    torch.testing.assert_close({**stage.losses, **stage.penalties}, values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "dcgan-spectral", "dcgan-batch"])
def test_one_stage_is_two_pass_with_labels(name: str) -> None:
    game = game_of(*family(name, CLASSES), losses.NonSaturating(), PENALTIES["wgan_gp"])
    samples, labels = batch(classes=CLASSES)
    by_d, by_g, _ = two_pass(game, samples, labels)
    one_stage(game, samples, labels)
    assert_same(grads(game.discriminator), by_d)
    assert_same(grads(game.generator), by_g)
    shifted = two_pass(game, samples, (labels + 1) % CLASSES)[1]  # type: ignore[operator]
    with pytest.raises(AssertionError):
        assert_same(grads(game.generator), shifted)


def test_a_penalty_that_is_not_due_takes_no_part() -> None:
    game = game_of(*family("mlp"), losses.NonSaturating(), {"r2": R2(weight=5.0, interval=4)})
    samples, _ = batch()
    by_d, by_g, _ = two_pass(game_of(game.generator, game.discriminator, game.loss), samples, None)
    stage = one_stage(game, samples, step=3)
    assert stage.penalties == {}
    assert_same(grads(game.discriminator), by_d)
    assert_same(grads(game.generator), by_g)


class Drift(Penalty):
    """Of the user's own, on the fake logits themselves, so that D's gradient is no longer the loss's alone."""

    def __call__(self, real: DiscriminatorOutput, fake: DiscriminatorOutput, game: Game, labels: Tensor | None) -> Tensor:
        return fake.logits.square()


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_a_penalty_on_the_fake_logits_stays_out_of_the_generators_gradient(loss: type[Loss]) -> None:
    game = game_of(*family("mlp"), loss(), {"drift": Drift(weight=0.7)})
    samples, _ = batch()
    by_d, by_g, values = two_pass(game, samples, None)
    stage = one_stage(game, samples)
    assert_same(grads(game.discriminator), by_d)
    assert_same(grads(game.generator), by_g)
    torch.testing.assert_close(stage.penalties["drift"], values["drift"])


def test_the_batch_norm_family_mixes_samples_and_the_others_do_not() -> None:
    assert {name: family(name)[1].per_sample for name in FAMILIES} == {name: name != "dcgan-batch" for name in FAMILIES}


class Shifted(Discriminator):
    """An inner discriminator whose logits are moved: those of its first call, then those of its second."""

    def __init__(self, inner: Discriminator, real: Tensor, fake: Tensor) -> None:
        super().__init__(image_shape=SHAPE)
        self.inner, self.shifts = inner, [real, fake]

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.inner(x, labels) + self.shifts.pop(0)


MOVED = {
    "-50": [-50.0] * BATCH,
    "+50": [50.0] * BATCH,
    "-25": [-25.0] * BATCH,
    "-28": [-28.0] * BATCH,
    "+25": [25.0] * BATCH,
    "mixed": [-50.0, 50.0] * (BATCH // 2),
    "mild": [-50.0, -25.0, -3.0, 0.0, 3.0, 25.0],
}


@pytest.mark.parametrize("penalties", ["none", "r1", "r2"])
@pytest.mark.parametrize("moved", MOVED)
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_sure_discriminators_leave_the_gradients_right(loss: type[Loss], moved: str, penalties: str) -> None:
    generator, inner = family("mlp")
    d = Shifted(inner, torch.zeros(BATCH), torch.tensor(MOVED[moved]))
    game = game_of(generator, d, loss(), PENALTIES[penalties])
    samples, _ = batch()
    by_d, by_g, _ = two_pass(game, samples, None, dtype=torch.float64)
    stage = one_stage(game, samples)
    assert stage.fake_logits is not None
    torch.testing.assert_close(stage.fake_logits, torch.tensor(MOVED[moved]), rtol=0, atol=10)
    assert_same(grads(game.generator), by_g, relative=1e-3)
    assert_same(grads(game.discriminator), by_d, relative=1e-3)


@pytest.mark.parametrize("shift", [[-9.0] * BATCH, [-9.0, 9.0] * (BATCH // 2)], ids=["all", "some"])
def test_hinge_falls_back_where_the_discriminator_has_no_gradient(shift: list[float]) -> None:
    generator, inner = family("dcgan")
    game = game_of(generator, Shifted(inner, torch.zeros(BATCH), torch.tensor(shift)), losses.Hinge())
    samples, _ = batch()
    by_d, by_g, _ = two_pass(game, samples, None)
    stage = one_stage(game, samples)
    assert stage.fake_logits is not None
    assert (stage.fake_logits < -1).any()
    assert_same(grads(game.generator), by_g)
    assert_same(grads(game.discriminator), by_d)


class Tap(torch.autograd.Function):
    """Identity that counts how often a gradient passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, passes: list[int]) -> Tensor:
        ctx.passes = passes
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.passes[0] += 1
        return gradient, None


class Tapped(Discriminator):
    """Notes its calls, and for each how many gradients passed through the logits."""

    def __init__(self, inner: Discriminator, shift: float = 0.0, per_sample: bool = True) -> None:
        super().__init__(image_shape=SHAPE)
        self.inner, self.shift, self.world_size == 1 = inner, shift, per_sample
        self.calls: list[tuple[Tensor, Tensor | None]] = []
        self.backwards: list[list[int]] = []

    @property
    def per_sample(self) -> bool:
        return self.world_size == 1

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        self.calls.append((x.detach(), labels))
        self.backwards.append([0])
        return Tap.apply(self.inner(x, labels) + self.shift, self.backwards[-1])


@pytest.mark.parametrize(("penalties", "passes"), [("none", 2), ("r1", 2), ("r2", 2), ("r1+r2", 2), ("wgan_gp", 3)])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_forward_passes_of_one_stage(loss: type[Loss], penalties: str, passes: int) -> None:
    generator, inner = family("mlp")
    d = Tapped(inner)
    drawn: list[int] = []
    generator.register_forward_hook(lambda *_: drawn.append(1))
    samples, _ = batch()
    one_stage(game_of(generator, d, loss(), PENALTIES[penalties]), samples)
    assert len(d.calls) == passes
    assert len(drawn) == 1
    assert torch.equal(d.calls[0][0], samples)


@pytest.mark.parametrize(
    ("penalties", "settings", "fake_passes"),
    [
        ("none", {}, 1),
        ("r1", {}, 1),
        ("wgan_gp", {}, 1),
        ("r2", {}, 2),  # R2's own, and the loss's; none for the generator
        ("none", {"shift": -60.0}, 1),  # lent a gradient where it has none
        ("none", {"per_sample": False}, 2),
    ],
)
def test_backward_passes_of_one_stage(penalties: str, settings: dict[str, Any], fake_passes: int) -> None:
    generator, inner = family("mlp")
    d = Tapped(inner, **settings)
    one_stage(game_of(generator, d, losses.NonSaturating(), PENALTIES[penalties]), batch()[0])
    (fake,) = d.backwards[1]
    assert fake == fake_passes


def test_stages_hold_nothing_but_detached_values() -> None:
    game = game_of(*family("mlp"), losses.Hinge(), PENALTIES["r1+r2"])
    stage = one_stage(game, batch()[0])
    values = [*stage.losses.values(), *stage.penalties.values(), stage.real_logits, stage.fake_logits]
    assert all(value is not None and not value.requires_grad for value in values)
    assert stage.real_logits is not None
    assert stage.real_logits.shape == (BATCH,)


def descend(network: nn.Module, rate: float = 0.05) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            assert parameter.grad is not None
            parameter -= rate * parameter.grad
            parameter.grad = None


def clear(network: nn.Module) -> bool:
    return all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_alternating_meets_the_updated_discriminator(loss: type[Loss], steps: int) -> None:
    game = game_of(*family("mlp"), loss(), {"r1": R1(weight=2.0)})
    before = copy.deepcopy(game)
    rng = seeded("noise")
    generator, d = copy.deepcopy(game.generator), copy.deepcopy(game.discriminator)
    drawn: list[int] = []

    def draw(k: int) -> tuple[Tensor, Tensor | None]:
        drawn.append(k)
        return batch(k)

    stages = Alternating(discriminator_steps=steps).stages(game, draw, step=0, progress=0.0)
    for k in range(steps):
        stage = next(stages)
        assert stage.players == ("discriminator",)
        assert set(stage.losses) == {"discriminator"}
        assert clear(game.generator)
        samples = batch(k)[0].requires_grad_()
        images = generator(torch.randn(BATCH, LATENT, generator=rng)).detach()
        real, fake = d(samples), d(images)
        slope = torch.autograd.grad(real.sum(), samples, create_graph=True)[0]
        value = loss().discriminator(real, fake).mean()
        (value + 2.0 * 0.5 * slope.square().flatten(1).sum(1).mean()).backward()
        torch.testing.assert_close(stage.losses["discriminator"], value.detach(), rtol=1e-4, atol=1e-5)
        assert_same(grads(game.discriminator), grads(d))
        descend(game.discriminator)
        descend(d)

    (stage,) = stages
    assert drawn == list(range(steps))
    assert stage.players == ("generator",)
    assert set(stage.losses) == {"generator"}
    assert clear(game.discriminator)
    noise = torch.randn(BATCH, LATENT, generator=rng)
    value = loss().generator(d(generator(noise)), d(batch(steps - 1)[0])).mean()
    torch.testing.assert_close(stage.losses["generator"], value.detach(), rtol=1e-4, atol=1e-5)
    expected = list(torch.autograd.grad(value, list(generator.parameters())))
    assert_same(grads(game.generator), expected)

    stale = before.discriminator
    value = loss().generator(stale(generator(noise)), stale(batch(steps - 1)[0])).mean()
    with pytest.raises(AssertionError):
        assert_same(grads(game.generator), list(torch.autograd.grad(value, list(generator.parameters()))))


def test_alternating_counts_the_interval_in_updates_of_the_discriminator() -> None:
    game = game_of(*family("mlp"), losses.NonSaturating(), {"r1": R1(weight=1.0, interval=2)})
    due = []
    for step in range(2):
        for stage in Alternating(discriminator_steps=3).stages(game, batch, step=step, progress=0.0):
            if stage.players == ("discriminator",):
                due.append("r1" in stage.penalties)
    assert due == [True, False, True, False, True, False]


def test_alternating_wants_a_step_of_the_discriminator() -> None:
    with pytest.raises(ValueError, match=r"^discriminator_steps=0: "):
        Alternating(discriminator_steps=0)
    assert Alternating(discriminator_steps=5).discriminator_steps == 5
    assert Simultaneous().discriminator_steps == 1


@pytest.mark.parametrize("update", [Simultaneous, Alternating])
def test_labels_reach_player_both(update: Callable[[], Simultaneous | Alternating]) -> None:
    generator, inner = family("mlp", CLASSES)
    d, given = Tapped(inner), []
    generator.register_forward_pre_hook(lambda _, arguments: given.append(arguments[1]))
    samples, labels = batch(classes=CLASSES)
    game = game_of(generator, d, losses.Relativistic(), PENALTIES["wgan_gp"])
    list(update().stages(game, lambda k: (samples, labels), step=0, progress=0.0))
    assert len(d.calls) >= 3
    assert given
    assert all(other is labels for other in [*given, *(other for _, other in d.calls)])


@pytest.mark.parametrize("update", [Simultaneous, Alternating])
def test_no_gradient_is_left_with_the_other_player(update: Callable[[], Simultaneous | Alternating]) -> None:
    game = game_of(*family("dcgan-batch"), losses.Relativistic(), PENALTIES["r1+r2"])
    samples, _ = batch()
    for stage in update().stages(game, lambda k: (samples, None), step=0, progress=0.0):
        for player in ("generator", "discriminator"):
            assert clear(game.network(player)) is (player not in stage.players)
            game.network(player).zero_grad(set_to_none=True)
    assert samples.grad is None
    assert not samples.requires_grad
