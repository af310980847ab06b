"""Penalties on the discriminator, several at once.

Each gets samples *with the logits already computed for them*, so that R1 and R2 cost no second forward
pass. Notation: grad is the gradient of the logit with respect to the sample, |.| the Euclidean norm.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from gancli.game import Game, Scored
from gancli.schedules import Schedule, at


def squared_norm(gradient: Tensor) -> Tensor:
    """(B, *shape) -> (B,)"""
    return gradient.flatten(1).square().sum(1)


class Penalty(ABC):
    """weight: factor in the discriminator's loss, a number or a schedule. interval: computed on every
    interval-th step only, times `interval`, so that the mean strength stays (lazy regularisation,
    Karras et al., CVPR 2020, appendix B).

    touches_fake: whether the value depends on the fake samples' own logits or gradients; those that
    look at real samples or at points of their own set it to False, which keeps the one-stage step cheap.
    one_sample: whether it asks for a certain norm of one sample's gradient, which packs do not have.
    both_players: whether the generator minimises it too.
    """

    touches_fake: bool = True
    one_sample: bool = False
    both_players: bool = False

    def __init__(self, *, weight: float | Schedule, interval: int = 1) -> None:
        if not isinstance(weight, Schedule) and weight < 0:
            raise ValueError(f"weight={weight}: a penalty's weight is 0 or more")
        if interval < 1:
            raise ValueError(f"interval={interval}: a number of steps, at least 1")
        self.weight, self.interval = weight, interval

    def due(self, step: int, progress: float) -> bool:
        """Whether it takes part in `step`."""
        return step % self.interval == 0 and at(self.weight, progress) > 0

    def factor(self, progress: float) -> Tensor | float:
        """What the mean of the values is multiplied by: a number, 0-dim where a tensor."""
        return float(at(self.weight, progress)) * self.interval

    @abstractmethod
    def __call__(self, real: Scored, fake: Scored, game: Game, labels: Tensor | None) -> Tensor:
        """One value per sample, (B,)."""


class R1(Penalty):
    """|grad|^2 / 2 at real samples (Mescheder et al., ICML 2018, eq. 9)."""

    touches_fake = False

    def __call__(self, real: Scored, fake: Scored, game: Game, labels: Tensor | None) -> Tensor:
        return 0.5 * squared_norm(real.gradient())


class R2(Penalty):
    """|grad|^2 / 2 at fake samples (Mescheder et al., ICML 2018, eq. 10)."""

    def __call__(self, real: Scored, fake: Scored, game: Game, labels: Tensor | None) -> Tensor:
        return 0.5 * squared_norm(fake.gradient())


class Roth(Penalty):
    """(1 - s)^2 |grad|^2 / 2 at real samples and s^2 |grad|^2 / 2 at fake ones, s = sigmoid(logit): what noise in
    the samples would do to D, on average (Roth et al., NeurIPS 2017, algorithm 1).
    """

    def __call__(self, real: Scored, fake: Scored, game: Game, labels: Tensor | None) -> Tensor:
        at_real = real.logits.neg().sigmoid().square() * squared_norm(real.gradient())
        return 0.5 * (at_real + fake.logits.sigmoid().square() * squared_norm(fake.gradient()))


class WGANGP(Penalty):
    """(|grad| - 1)^2 between pairs of real and fake (Gulrajani et al., NeurIPS 2017, eq. 3)."""

    touches_fake = False
    one_sample = True

    def __call__(self, real: Scored, fake: Scored, game: Game, labels: Tensor | None) -> Tensor:
        where = game.stream.take(_uniform(()), len(real.inputs)).view(-1, *[1] * (real.inputs.ndim - 1))
        return _one_centred(torch.lerp(fake.origin, real.origin, where.to(real.inputs)), game, labels)


class DRAGAN(Penalty):
    """(|grad| - 1)^2 around real samples: x + u std(x) / 2, u ~ U(0, 1) (Kodali et al., 2017, section 2.3)."""

    touches_fake = False
    one_sample = True

    def __call__(self, real: Scored, fake: Scored, game: Game, labels: Tensor | None) -> Tensor:
        inputs = real.inputs.detach()
        noise = game.stream.take(_uniform(inputs.shape[1:]), len(inputs))
        return _one_centred(inputs + 0.5 * inputs.std() * noise, game, labels)


class Consensus(Penalty):
    """Half the squared norm of both players' gradients together, for both to make small: the players agree to
    stay where neither wants to move (Mescheder et al., NeurIPS 2017, section 4).
    """

    touches_fake = False
    both_players = True

    def __call__(self, real: Scored, fake: Scored, game: Game, labels: Tensor | None) -> Tensor:
        images = game.generate(len(real.inputs), labels) if fake.inputs.is_leaf else fake.inputs
        gradients = game.gradients(real.inputs, images, labels)
        return torch.stack([0.5 * g.square().sum() for player in gradients.values() for g in player]).sum()[None]


def _uniform(shape: tuple[int, ...]):  # type: ignore[no-untyped-def]
    return lambda count, rng: torch.rand(count, *shape, generator=rng)


def _one_centred(inputs: Tensor, game: Game, labels: Tensor | None) -> Tensor:
    inputs.requires_grad_()  # not game.score, which would cut them off from G
    scored = Scored(inputs, game.judge(inputs, labels))
    # The small number keeps the square root's derivative finite where the gradient is zero.
    return (squared_norm(scored.gradient()) + 1e-12).sqrt().sub(1.0).square()
