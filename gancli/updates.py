"""Update rules: one training step of the game, as gradients. No logging, devices, ranks or optimizers.

A rule yields a `PlayerUpdate` each time gradients are ready; the caller steps the optimizers of that update's players
before it asks for the next one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd import backward, grad

from gancli.errors import SettingError
from gancli.game import DiscriminatorOutput, Game, Penalty

BatchFn = Callable[[int], tuple[Tensor, Tensor | None]]  # k -> the step's k-th real batch (B, *shape), labels (B,)


@dataclass(kw_only=True)
class PlayerUpdate:
    """The gradients of `players`, which are in their parameters' `.grad`, and what to log. All tensors are detached."""

    players: tuple[str, ...]
    losses: dict[str, Tensor]  # player -> scalar, without penalties
    penalties: dict[str, Tensor] = field(default_factory=dict)  # name -> scalar, without its weight
    real_logits: Tensor | None = None  # (B,)
    fake_logits: Tensor | None = None  # (B,)


class Update(ABC):
    """How one step updates the players.

    discriminator_steps: real batches that one step takes. divisible: whether a step may be taken in parts, by several
    processes or in micro-batches. capturable: whether a step is the same sequence of operations each time that the
    same penalties are due, without reading a value on the host, so that a CUDA graph may repeat it; penalties are
    asked about step * discriminator_steps + k.
    """

    discriminator_steps: int = 1
    divisible: bool = True
    capturable: bool = False

    @abstractmethod
    def player_updates(self, game: Game, draw: BatchFn, *, step: int, progress: float) -> Iterator[PlayerUpdate]:
        """Yields the player updates of step number `step`, at `progress` (0 to 1) of the run."""


class Simultaneous(Update):
    """Both gradients at the same point, w_G and w_D of step t: simultaneous gradient descent, in one stage.

    G runs forward once, D once on real and once on fake, and the generator's gradient comes from the
    same graph (Shen et al., CVPR 2021, eq. 6 to 9). Where D scores each sample on its own,

        d loss_G / d fake_i = (d loss_G / d logit_i) * (d logit_i / d fake_i),

    and the last factor is known, up to a number per sample, from D's own backward pass; or exactly
    from R2. Otherwise D is passed through a second time.

    Where D has nearly no gradient of its own to rescale, or none (hinge, past its margin), it is lent `least` of the
    generator's: nothing beside D's others, and far enough above float32's 1e-38 for G's to keep its digits.
    """

    capturable = True
    least = 1e-25

    def player_updates(self, game: Game, draw: BatchFn, *, step: int, progress: float) -> Iterator[PlayerUpdate]:
        samples, labels = draw(0)
        images = game.generate(len(samples), labels)
        real, fake = game.discriminate_detached(samples, labels), game.discriminate_detached(images, labels)
        loss_d, by_real, by_fake = _discriminator_loss(game, real.logits, fake.logits)
        loss_g, wanted = _generator_loss(game, fake.logits, real.logits)
        values, penalty = _penalties(game, real, fake, labels, step=step, progress=progress)
        rescale = self._can_rescale(game, values) and not fake.has_gradient
        if rescale:
            least = (self.least * wanted.abs()).clamp(min=torch.finfo(wanted.dtype).tiny)
            by_fake = torch.where(by_fake.abs() < least, least, by_fake)
        outputs, seeds = _joined((real.logits, by_real), (fake.logits, by_fake), penalty)
        weights = game.weights["discriminator"]
        if any(game.penalties[name].player == "both" for name in values):
            weights = weights + game.weights["generator"]  # which only those reach: the samples are cut off from it

        if game.per_sample and fake.has_gradient:
            to_images = _per_sample(wanted, images) * fake.gradient().detach()
            backward(outputs, seeds, inputs=weights)
        elif rescale:
            backward(outputs, seeds, inputs=[*weights, fake.inputs])
            assert fake.inputs.grad is not None
            to_images = _per_sample(wanted / by_fake, images) * fake.inputs.grad
        else:
            (to_images,) = grad(fake.logits, fake.inputs, wanted, retain_graph=True)
            backward(outputs, seeds, inputs=weights)
        backward(images, to_images, inputs=game.weights["generator"])

        yield PlayerUpdate(
            players=("discriminator", "generator"),
            losses={"discriminator": loss_d, "generator": loss_g},
            penalties=values,
            real_logits=real.logits.detach(),
            fake_logits=fake.logits.detach(),
        )

    @staticmethod
    def _can_rescale(game: Game, active: dict[str, Tensor]) -> bool:
        return game.per_sample and not any(game.penalties[name].reaches != "nothing" for name in active)


