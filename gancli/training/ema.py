"""Exponential moving average of the generator's parameters."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from gancli.errors import SettingError
from gancli.schedules import Schedule, at


class EMA:
    """A copy of `network` that follows it with a half-life counted in images.

    half_life: images after which the weight of an old parameter has halved; a number or a schedule; 0 keeps no
    average, so that the copy equals the network. ramp_up: the half-life is at most this share of the images seen, so
    that a young run soon forgets its random start (Karras et al., CVPR 2020, appendix B); None for no ramp-up.
    Buffers, such as batch statistics, are copied. Raises SettingError.
    """

    def __init__(
        self, network: nn.Module, *, half_life: float | Schedule = 10_000, ramp_up: float | None = 0.05
    ) -> None:
        if not isinstance(half_life, Schedule) and half_life < 0:
            raise SettingError(f"half_life={half_life}: a number of images, 0 or more")
        if ramp_up is not None and ramp_up <= 0:
            raise SettingError(f"ramp_up={ramp_up}: a positive share of the images seen, or null for no ramp-up")
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.half_life, self.ramp_up = half_life, ramp_up

    def update(self, network: nn.Module, *, images: int, step_images: int, progress: float) -> None:
        """Moves the average towards `network` after a step of `step_images`, with `images` seen before the step."""
        half_life = float(at(self.half_life, progress))
        if self.ramp_up is not None:
            half_life = min(half_life, self.ramp_up * images)
        decay = 0.5 ** (step_images / half_life) if half_life > 0 else 0.0
        self.move_towards(network, 1.0 - decay)

    @torch.no_grad()
    def move_towards(self, network: nn.Module, share: Tensor | float) -> None:
        """Moves the average by `share` (0 to 1) of its distance to `network`, and copies the buffers."""
        averages = list[Tensor](self.network.parameters())
        shares = [share] * len(averages) if isinstance(share, Tensor) else share
        torch._foreach_lerp_(averages, list[Tensor](network.parameters()), shares)
        for average, current in zip(self.network.buffers(), network.buffers(), strict=True):
            average.copy_(current)
