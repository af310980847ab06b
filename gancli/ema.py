"""Exponential moving average of the generator's parameters."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn

from gancli.graphs import Recorded, Recorder
from gancli.schedules import Schedule, at


class EMA:
    """A copy of `network` that follows it with a half-life counted in images.

    After `half_life` images the weight of an old parameter has halved. While the run is young the
    half-life is at most `ramp_up` times the images seen, so that the random start is soon forgotten
    (Karras et al., CVPR 2020, appendix B). Buffers, such as batch statistics, are copied.
    `half_life` 0 keeps no average: the copy equals the network.
    """

    def __init__(
        self, network: nn.Module, *, half_life: float | Schedule = 10_000.0, ramp_up: float | None = 0.05
    ) -> None:
        if not isinstance(half_life, Schedule) and half_life < 0:
            raise ValueError(f"half_life={half_life}: a number of images, 0 or more")
        if ramp_up is not None and ramp_up <= 0:
            raise ValueError(f"ramp_up={ramp_up}: a positive share of the images seen, or null for no ramp-up")
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.half_life, self.ramp_up = half_life, ramp_up
        self.replay: Recorded | None = None

    def record(self, recorder: Recorder, network: nn.Module) -> None:
        """Follows `network`, and no other, by replays from now on."""
        self.share = torch.zeros((), device=next(network.parameters()).device)
        self.replay = Recorded(partial(self._move, network, self.share), recorder, "moving averages")

    def update(self, network: nn.Module, *, images: int, step_images: int, progress: float) -> None:
        """Moves towards `network` after a step of `step_images`, with `images` seen before it."""
        half_life = float(at(self.half_life, progress))
        if self.ramp_up is not None:
            half_life = min(half_life, self.ramp_up * images)
        decay = 0.5 ** (step_images / half_life) if half_life > 0 else 0.0
        if self.replay is None:
            self._move(network, 1.0 - decay)
        else:
            self.share.fill_(1.0 - decay)
            self.replay()

    @torch.no_grad()
    def _move(self, network: nn.Module, share: Tensor | float) -> None:
        """By a `share` of the way, a number or 0-dim."""
        ours = list[Tensor](self.network.parameters())
        shares = [share] * len(ours) if isinstance(share, Tensor) else share
        torch._foreach_lerp_(ours, list[Tensor](network.parameters()), shares)
        for mine, other in zip(self.network.buffers(), network.buffers(), strict=True):
            mine.copy_(other)
