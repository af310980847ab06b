"""Update rules yield the gradients that plain autograd computes for both players' losses and penalties."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gancli import losses
from gancli.errors import SettingError
from gancli.game import DiscriminatorOutput, Game, Penalty
from gancli.losses import Loss
from gancli.networks.base import Discriminator, Generator
from gancli.networks.dcgan import DCGANDiscriminator, DCGANGenerator
from gancli.networks.mlp import MLPDiscriminator, MLPGenerator
from gancli.networks.resnet import ResNetDiscriminator, ResNetGenerator
from gancli.penalties import R1, R2, WGANGP
from gancli.randomness import Stream, seeded
from gancli.updates import Alternating, Extragradient, PlayerUpdate, Simultaneous, Update

BATCH, LATENT, SHAPE, CLASSES = 6, 5, (1, 16, 16), 3
SMALL = {"channels": 4, "max_channels": 8}


LOSSES: list[type[Loss]] = [
    kind for kind in vars(losses).values() if isinstance(kind, type) and issubclass(kind, Loss) and kind is not Loss
]

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
    torch.set_num_threads(1)  # faster for networks this small
    yield
    torch.set_num_threads(threads)


class NormalPrior:
    dim = LATENT

    def sample_batch(self, count: int, rng: torch.Generator) -> Tensor:
        return torch.randn(count, LATENT, generator=rng)


def game_of(
    generator: Generator, discriminator: Discriminator, loss: Loss, penalties: dict[str, Penalty] | None = None
) -> Game:
    return Game(
        generator=generator,
        discriminator=discriminator,
        loss=loss,
        prior=NormalPrior(),  # type: ignore[arg-type]
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


def penalised(
    game: Game,
    discriminator: Discriminator,
    value: Tensor,
    real: tuple[Tensor, Tensor],
    fake: tuple[Tensor, Tensor],
    labels: Tensor | None,
    rng: torch.Generator,
    step: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the loss `value` plus the penalties that are due, and each penalty; real, fake: samples and logits."""
    values = {}
    for name, penalty in game.penalties.items():
        if not penalty.due(step, 0.0):
            continue
        if name == "wgan_gp":
            share = torch.rand(BATCH, generator=rng).to(real[0].dtype).view(BATCH, 1, 1, 1)
            points = (share * real[0] + (1 - share) * fake[0]).detach().requires_grad_()
            (slope,) = torch.autograd.grad(discriminator(points, labels).sum(), points, create_graph=True)
            values[name] = (slope.flatten(1).norm(dim=1) - 1).square().mean()
        elif name == "drift":
            values[name] = fake[1].square().mean()
        else:
            samples, logits = real if name == "r1" else fake
            (slope,) = torch.autograd.grad(logits.sum(), samples, create_graph=True)
            values[name] = 0.5 * slope.square().flatten(1).sum(1).mean()
        value = value + penalty.weight * penalty.interval * values[name]  # type: ignore[operator]
    return value, {name: penalty.detach() for name, penalty in values.items()}


def reference(
    game: Game, samples: Tensor, labels: Tensor | None, *, dtype: torch.dtype = torch.float32, step: int = 0
) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
    """Returns D's gradients, G's gradients, losses and penalties, by plain autograd at the same weights."""
    rng = seeded("noise")
    generator, discriminator = copy.deepcopy(game.generator).to(dtype), copy.deepcopy(game.discriminator).to(dtype)
    samples = samples.to(dtype).requires_grad_()
    images = generator(torch.randn(BATCH, LATENT, generator=rng).to(dtype), labels)
    real, fake = discriminator(samples, labels), discriminator(images, labels)
    loss_d = game.loss.discriminator(real, fake).mean()
    loss_g = game.loss.generator(fake, real).mean()
    total, penalties = penalised(game, discriminator, loss_d, (samples, real), (images, fake), labels, rng, step)
    grads_d = torch.autograd.grad(total, list(discriminator.parameters()), retain_graph=True)
    grads_g = torch.autograd.grad(loss_g, list(generator.parameters()))
    return list(grads_d), list(grads_g), {"discriminator": loss_d.detach(), "generator": loss_g.detach(), **penalties}


def simultaneous(game: Game, samples: Tensor, labels: Tensor | None = None, *, step: int = 0) -> PlayerUpdate:
    (update,) = Simultaneous().player_updates(game, lambda k: (samples, labels), step=step, progress=0.5)
    return update


