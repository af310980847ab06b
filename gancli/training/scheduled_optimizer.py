"""An optimizer whose settings, such as the learning rate, follow schedules over the run."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from gancli.schedules import Schedule, at


class ScheduledOptimizer:
    """A torch optimizer whose scheduled settings are updated before each step.

    make: the optimizer's class with its settings, such as `partial(torch.optim.Adam, lr=1e-3)`; any number in them may
    be a schedule. parameters: the parameters of one player's network. Raises what the optimizer's constructor raises.
    """

    def __init__(self, make: partial[torch.optim.Optimizer], parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.optimizer = make.func(self.parameters, **{key: at(value, 0.0) for key, value in make.keywords.items()})
        self.scheduled = {key: value for key, value in make.keywords.items() if key == "lr" or _is_scheduled(value)}

    @property
    def lr(self) -> float:
        """The learning rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self, progress: float, *, lr_factor: float = 1.0) -> None:
        """Updates the parameters from their gradients, then sets the gradients to None.

        progress: fraction of the run that is done, 0 to 1. lr_factor: factor of the scheduled learning rate.
        """
        settings = {key: at(value, progress) for key, value in self.scheduled.items()}
        if "lr" in settings:
            settings["lr"] *= lr_factor
        self._apply(settings)
        self.optimizer.zero_grad(set_to_none=True)

    def _apply(self, settings: dict[str, Any]) -> None:
        for group in self.optimizer.param_groups:
            group.update(settings)
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Returns the optimizer's state."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state`. Raises ValueError and what torch raises if it does not fit the parameters."""
        self.optimizer.load_state_dict(state)
        self.optimizer.zero_grad(set_to_none=True)  # drops the gradients of a step that a rollback interrupted


def _is_scheduled(value: Any) -> bool:
    return isinstance(value, Schedule) or (isinstance(value, (list, tuple)) and any(map(_is_scheduled, value)))
