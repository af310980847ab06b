"""The guard: nothing comes of a player update in which a loss, a penalty or a gradient is not finite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor


@dataclass(kw_only=True)
class _Copy:
    """Numbers on their way to the host. event: after which they have arrived; None where they are there."""

    step: int
    names: list[str]
    values: Tensor  # (len(names),)
    event: torch.cuda.Event | None


class Guard:
    """Checks the numbers of each player update before the optimizers make it.

    A host that waits for numbers leaves a GPU without work. So with `delayed` the device itself skips what is not to be
    made, and the host reads the numbers one player update later, while the device computes the next gradients. Until
    then the step only seems to be made, so whoever saves, logs or measures the run calls `read` first.

    stop: called with the step, the name and the value of the first number that is not finite, to raise an error.
    """

    def __init__(self, stop: Callable[[int, str, float], NoReturn], *, delayed: bool) -> None:
        self.stop, self.delayed = stop, delayed
        self.pending: _Copy | None = None

    def check(self, numbers: Mapping[str, Tensor], *, step: int) -> tuple[dict[str, Tensor | float], Tensor | None]:
        """Returns the numbers, to be logged, and whether to skip the update, for `ScheduledOptimizer.step`.

        numbers: 0-dim, on one device. Raises what `stop` raises: for these numbers, or with `delayed` for those before.
        """
        self.read()
        values = torch.stack(list(numbers.values()))
        self.pending = _Copy(step=step, names=list(numbers), values=values.to("cpu", non_blocking=True), event=None)
        if values.is_cuda:
            self.pending.event = torch.cuda.Event()
            self.pending.event.record()
        if not self.delayed:
            return {**self.read()}, None
        return dict(zip(numbers, values.unbind(), strict=True)), (values * 0.0).sum().isnan().float()

    def read(self) -> dict[str, float]:
        """Returns the numbers that were not read yet, once they are here. Raises what `stop` raises."""
        pending, self.pending = self.pending, None
        if pending is None:
            return {}
        if pending.event is not None:
            pending.event.synchronize()
        numbers = dict(zip(pending.names, pending.values.tolist(), strict=True))
        for name, number in numbers.items():
            if not abs(number) < float("inf"):
                self.stop(pending.step, name, number)
        return numbers
