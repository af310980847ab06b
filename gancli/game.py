"""The two players and the rules between them: what an update rule needs, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gancli.augment.base import Augment, NoAugment
from gancli.schedules import at

if TYPE_CHECKING:
    from gancli.losses import Loss
    from gancli.networks.base import Discriminator, Generator
    from gancli.penalties import Penalty
    from gancli.priors import Prior
    from gancli.runtime import Stream

Autocast = Callable[[], AbstractContextManager[Any]]


class Scored:
    """Samples and the logits that the discriminator gave them, in one graph.

    inputs: (B, *shape), requiring grad: a leaf in a training step, in one graph with G where the whole game is
    looked at (Game.gradients). logits: (B,), at least float32.
    """

    def __init__(self, inputs: Tensor, logits: Tensor) -> None:
        self.inputs, self.logits = inputs, logits
        self._gradient: Tensor | None = None

    @property
    def origin(self) -> Tensor:
        """The inputs in one graph with what made them, where it is there; a training step has cut them off."""
        return self.inputs.detach() if self.inputs.is_leaf else self.inputs

    @property
    def has_gradient(self) -> bool:
        """Whether somebody has paid for `gradient` already."""
        return self._gradient is not None

    def gradient(self) -> Tensor:
        """d sum(logits) / d inputs, (B, *shape), differentiable; computed once.

        Where the discriminator scores each sample on its own, row i is d logit_i / d input_i.
        """
        if self._gradient is None:
            (self._gradient,) = torch.autograd.grad(self.logits.sum(), self.inputs, create_graph=True)
        return self._gradient


@dataclass(kw_only=True)
class Game:
    """Generator against discriminator, over a loss, penalties on the discriminator, and a prior.

    augment: what happens to samples before the discriminator sees them.
    """

    generator: Generator
    discriminator: Discriminator
    loss: Loss
    prior: Prior
    stream: Stream
    augment: Augment = field(default_factory=NoAugment)
    penalties: dict[str, Penalty] = field(default_factory=dict)
    autocast: Autocast = nullcontext

    def network(self, player: str) -> nn.Module:
        """The network of "generator" or "discriminator"."""
        return self.generator if player == "generator" else self.discriminator

    @cached_property
    def weights(self) -> dict[str, list[nn.Parameter]]:
        """Each player's parameters but for frozen ones; looked up once, since a step asks for them often."""
        return {
            player: [weight for weight in self.network(player).parameters() if weight.requires_grad]
            for player in ("generator", "discriminator")
        }

    @cached_property
    def per_sample(self) -> bool:
        """Whether the discriminator scores each sample on its own."""
        return self.discriminator.per_sample

    def generate(self, count: int, labels: Tensor | None) -> Tensor:
        """G(z) for fresh noise: (count, *shape) float32."""
        noise = self.stream.take(self.prior.batch, count)
        with self.autocast():
            samples: Tensor = self.generator(noise, labels)
        return samples.float()

    def score(self, samples: Tensor, labels: Tensor | None) -> Scored:
        """D at `samples` (B, *shape), augmented, cut off from whatever made them."""
        inputs = samples.detach().requires_grad_()
        return Scored(inputs, self.judge(inputs, labels))

    def judge(self, samples: Tensor, labels: Tensor | None) -> Tensor:
        """D's logits (B,), at least float32, of `samples` (B, *shape), augmented, in one graph with what made them."""
        draws = self.augment.draws_for(samples.shape[1:])
        if draws:
            uniform = self.stream.take(lambda count, rng: torch.rand(count, draws, generator=rng), len(samples))
            samples = self.augment(samples, uniform)
        with self.autocast():
            logits: Tensor = self.discriminator(samples, labels)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def gradients(
        self, samples: Tensor, images: Tensor, labels: Tensor | None, *, progress: float | None = None
    ) -> dict[str, list[Tensor]]:
        """Each player's gradient of its own loss at one point, as functions of all the parameters.

        samples, images: (B, *shape), real ones and G's, these in one graph with G. progress: with the penalties as
        they weigh there; None for without. Returns player -> one tensor per parameter.
        """
        inputs = samples.detach().requires_grad_()
        real, fake = Scored(inputs, self.judge(inputs, labels)), Scored(images, self.judge(images, labels))
        values = {
            "generator": self.loss.generator(fake.logits, real.logits).mean(),
            "discriminator": self.loss.discriminator(real.logits, fake.logits).mean(),
        }
        if progress is not None:
            for penalty in self.penalties.values():
                value = float(at(penalty.weight, progress)) * penalty(real, fake, self, labels).mean()
                for player in values if penalty.both_players else ("discriminator",):
                    values[player] = values[player] + value
        return {
            player: list(torch.autograd.grad(value, self.weights[player], create_graph=True))
            for player, value in values.items()
        }


@contextmanager
def looking(network: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients; what was before comes back afterwards."""
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(was_training)
