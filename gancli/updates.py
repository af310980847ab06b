"""Update rules: how one training step computes the gradients of the players.

A rule yields a `PlayerUpdate` each time gradients are ready, and the caller steps the optimizers of that update's
players before it asks for the next one. Rules know nothing of optimizers, devices, processes or logging.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.autograd import backward, grad

from gancli.errors import require_at_least, require_between
from gancli.game import DiscriminatorOutput, Game, Penalty

BatchFn = Callable[[int], tuple[Tensor, Tensor | None]]  # k -> the step's k-th real batch (B, *shape), labels (B,)


@dataclass(kw_only=True)
class PlayerUpdate:
    """What is logged of an update of `players`, whose gradients are in the `.grad` of their parameters.

    All tensors are detached.
    """

    players: tuple[str, ...]
    losses: dict[str, Tensor]  # player -> 0-dim, without penalties
    penalties: dict[str, Tensor] = field(default_factory=dict)  # name -> 0-dim, without its weight
    real_logits: Tensor | None = None  # (B,)
    fake_logits: Tensor | None = None  # (B,)


class Update(ABC):
    """Base of the update rules.

    discriminator_steps: real batches per step. divisible: whether several processes or micro-batches may each compute a
    part of the batch. capturable: whether a step in which the same penalties are due always runs the same operations
    and reads no value on the host, so that a CUDA graph can replay it; whether a penalty is due must depend on
    step * discriminator_steps + k for the k-th batch.
    """

    discriminator_steps: int = 1
    divisible: bool = True
    capturable: bool = False

    @abstractmethod
    def player_updates(self, game: Game, draw: BatchFn, *, step: int, progress: float) -> Iterator[PlayerUpdate]:
        """Yields the player updates of step number `step`, at `progress` (0 to 1) of the run."""


class Simultaneous(Update):
    """Simultaneous gradient descent: both gradients at the same weights of G and D, in one stage.

    G runs forward once, D once on real and once on fake samples, and G's gradient is computed from the same graph
    (Shen et al., CVPR 2021, eq. 6 to 9). If D scores each sample on its own,

        d loss_G / d fake_i = (d loss_G / d logit_i) * (d logit_i / d fake_i).

    D's own backward pass computes the last factor times d loss_D / d logit_i, which is then divided out; R2 computes it
    exactly. Otherwise, and with logits of several heads, the gradient passes through D a second time.

    To be divided out, d loss_D / d logit_i must not vanish, as it does for the hinge loss beyond its margin. It is
    therefore kept at or above `min_ratio` of d loss_G / d logit_i: too small to change D's gradient, but far enough
    above 1e-38, the smallest normal float32, for G's gradient to keep its precision.
    """

    capturable = True
    min_ratio = 1e-25

    def player_updates(self, game: Game, draw: BatchFn, *, step: int, progress: float) -> Iterator[PlayerUpdate]:
        samples, labels = draw(0)
        images = game.generate(len(samples), labels)
        real, fake = game.discriminate_detached(samples, labels), game.discriminate_detached(images, labels)
        loss_d, grad_d_real, grad_d_fake = _discriminator_loss(game, real.logits, fake.logits)
        loss_g, grad_g_fake = _generator_loss(game, fake.logits, real.logits)
        values, penalty = _penalties(game, real, fake, labels, step=step, progress=progress)
        one_head = fake.logits.ndim == 1
        rescale = one_head and self._can_rescale(game, values) and not fake.has_gradient
        if rescale:
            minimum = (self.min_ratio * grad_g_fake.abs()).clamp(min=torch.finfo(grad_g_fake.dtype).tiny)
            grad_d_fake = torch.where(grad_d_fake.abs() < minimum, minimum, grad_d_fake)
        outputs, grad_outputs = _backward_arguments((real.logits, grad_d_real), (fake.logits, grad_d_fake), penalty)
        weights = game.weights["discriminator"]
        if any(game.penalties[name].player == "both" for name in values):
            # Only such penalties depend on the generator's weights; the logits are of detached samples.
            weights = weights + game.weights["generator"]

        if one_head and game.per_sample and fake.has_gradient:
            grad_images = _per_sample(grad_g_fake, images) * fake.gradient().detach()
            backward(outputs, grad_outputs, inputs=weights)
        elif rescale:
            backward(outputs, grad_outputs, inputs=[*weights, fake.inputs])
            assert fake.inputs.grad is not None
            grad_images = _per_sample(grad_g_fake / grad_d_fake, images) * fake.inputs.grad
        else:
            (grad_images,) = grad(fake.logits, fake.inputs, grad_g_fake, retain_graph=True)
            backward(outputs, grad_outputs, inputs=weights)
        backward(images, grad_images, inputs=game.weights["generator"])

        yield PlayerUpdate(
            players=("discriminator", "generator"),
            losses={"discriminator": loss_d, "generator": loss_g},
            penalties=values,
            real_logits=real.mean_logits.detach(),
            fake_logits=fake.mean_logits.detach(),
        )

    @staticmethod
    def _can_rescale(game: Game, due: Iterable[str]) -> bool:
        """Whether D's gradient at the fake samples is that of its loss alone. due: names of penalties."""
        return game.per_sample and all(game.penalties[name].reaches == "nothing" for name in due)


