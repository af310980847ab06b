"""One optimizer per player: any of torch.optim, its settings constant or scheduled."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from gancli.schedules import Schedule, at


def _moves(value: Any) -> bool:
    return isinstance(value, Schedule) or (isinstance(value, (list, tuple)) and any(map(_moves, value)))


class ScheduledOptimizer:
    """A torch optimizer whose scheduled settings are set anew before each step.

    make: `partial(torch.optim.Adam, lr=…)`, as the configuration describes it; parameters come here.
    lr_factor: on top of whatever the learning rate is set to.
    """

    def __init__(self, make: partial[torch.optim.Optimizer], parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.optimizer = make.func(self.parameters, **{key: at(value, 0.0) for key, value in make.keywords.items()})
        self.scheduled = {key: value for key, value in make.keywords.items() if key == "lr" or _moves(value)}
        self.lr_factor = 1.0

    @property
    def lr(self) -> float:
        """Learning rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self, progress: float) -> None:
        """One update from the gradients at hand, which are then dropped."""
        settings = {key: at(value, progress) for key, value in self.scheduled.items()}
        if "lr" in settings:
            settings["lr"] *= self.lr_factor
        for group in self.optimizer.param_groups:
            group.update(settings)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