class Alternating(Update):
    """`discriminator_steps` updates of D, then one of G against the D that they made (Goodfellow et al., 2014)."""

    capturable = True

    def __init__(self, *, discriminator_steps: int = 1) -> None:
        if discriminator_steps < 1:
            raise SettingError(f"discriminator_steps={discriminator_steps}: at least 1")
        self.discriminator_steps = discriminator_steps

    def player_updates(self, game: Game, draw: BatchFn, *, step: int, progress: float) -> Iterator[PlayerUpdate]:
        for k in range(self.discriminator_steps):
            samples, labels = draw(k)
            with torch.no_grad():
                images = game.generate(len(samples), labels)
            real, fake = game.discriminate_detached(samples, labels), game.discriminate_detached(images, labels)
            loss_d, by_real, by_fake = _discriminator_loss(game, real.logits, fake.logits)
            count = step * self.discriminator_steps + k
            values, penalty = _penalties(game, real, fake, labels, step=count, progress=progress)
            outputs, seeds = _joined((real.logits, by_real), (fake.logits, by_fake), penalty)
            backward(outputs, seeds, inputs=game.weights["discriminator"])
            yield PlayerUpdate(
                players=("discriminator",),
                losses={"discriminator": loss_d},
                penalties=values,
                real_logits=real.logits.detach(),
                fake_logits=fake.logits.detach(),
            )

        images = game.generate(len(samples), labels)
        fake = game.discriminate_detached(images, labels)
        with torch.no_grad():
            real_logits = game.discriminate_detached(samples, labels).logits if game.loss.relativistic else fake.logits
        loss_g, wanted = _generator_loss(game, fake.logits, real_logits)
        (to_images,) = grad(fake.logits, fake.inputs, wanted)
        backward(images, to_images, inputs=game.weights["generator"])
        shared = {name: penalty for name, penalty in game.penalties.items() if penalty.player == "both"}
        _, penalty = _penalties(game, real, fake, labels, step=count, progress=progress, among=shared)
        if penalty is not None:
            backward(penalty, inputs=game.weights["generator"])
        yield PlayerUpdate(players=("generator",), losses={"generator": loss_g})


class Extragradient(Simultaneous):
    """A step ahead to see where the game goes, then a step from where it was by the gradients found there.

    Both steps are those of the players' optimizers (Gidel et al., ICLR 2019, algorithm 2; Korpelevich, 1976);
    noise is drawn anew for the second.
    """

    divisible = False

    def player_updates(self, game: Game, draw: BatchFn, *, step: int, progress: float) -> Iterator[PlayerUpdate]:
        weights: list[Tensor] = [*game.weights["discriminator"], *game.weights["generator"]]
        before = [weight.detach().clone() for weight in weights]
        yield from super().player_updates(game, draw, step=step, progress=progress)
        for update in super().player_updates(game, draw, step=step, progress=progress):
            with torch.no_grad():
                torch._foreach_copy_(weights, before)
            yield update


def _discriminator_loss(game: Game, real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean loss and its gradients with respect to the logits, (B,) each."""
    real, fake = real_logits.detach().requires_grad_(), fake_logits.detach().requires_grad_()
    value = game.loss.discriminator(real, fake).mean()
    by_real, by_fake = grad(value, (real, fake))
    return value.detach(), by_real, by_fake


def _generator_loss(game: Game, fake_logits: Tensor, real_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Mean loss and its gradient with respect to the fake logits, (B,)."""
    fake = fake_logits.detach().requires_grad_()
    value = game.loss.generator(fake, real_logits.detach()).mean()
    return value.detach(), grad(value, fake)[0]


def _penalties(
    game: Game,
    real: DiscriminatorOutput,
    fake: DiscriminatorOutput,
    labels: Tensor | None,
    *,
    step: int,
    progress: float,
    among: dict[str, Penalty] | None = None,
) -> tuple[dict[str, Tensor], Tensor | None]:
    """The mean of each penalty, of all or `among` some, that is due, detached, and their weighted sum or None."""
    penalties = game.penalties if among is None else among
    due = {name: penalty for name, penalty in penalties.items() if penalty.due(step, progress)}
    means = {name: penalty(real, fake, game, labels).mean() for name, penalty in due.items()}
    if not means:
        return {}, None
    total = torch.stack([due[name].factor(progress) * mean for name, mean in means.items()]).sum()
    return {name: mean.detach() for name, mean in means.items()}, total


def _joined(
    real: tuple[Tensor, Tensor], fake: tuple[Tensor, Tensor], penalty: Tensor | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and the gradients with respect to them, for one backward pass through D and the penalties."""
    pairs = [real, fake] if penalty is None else [real, fake, (penalty, torch.ones_like(penalty))]
    return [output for output, _ in pairs], [seed for _, seed in pairs]


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    """(B,) as (B, 1, 1, …), to multiply (B, *shape)."""
    return values.view(-1, *[1] * (like.ndim - 1))
