"""Penalties on the discriminator; several may be combined.

Each gets samples with the logits already computed for them, so that R1 and R2 need no second forward pass.
Notation: grad is the gradient of the logit with respect to the sample, |.| the Euclidean norm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gancli.game import DiscriminatorOutput, Game, Penalty


def squared_norm(gradient: Tensor) -> Tensor:
    """(B, *shape) -> (B,)"""
    return gradient.flatten(1).square().sum(1)


class R1(Penalty):
    """|grad|^2 / 2 at real samples (Mescheder et al., ICML 2018, eq. 9)."""

    reaches = "nothing"

    def __call__(
        self, real: DiscriminatorOutput, fake: DiscriminatorOutput, game: Game, labels: Tensor | None
    ) -> Tensor:
        return 0.5 * squared_norm(real.gradient())


class R2(Penalty):
    """|grad|^2 / 2 at fake samples (Mescheder et al., ICML 2018, eq. 10)."""

    def __call__(
        self, real: DiscriminatorOutput, fake: DiscriminatorOutput, game: Game, labels: Tensor | None
    ) -> Tensor:
        return 0.5 * squared_norm(fake.gradient())


class Roth(Penalty):
    """(1 - s)^2 |grad|^2 / 2 at real samples and s^2 |grad|^2 / 2 at fake ones, s = sigmoid(logit): what noise in
    the samples would do to D, on average (Roth et al., NeurIPS 2017, algorithm 1).
    """

    def __call__(
        self, real: DiscriminatorOutput, fake: DiscriminatorOutput, game: Game, labels: Tensor | None
    ) -> Tensor:
        at_real = real.logits.neg().sigmoid().square() * squared_norm(real.gradient())
        return 0.5 * (at_real + fake.logits.sigmoid().square() * squared_norm(fake.gradient()))


class WGANGP(Penalty):
    """(|grad| - 1)^2 between pairs of real and fake (Gulrajani et al., NeurIPS 2017, eq. 3)."""

    reaches = "nothing"
    requires_single_sample = True

    def __call__(
        self, real: DiscriminatorOutput, fake: DiscriminatorOutput, game: Game, labels: Tensor | None
    ) -> Tensor:
        where = game.stream.take(_uniform(()), len(real.inputs)).view(-1, *[1] * (real.inputs.ndim - 1))
        return _one_centred(torch.lerp(fake.source, real.source, where.to(real.inputs)), game, labels)


class DRAGAN(Penalty):
    """(|grad| - 1)^2 around real samples: x + u std(x) / 2, u ~ U(0, 1) (Kodali et al., 2017, section 2.3)."""

    reaches = "nothing"
    requires_single_sample = True

    def __call__(
        self, real: DiscriminatorOutput, fake: DiscriminatorOutput, game: Game, labels: Tensor | None
    ) -> Tensor:
        inputs = real.inputs.detach()
        noise = game.stream.take(_uniform(inputs.shape[1:]), len(inputs))
        return _one_centred(inputs + 0.5 * inputs.std() * noise, game, labels)


class Consensus(Penalty):
    """Half the squared norm of both players' gradients together, for both to make small: the players agree to
    stay where neither wants to move (Mescheder et al., NeurIPS 2017, section 4).
    """

    reaches = "nothing"
    player = "both"

    def __call__(
        self, real: DiscriminatorOutput, fake: DiscriminatorOutput, game: Game, labels: Tensor | None
    ) -> Tensor:
        images = game.generate(len(real.inputs), labels) if fake.inputs.is_leaf else fake.inputs
        gradients = game.gradients(real.inputs, images, labels)
        return torch.stack([0.5 * g.square().sum() for player in gradients.values() for g in player]).sum()[None]


def _uniform(shape: Sequence[int]) -> Callable[[int, torch.Generator], Tensor]:
    return lambda count, rng: torch.rand(count, *shape, generator=rng)


def _one_centred(inputs: Tensor, game: Game, labels: Tensor | None) -> Tensor:
    inputs.requires_grad_()  # not game.discriminate_detached, which would cut them off from G
    output = DiscriminatorOutput(inputs, game.discriminate(inputs, labels))
    # The small number keeps the square root's derivative finite where the gradient is zero.
    return (squared_norm(output.gradient()) + 1e-12).sqrt().sub(1.0).square()
