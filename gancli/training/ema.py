"""Exponential moving average of the generator's parameters."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gancli.distributed.process_group import SINGLE_PROCESS
from gancli.errors import require_at_least, require_between, require_positive
from gancli.game import Autocast
from gancli.networks.base import Generator, share_batches
from gancli.schedules import Schedule, at

_BATCH_SIZE = 256
_SMALLEST_BATCH = 16  # of fewer samples a batch has too little of the variance between samples


class EMA:
    """A copy of `network` that follows it with a half-life counted in images.

    half_life: images after which the weight of an old parameter has halved; a number or a schedule; 0 keeps no
    average, so that the copy equals the network. ramp_up: the half-life is at most this share of the images seen, so
    that a young run soon forgets its random start (Karras et al., CVPR 2020, appendix B); None for no ramp-up.

    Buffers are copied, but for the statistics of batch normalisation: those of `network` do not fit averaged weights,
    whose maps vary less, and leave samples grey. They are measured on the average itself, for `noise` (N, latent_dim)
    and `labels` (N,), computed in the context `autocast`; noise: None where nothing is to be measured.
    Raises SettingError.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        half_life: float | Schedule = 10_000,
        ramp_up: float | None = 0.05,
        noise: Tensor | None = None,
        labels: Tensor | None = None,
        autocast: Autocast = nullcontext,
    ) -> None:
        require_at_least(0, half_life=half_life)
        require_positive(ramp_up=ramp_up)
        require_between(0, 10**12, half_life=half_life)
        require_between(0, 1_000, ramp_up=ramp_up)
        self.average = copy.deepcopy(network).eval().requires_grad_(False)
        share_batches(self.average, SINGLE_PROCESS)  # every process has the whole average
        self.half_life, self.ramp_up = half_life, ramp_up
        self.noise, self.labels, self.autocast = noise, labels, autocast
        self.is_measured = True  # whether batch statistics fit the average

    @property
    def network(self) -> nn.Module:
        """The averaged network, to look at."""
        if not self.is_measured:
            if self.noise is not None:
                assert isinstance(self.average, Generator)
                with self.autocast():
                    measure_batch_statistics(self.average, self.noise, self.labels)
            self.is_measured = True
        return self.average

    def update(
        self, network: nn.Module, *, images: int, step_images: int, progress: float, skip: Tensor | None = None
    ) -> None:
        """Moves the average towards `network` after a step of `step_images`, with `images` seen before the step.

        skip: 0-dim, 1 or 0; 1 leaves the average as it is, as for an optimizer (see `step_unless`).
        """
        half_life = float(at(self.half_life, progress))
        if self.ramp_up is not None:
            half_life = min(half_life, self.ramp_up * images)
        decay = 0.5 ** (step_images / half_life) if half_life > 0 else 0.0
        self.is_measured = False
        self.move_towards(network, 1.0 - decay, skip)

    @torch.no_grad()
    def move_towards(self, network: nn.Module, share: Tensor | float, skip: Tensor | None = None) -> None:
        """Moves the average by `share` (0 to 1) of its distance to `network`, and copies the buffers.

        skip: see `update`.
        """
        if skip is not None:
            share = (1.0 - skip) * share
        averages = list[Tensor](self.average.parameters())
        shares = [share] * len(averages) if isinstance(share, Tensor) else share
        torch._foreach_lerp_(averages, list[Tensor](network.parameters()), shares)
        for average, current in zip(self.average.buffers(), network.buffers(), strict=True):
            average.copy_(current if skip is None else torch.where(skip > 0, average, current))


@torch.no_grad()
def measure_batch_statistics(network: Generator, noise: Tensor, labels: Tensor | None) -> None:
    """Sets the running statistics of batch normalisation to those of the maps for noise (N, latent_dim).

    All other layers of `network` work in evaluation mode. labels: int64 (N,) or None.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the mean over all batches
        layer.train()
    size = max(_SMALLEST_BATCH, network.at_once(_BATCH_SIZE))
    for start in range(0, len(noise), size):
        rows = slice(start, start + size)
        network(noise[rows], None if labels is None else labels[rows])
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()