def grads(network: nn.Module) -> list[Tensor]:
    gradients = [parameter.grad for parameter in network.parameters()]
    assert all(gradient is not None for gradient in gradients)
    return gradients  # type: ignore[return-value]


def assert_close(gradients: list[Tensor], expected: list[Tensor], *, relative: float = 1e-4) -> None:
    """Each within `relative` of its own norm; some are zero up to rounding, hence the term with the norm of all."""
    total_norm = torch.cat([gradient.flatten() for gradient in expected]).norm()
    assert total_norm > 0
    for gradient, reference_gradient in zip(gradients, expected, strict=True):
        error = (gradient.to(reference_gradient.dtype) - reference_gradient).norm()
        norm = reference_gradient.norm()
        assert error <= relative * norm + 1e-2 * relative * total_norm, (error, norm, total_norm)


@pytest.mark.parametrize(
    ("name", "loss", "penalties"),
    [
        *product(["mlp"], LOSSES, PENALTIES),
        *product(sorted(FAMILIES.keys() - {"mlp"}), [losses.Hinge, losses.Relativistic], ["none", "r1+r2", "wgan_gp"]),
    ],
)
def test_simultaneous_gradients_equal_plain_autograd(name: str, loss: type[Loss], penalties: str) -> None:
    game = game_of(*family(name), loss(), PENALTIES[penalties])
    samples, labels = batch()
    grads_d, grads_g, values = reference(game, samples, labels)
    update = simultaneous(game, samples, labels)
    assert_close(grads(game.discriminator), grads_d)
    assert_close(grads(game.generator), grads_g)
    assert update.players == ("discriminator", "generator")
    torch.testing.assert_close({**update.losses, **update.penalties}, values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "dcgan-spectral", "dcgan-batch"])
def test_simultaneous_gradients_with_labels_equal_plain_autograd(name: str) -> None:
    game = game_of(*family(name, CLASSES), losses.NonSaturating(), PENALTIES["wgan_gp"])
    samples, labels = batch(classes=CLASSES)
    grads_d, grads_g, _ = reference(game, samples, labels)
    simultaneous(game, samples, labels)
    assert_close(grads(game.discriminator), grads_d)
    assert_close(grads(game.generator), grads_g)
    shifted = reference(game, samples, (labels + 1) % CLASSES)[1]  # type: ignore[operator]
    with pytest.raises(AssertionError):
        assert_close(grads(game.generator), shifted)


def test_a_penalty_that_is_not_due_has_no_effect() -> None:
    game = game_of(*family("mlp"), losses.NonSaturating(), {"r2": R2(weight=5.0, interval=4)})
    samples, _ = batch()
    grads_d, grads_g, _ = reference(game, samples, None, step=3)
    update = simultaneous(game, samples, step=3)
    assert update.penalties == {}
    assert_close(grads(game.discriminator), grads_d)
    assert_close(grads(game.generator), grads_g)


class Drift(Penalty):
    """A user's penalty on the fake logits, so that D's gradient at the fakes is not that of its loss alone."""

    def __call__(
        self, real: DiscriminatorOutput, fake: DiscriminatorOutput, game: Game, labels: Tensor | None
    ) -> Tensor:
        return fake.logits.square()


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_a_penalty_on_the_fake_logits_does_not_change_the_generators_gradient(loss: type[Loss]) -> None:
    game = game_of(*family("mlp"), loss(), {"drift": Drift(weight=0.7)})
    samples, _ = batch()
    grads_d, grads_g, values = reference(game, samples, None)
    update = simultaneous(game, samples)
    assert_close(grads(game.discriminator), grads_d)
    assert_close(grads(game.generator), grads_g)
    torch.testing.assert_close(update.penalties["drift"], values["drift"])


class Shifted(Discriminator):
    """An inner discriminator with `real` added to the logits of the first call and `fake` to those of the second."""

    def __init__(self, inner: Discriminator, real: Tensor, fake: Tensor) -> None:
        super().__init__(image_shape=SHAPE)
        self.inner, self.shifts = inner, [real, fake]

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.inner(x, labels) + self.shifts.pop(0)