class Alternating(Update):
    """`discriminator_steps` updates of D, then one of G against the updated D (Goodfellow et al., NeurIPS 2014).

    Raises SettingError.
    """

    capturable = True

    def __init__(self, *, discriminator_steps: int = 1) -> None:
        require_at_least(1, discriminator_steps=discriminator_steps)
        require_between(1, 1_000, discriminator_steps=discriminator_steps)
        self.discriminator_steps = discriminator_steps

    def player_updates(self, game: Game, draw: BatchFn, *, step: int, progress: float) -> Iterator[PlayerUpdate]:
        for k in range(self.discriminator_steps):
            samples, labels = draw(k)
            with torch.no_grad():
                images = game.generate(len(samples), labels)
            real, fake = game.discriminate_detached(samples, labels), game.discriminate_detached(images, labels)
            loss_d, grad_d_real, grad_d_fake = _discriminator_loss(game, real.logits, fake.logits)
            count = step * self.discriminator_steps + k
            values, penalty = _penalties(game, real, fake, labels, step=count, progress=progress)
            outputs, grad_outputs = _backward_arguments((real.logits, grad_d_real), (fake.logits, grad_d_fake), penalty)
            backward(outputs, grad_outputs, inputs=game.weights["discriminator"])
            yield PlayerUpdate(
                players=("discriminator",),
                losses={"discriminator": loss_d},
                penalties=values,
                real_logits=real.mean_logits.detach(),
                fake_logits=fake.mean_logits.detach(),
            )

        images = game.generate(len(samples), labels)
        fake = game.discriminate_detached(images, labels)
        with torch.no_grad():
            real_logits = game.discriminate_detached(samples, labels).logits if game.loss.relativistic else fake.logits
        loss_g, grad_g_fake = _generator_loss(game, fake.logits, real_logits)
        (grad_images,) = grad(fake.logits, fake.inputs, grad_g_fake)
        backward(images, grad_images, inputs=game.weights["generator"])
        shared = {name: penalty for name, penalty in game.penalties.items() if penalty.player == "both"}
        _, penalty = _penalties(game, real, fake, labels, step=count, progress=progress, penalties=shared)
        if penalty is not None:
            backward(penalty, inputs=game.weights["generator"])
        yield PlayerUpdate(players=("generator",), losses={"generator": loss_g})


class Extragradient(Simultaneous):
    """A simultaneous step to a look-ahead point, then a step from the original weights by the gradients found there.

    Both steps are made by the players' optimizers (Gidel et al., ICLR 2019, algorithm 2; Korpelevich, 1976), and the
    second one draws new noise. Not divisible: the first part of a batch would restore the original weights before the
    others have computed their gradients at the look-ahead point.
    """

    divisible = False

    def player_updates(self, game: Game, draw: BatchFn, *, step: int, progress: float) -> Iterator[PlayerUpdate]:
        weights: list[Tensor] = [*game.weights["discriminator"], *game.weights["generator"]]
        before = [weight.detach().clone() for weight in weights]
        for update in super().player_updates(game, draw, step=step, progress=progress):
            yield replace(update, real_logits=None, fake_logits=None)  # of the same real batch as those below
        for update in super().player_updates(game, draw, step=step, progress=progress):
            with torch.no_grad():
                torch._foreach_copy_(weights, before)
            yield update


def _discriminator_loss(game: Game, real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the discriminator's mean loss and its gradients with respect to the real and fake logits."""
    real, fake = real_logits.detach().requires_grad_(), fake_logits.detach().requires_grad_()
    value = game.loss.discriminator(real, fake).mean()
    grad_real, grad_fake = grad(value, (real, fake))
    return value.detach(), grad_real, grad_fake


def _generator_loss(game: Game, fake_logits: Tensor, real_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the generator's mean loss and its gradient with respect to the fake logits."""
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
    penalties: Mapping[str, Penalty] | None = None,
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Returns the detached mean of each penalty that is due, and their weighted sum, None if none is due.

    penalties: those to consider; None for all of the game.
    """
    considered = game.penalties if penalties is None else penalties
    due = {name: penalty for name, penalty in considered.items() if penalty.due(step, progress)}
    means = {name: penalty(real, fake, game, labels).mean() for name, penalty in due.items()}
    if not means:
        return {}, None
    total = torch.stack([due[name].factor(progress) * mean for name, mean in means.items()]).sum()
    return {name: mean.detach() for name, mean in means.items()}, total


def _backward_arguments(
    real: tuple[Tensor, Tensor], fake: tuple[Tensor, Tensor], penalty: Tensor | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Returns the outputs and their gradients for one backward pass through D and the penalty.

    real, fake: logits and the loss gradients with respect to them, (B,) or (B, K).
    """
    pairs = [real, fake] if penalty is None else [real, fake, (penalty, torch.ones_like(penalty))]
    return [output for output, _ in pairs], [gradient for _, gradient in pairs]


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Returns values (B,) as (B, 1, 1, …), to multiply `like` (B, *shape)."""
    return values.view(-1, *[1] * (like.ndim - 1))
