"""Gradient penalties; several may be combined.

A penalty receives the samples with the logits already computed for them, so that R1 and R2 need no second forward pass.
Notation: grad is the gradient of the logit with respect to the sample, |.| the Euclidean norm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gancli.game import DiscriminatorOutput, Game, Penalty


def squared_norm(gradient: Tensor) -> Tensor:
    """Returns the squared Euclidean norm per sample: (B, *shape) -> (B,)."""
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
    """(1 - s)^2 |grad|^2 / 2 at real samples plus s^2 |grad|^2 / 2 at fake ones, with s = sigmoid(logit).

    It approximates the mean effect of Gaussian noise in the samples (Roth et al., NeurIPS 2017, algorithm 1).
    """

    def __call__(
        self, real: DiscriminatorOutput, fake: DiscriminatorOutput, game: Game, labels: Tensor | None
    ) -> Tensor:
        at_real = real.mean_logits.neg().sigmoid().square() * squared_norm(real.gradient())
        return 0.5 * (at_real + fake.mean_logits.sigmoid().square() * squared_norm(fake.gradient()))


class WGANGP(Penalty):
    """(|grad| - 1)^2 at random points between real and fake samples (Gulrajani et al., NeurIPS 2017, eq. 3)."""

    reaches = "nothing"
    requires_single_sample = True

    def __call__(
        self, real: DiscriminatorOutput, fake: DiscriminatorOutput, game: Game, labels: Tensor | None
    ) -> Tensor:
        share = game.stream.take(_draw_uniform(()), len(real.inputs)).view(-1, *[1] * (real.inputs.ndim - 1))
        return _unit_norm_penalty(torch.lerp(fake.source, real.source, share.to(real.inputs)), game, labels)


class DRAGAN(Penalty):
    """(|grad| - 1)^2 near real samples: at x + u std(x) / 2 with u from U(0, 1) (Kodali et al., 2017, section 2.3)."""

    reaches = "nothing"
    requires_single_sample = True

    def __call__(
        self, real: DiscriminatorOutput, fake: DiscriminatorOutput, game: Game, labels: Tensor | None
    ) -> Tensor:
        inputs = real.inputs.detach()
        noise = game.stream.take(_draw_uniform(inputs.shape[1:]), len(inputs))
        return _unit_norm_penalty(inputs + 0.5 * inputs.std() * noise, game, labels)


class Consensus(Penalty):
    """Half the squared norm of both players' loss gradients, which both players minimise.

    Consensus optimisation (Mescheder et al., NeurIPS 2017, section 4). It has one value for the whole batch, (1,).
    """

    reaches = "nothing"
    player = "both"

    def __call__(
        self, real: DiscriminatorOutput, fake: DiscriminatorOutput, game: Game, labels: Tensor | None
    ) -> Tensor:
        images = game.generate(len(real.inputs), labels) if fake.inputs.is_leaf else fake.inputs
        gradients = game.gradients(real.inputs, images, labels)
        return torch.stack([0.5 * g.square().sum() for player in gradients.values() for g in player]).sum()[None]


def _draw_uniform(shape: Sequence[int]) -> Callable[[int, torch.Generator], Tensor]:
    return lambda count, rng: torch.rand(count, *shape, generator=rng)


def _unit_norm_penalty(inputs: Tensor, game: Game, labels: Tensor | None) -> Tensor:
    """Returns (|grad| - 1)^2 at `inputs` (B, *shape): (B,)."""
    inputs.requires_grad_()  # game.discriminate_detached would detach them from the generator
    output = DiscriminatorOutput(inputs, game.discriminate(inputs, labels))
    # 1e-12 keeps the square root's derivative finite for a gradient of zero.
    return (squared_norm(output.gradient()) + 1e-12).sqrt().sub(1.0).square()
