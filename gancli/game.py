"""The two players, and the terms that they play for: all that an update rule needs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gancli.augment.base import Augment, NoAugment
from gancli.errors import require_at_least, require_between, require_coordinate
from gancli.losses import Loss
from gancli.networks.base import Discriminator, Generator
from gancli.networks.operations import multiply_adds
from gancli.priors import Prior
from gancli.randomness import Stream
from gancli.schedules import Schedule, at

Autocast = Callable[[], AbstractContextManager[Any]]
Player = Literal["generator", "discriminator"]
PLAYERS: tuple[Player, Player] = ("generator", "discriminator")


class DiscriminatorOutput:
    """Samples and the logits that the discriminator computed for them, in one graph.

    inputs: (B, *shape), requiring grad. In a training step they are a leaf; in `Game.gradients` they are in one graph
    with the generator. logits: (B,), or (B, K) of K heads, at least float32.
    """

    def __init__(self, inputs: Tensor, logits: Tensor) -> None:
        self.inputs, self.logits = inputs, logits
        self._gradient: Tensor | None = None

    @property
    def source(self) -> Tensor:
        """The inputs in one graph with the generator where they are, else detached."""
        return self.inputs.detach() if self.inputs.is_leaf else self.inputs

    @property
    def has_gradient(self) -> bool:
        """Whether `gradient` was computed already."""
        return self._gradient is not None

    @property
    def mean_logits(self) -> Tensor:
        """The logits, (B,); of several heads, their mean."""
        return mean_over_heads(self.logits)

    def gradient(self) -> Tensor:
        """Returns d sum(mean_logits) / d inputs, (B, *shape), differentiable; computed once.

        Where the discriminator scores each sample on its own, row i is d logit_i / d input_i.
        """
        if self._gradient is None:
            (self._gradient,) = torch.autograd.grad(self.mean_logits.sum(), self.inputs, create_graph=True)
        return self._gradient


class Penalty(ABC):
    """A weighted term of the game besides the adversarial loss.

    weight: factor of the term, a number or a schedule over the run. interval: the term is computed on every
    interval-th step only, times `interval`, so that its mean strength stays (lazy regularisation, Karras et al.,
    CVPR 2020, appendix B).

    player: who minimises it. reaches: how far its value depends on the fake samples; "nothing" for terms on real
    samples or at points of their own, which keep the one-stage step at one pass; "inputs" for terms on the fakes'
    logits or gradients. requires_single_sample: whether it asks for a certain gradient norm of a single sample,
    which a pack of samples does not have. Raises SettingError.
    """

    player: Literal["discriminator", "both"] = "discriminator"
    reaches: Literal["nothing", "inputs"] = "inputs"
    requires_single_sample: bool = False

    def __init__(self, *, weight: float | Schedule, interval: int = 1) -> None:
        require_at_least(0, weight=weight)
        require_coordinate(weight=weight)  # the right one grows with the square of the samples' unit
        require_at_least(1, interval=interval)
        require_between(1, 10_000, interval=interval)
        self.weight, self.interval = weight, interval

    def due(self, step: int, progress: float) -> bool:
        """Whether the term takes part in `step`, at `progress` (0 to 1) of the run."""
        return step % self.interval == 0 and at(self.weight, progress) > 0

    def factor(self, progress: float) -> Tensor | float:
        """Returns what the mean of the values is multiplied by: a number or a 0-dim tensor."""
        return float(at(self.weight, progress)) * self.interval

    @abstractmethod
    def __call__(
        self, real: DiscriminatorOutput, fake: DiscriminatorOutput, game: Game, labels: Tensor | None
    ) -> Tensor:
        """Returns one value per sample, (B,)."""


@dataclass(kw_only=True)
class Game:
    """Generator against discriminator, with a loss, penalties and a prior.

    stream: the random stream of the run's noise. augment: what happens to samples before the discriminator sees them.
    autocast: the context of each forward pass.
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
        """Returns the network of "generator" or "discriminator"."""
        return self.generator if player == "generator" else self.discriminator

    @cached_property
    def weights(self) -> dict[str, list[nn.Parameter]]:
        """Each player's trainable parameters; looked up once, since every step asks for them several times."""
        return {
            player: [weight for weight in self.network(player).parameters() if weight.requires_grad]
            for player in PLAYERS
        }

    @cached_property
    def per_sample(self) -> bool:
        """Whether the discriminator scores each sample on its own."""
        return self.discriminator.per_sample

    def multiply_adds(self) -> int:
        """Returns the multiply-adds of the layers of both networks for one sample."""
        device, generator = self.stream.device, self.generator
        noise, sample = torch.zeros(1, generator.latent_dim), torch.zeros(1, *generator.image_shape)
        label = torch.zeros(1, dtype=torch.int64, device=device) if generator.num_classes else None
        total = 0
        for network, inputs in ((generator, noise), (self.discriminator, sample)):
            with eval_mode(network):
                total += multiply_adds(network, inputs.to(device), label)
        return total

    def generate(self, count: int, labels: Tensor | None) -> Tensor:
        """Returns G(z) for fresh noise: (count, *shape) float32."""
        noise = self.stream.take(self.prior.sample_batch, count)
        with self.autocast():
            samples: Tensor = self.generator(noise, labels)
        return samples.float()

    def discriminate_detached(self, samples: Tensor, labels: Tensor | None) -> DiscriminatorOutput:
        """Returns D at `samples` (B, *shape), augmented, cut off from the graph that made them."""
        inputs = samples.detach().requires_grad_()
        return DiscriminatorOutput(inputs, self.discriminate(inputs, labels))

    def discriminate(self, samples: Tensor, labels: Tensor | None) -> Tensor:
        """Returns D's logits of `samples` (B, *shape), augmented, in one graph with them.

        They are (B,), or (B, K) of K heads, at least float32.
        """
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
        """Returns each player's gradient of its own loss at one point, as functions of all the parameters.

        samples, images: (B, *shape), real samples, and generated ones in one graph with G. progress: with the
        penalties as they weigh there; None for without penalties. Returns player -> one tensor per parameter.
        """
        inputs = samples.detach().requires_grad_()
        real = DiscriminatorOutput(inputs, self.discriminate(inputs, labels))
        fake = DiscriminatorOutput(images, self.discriminate(images, labels))
        values = {
            "generator": self.loss.generator(fake.logits, real.logits).mean(),
            "discriminator": self.loss.discriminator(real.logits, fake.logits).mean(),
        }
        if progress is not None:
            for penalty in self.penalties.values():
                value = float(at(penalty.weight, progress)) * penalty(real, fake, self, labels).mean()
                for player in PLAYERS if penalty.player == "both" else ("discriminator",):
                    values[player] = values[player] + value
        return {
            player: list(torch.autograd.grad(value, self.weights[player], create_graph=True))
            for player, value in values.items()
        }


def mean_over_heads(logits: Tensor) -> Tensor:
    """Returns one logit per sample, (B,), of logits (B,) or, of K heads, (B, K)."""
    return logits if logits.ndim == 1 else logits.mean(1)


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the previous mode is restored afterwards."""
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(was_training)