SHIFTS = {
    "-50": [-50.0] * BATCH,
    "-28": [-28.0] * BATCH,
    "+50": [50.0] * BATCH,
    "from -50 to 25": [-50.0, -25.0, -3.0, 0.0, 3.0, 25.0],
}


@pytest.mark.parametrize("penalties", ["none", "r2"])
@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_gradients_are_precise_for_large_logits(loss: type[Loss], shift: str, penalties: str) -> None:
    generator, inner = family("mlp")
    d = Shifted(inner, torch.zeros(BATCH), torch.tensor(SHIFTS[shift]))
    game = game_of(generator, d, loss(), PENALTIES[penalties])
    samples, _ = batch()
    grads_d, grads_g, _ = reference(game, samples, None, dtype=torch.float64)
    update = simultaneous(game, samples)
    assert update.fake_logits is not None
    torch.testing.assert_close(update.fake_logits, torch.tensor(SHIFTS[shift]), rtol=0, atol=10)
    assert_close(grads(game.generator), grads_g, relative=1e-3)
    assert_close(grads(game.discriminator), grads_d, relative=1e-3)


@pytest.mark.parametrize("shift", [[-9.0] * BATCH, [-9.0, 9.0] * (BATCH // 2)], ids=["all", "some"])
def test_hinge_gives_the_generator_a_gradient_beyond_the_discriminators_margin(shift: list[float]) -> None:
    generator, inner = family("dcgan")
    game = game_of(generator, Shifted(inner, torch.zeros(BATCH), torch.tensor(shift)), losses.Hinge())
    samples, _ = batch()
    grads_d, grads_g, _ = reference(game, samples, None)
    update = simultaneous(game, samples)
    assert update.fake_logits is not None
    assert (update.fake_logits < -1).any()
    assert_close(grads(game.generator), grads_g)
    assert_close(grads(game.discriminator), grads_d)


class TwoHeads(Discriminator):
    """Logits (B, 2) of two networks."""

    def __init__(self) -> None:
        super().__init__(image_shape=SHAPE)
        self.networks = nn.ModuleList(DCGANDiscriminator(image_shape=SHAPE, **SMALL) for _ in range(2))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return torch.stack([network(x) for network in self.networks], 1)


@pytest.mark.parametrize("penalties", ["none", "r1", "r1+r2"])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_the_loss_of_several_heads_is_the_mean_of_theirs(loss: type[Loss], penalties: str) -> None:
    torch.manual_seed(3)
    generator, discriminator = DCGANGenerator(latent_dim=LATENT, image_shape=SHAPE, **SMALL), TwoHeads()
    game = game_of(generator, discriminator, loss(), PENALTIES[penalties])
    samples, _ = batch()
    noise = torch.randn(BATCH, LATENT, generator=seeded("noise"))
    images = copy.deepcopy(generator)(noise)
    found = simultaneous(game, samples)

    real, fake = samples.requires_grad_(), images.detach().requires_grad_()
    logits = [[network(side) for network in discriminator.networks] for side in (real, fake)]
    of_d = sum(game.loss.discriminator(*pair).mean() for pair in zip(*logits, strict=True)) / 2
    of_g = sum(game.loss.generator(b, a.detach()).mean() for a, b in zip(*logits, strict=True)) / 2
    (at_images,) = torch.autograd.grad(of_g, fake, retain_graph=True)
    for penalty, side, heads in (("r1", real, logits[0]), ("r2", fake, logits[1])):
        if penalty in game.penalties:
            (slope,) = torch.autograd.grad(sum(heads).sum() / 2, side, create_graph=True)
            one = game.penalties[penalty]
            of_d = of_d + one.factor(0.0) * 0.5 * slope.flatten(1).square().sum(1).mean()
    assert_close(grads(discriminator), list(torch.autograd.grad(of_d, list(discriminator.parameters()))))
    expected = torch.autograd.grad(game.generator(noise), list(generator.parameters()), at_images)
    assert_close(grads(generator), list(expected))
    assert found.real_logits is not None
    torch.testing.assert_close(found.real_logits, sum(logits[0]) / 2)


class CountBackward(torch.autograd.Function):
    """Identity that counts how many gradients pass through it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, passes: list[int]) -> Tensor:
        ctx.passes = passes
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.passes[0] += 1
        return gradient, None


class CountingDiscriminator(Discriminator):
    """Records its calls, and for each call how many gradients passed through the logits."""

    per_sample = True

    def __init__(self, inner: Discriminator, shift: float = 0.0, per_sample: bool = True) -> None:
        super().__init__(image_shape=SHAPE)
        self.inner, self.shift, self.per_sample = inner, shift, per_sample
        self.calls: list[tuple[Tensor, Tensor | None]] = []
        self.backwards: list[list[int]] = []

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        self.calls.append((x.detach(), labels))
        self.backwards.append([0])
        return CountBackward.apply(self.inner(x, labels) + self.shift, self.backwards[-1])


@pytest.mark.parametrize(("penalties", "passes"), [("none", 2), ("r1", 2), ("r2", 2), ("r1+r2", 2), ("wgan_gp", 3)])
@pytest.mark.parametrize("loss", [losses.Hinge, losses.Relativistic])
def test_forward_passes_of_a_simultaneous_step(loss: type[Loss], penalties: str, passes: int) -> None:
    generator, inner = family("mlp")
    d = CountingDiscriminator(inner)
    generated: list[int] = []
    generator.register_forward_hook(lambda *_: generated.append(1))
    samples, _ = batch()
    simultaneous(game_of(generator, d, loss(), PENALTIES[penalties]), samples)
    assert len(d.calls) == passes
    assert len(generated) == 1
    assert torch.equal(d.calls[0][0], samples)


@pytest.mark.parametrize(
    ("penalties", "settings", "fake_passes"),
    [
        ("none", {}, 1),
        ("r1", {}, 1),
        ("wgan_gp", {}, 1),
        ("r2", {}, 2),  # one for R2, one for the loss, none for the generator
        ("none", {"shift": -60.0}, 1),  # also where D's loss has no gradient
        ("none", {"per_sample": False}, 2),
    ],
)
def test_backward_passes_of_simultaneous(penalties: str, settings: dict[str, Any], fake_passes: int) -> None:
    generator, inner = family("mlp")
    d = CountingDiscriminator(inner, **settings)
    simultaneous(game_of(generator, d, losses.NonSaturating(), PENALTIES[penalties]), batch()[0])
    (fake,) = d.backwards[1]
    assert fake == fake_passes


def test_player_updates_hold_detached_values_only() -> None:
    game = game_of(*family("mlp"), losses.Hinge(), PENALTIES["r1+r2"])
    update = simultaneous(game, batch()[0])
    values = [*update.losses.values(), *update.penalties.values(), update.real_logits, update.fake_logits]
    assert all(value is not None and not value.requires_grad for value in values)
    assert update.real_logits is not None
    assert update.real_logits.shape == (BATCH,)


def descend(network: nn.Module, rate: float = 0.05) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            assert parameter.grad is not None
            parameter -= rate * parameter.grad
            parameter.grad = None


def has_no_gradient(network: nn.Module) -> bool:
    return all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("penalties", PENALTIES)
@pytest.mark.parametrize("loss", LOSSES)
def test_alternating_updates_the_generator_against_the_updated_discriminator(loss: type[Loss], penalties: str) -> None:
    game = game_of(*family("mlp"), loss(), PENALTIES[penalties])
    rng = seeded("noise")
    generator, d = copy.deepcopy(game.generator), copy.deepcopy(game.discriminator)
    stale = copy.deepcopy(d)
    drawn: list[int] = []

    def draw(k: int) -> tuple[Tensor, Tensor | None]:
        drawn.append(k)
        return batch(k)

    updates = Alternating(discriminator_steps=2).player_updates(game, draw, step=0, progress=0.0)
    for k in range(2):
        update = next(updates)
        assert update.players == ("discriminator",)
        assert has_no_gradient(game.generator)
        samples = batch(k)[0].requires_grad_()
        images = generator(torch.randn(BATCH, LATENT, generator=rng)).detach().requires_grad_()
        real, fake = d(samples), d(images)
        value = loss().discriminator(real, fake).mean()
        total, values = penalised(game, d, value, (samples, real), (images, fake), None, rng, k)
        total.backward(inputs=list(d.parameters()))
        values["discriminator"] = value.detach()
        torch.testing.assert_close({**update.losses, **update.penalties}, values, rtol=1e-4, atol=1e-5)
        assert_close(grads(game.discriminator), grads(d))
        descend(game.discriminator)
        descend(d)

    (update,) = updates
    assert drawn == [0, 1]
    assert update.players == ("generator",)
    assert has_no_gradient(game.discriminator)
    noise = torch.randn(BATCH, LATENT, generator=rng)
    value = loss().generator(d(generator(noise)), d(batch(1)[0])).mean()
    torch.testing.assert_close(update.losses, {"generator": value.detach()}, rtol=1e-4, atol=1e-5)
    assert_close(grads(game.generator), list(torch.autograd.grad(value, list(generator.parameters()))))

    value = loss().generator(stale(generator(noise)), stale(batch(1)[0])).mean()
    with pytest.raises(AssertionError):
        assert_close(grads(game.generator), list(torch.autograd.grad(value, list(generator.parameters()))))


def test_alternating_counts_the_interval_in_updates_of_the_discriminator() -> None:
    game = game_of(*family("mlp"), losses.NonSaturating(), {"r1": R1(weight=1.0, interval=2)})
    due = []
    for step in range(2):
        for update in Alternating(discriminator_steps=3).player_updates(game, batch, step=step, progress=0.0):
            if update.players == ("discriminator",):
                due.append("r1" in update.penalties)
    assert due == [True, False, True, False, True, False]


def test_alternating_needs_at_least_one_discriminator_step() -> None:
    with pytest.raises(SettingError, match=r"^discriminator_steps=0: at least 1"):
        Alternating(discriminator_steps=0)
    assert Alternating(discriminator_steps=5).discriminator_steps == 5
    assert Simultaneous().discriminator_steps == 1


@pytest.mark.parametrize("penalties", PENALTIES)
@pytest.mark.parametrize("loss", LOSSES)
def test_extragradient_steps_from_the_original_weights_by_the_gradients_at_the_look_ahead_point(
    loss: type[Loss], penalties: str
) -> None:
    game = game_of(*family("mlp"), loss(), PENALTIES[penalties])
    expected = copy.deepcopy(game)
    samples, _ = batch()
    updates = Extragradient().player_updates(game, lambda k: (samples, None), step=0, progress=0.5)
    observed = 0
    for update in updates:
        observed += update.real_logits is not None
        assert update.players == ("discriminator", "generator")
        for player in update.players:
            descend(game.network(player))
    assert observed == 1, "the batch is shown to an adaptive augmentation once"
    look_ahead = copy.deepcopy(expected)
    simultaneous(look_ahead, samples)
    for player in update.players:
        descend(look_ahead.network(player))
    simultaneous(look_ahead, samples)
    for player in update.players:
        network = expected.network(player)
        for parameter, gradient in zip(network.parameters(), grads(look_ahead.network(player)), strict=True):
            parameter.grad = gradient
        descend(network)
        for name, weight in network.state_dict().items():
            torch.testing.assert_close(game.network(player).state_dict()[name], weight)


@pytest.mark.parametrize("update", [Simultaneous, Alternating, Extragradient])
def test_labels_reach_both_players_and_the_penalties(update: Callable[[], Update]) -> None:
    generator, inner = family("mlp", CLASSES)
    d = CountingDiscriminator(inner)
    generator_labels = []
    generator.register_forward_pre_hook(lambda _, arguments: generator_labels.append(arguments[1]))
    samples, labels = batch(classes=CLASSES)
    game = game_of(generator, d, losses.Relativistic(), PENALTIES["wgan_gp"])
    list(update().player_updates(game, lambda k: (samples, labels), step=0, progress=0.0))
    assert len(d.calls) >= 3
    assert generator_labels
    assert all(passed is labels for passed in [*generator_labels, *(passed for _, passed in d.calls)])


@pytest.mark.parametrize("update", [Simultaneous, Alternating])
def test_only_the_updated_players_have_gradients(update: Callable[[], Update]) -> None:
    game = game_of(*family("dcgan-batch"), losses.Relativistic(), PENALTIES["r1+r2"])
    samples, _ = batch()
    for player_update in update().player_updates(game, lambda k: (samples, None), step=0, progress=0.0):
        for player in ("generator", "discriminator"):
            assert has_no_gradient(game.network(player)) is (player not in player_update.players)
            game.network(player).zero_grad(set_to_none=True)
    assert samples.grad is None
    assert not samples.requires_grad
