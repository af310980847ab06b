"""An optimizer whose settings, such as the learning rate, follow schedules over the run."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gancli.schedules import Schedule, at


class ScheduledOptimizer:
    """A torch optimizer whose scheduled settings are updated before each step.

    make: the optimizer's class with its settings, such as `partial(torch.optim.Adam, lr=1e-3)`; any number in them may
    be a schedule. parameters: the parameters of one player's network. Raises what the optimizer's constructor raises.
    """

    def __init__(self, make: partial[torch.optim.Optimizer], parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.make = partial(make.func, **{key: at(value, 0.0) for key, value in make.keywords.items()})
        self.optimizer = self.make(self.parameters)
        self.scheduled = {key: value for key, value in make.keywords.items() if key == "lr" or _is_scheduled(value)}
        self.lr = float(self.optimizer.param_groups[0]["lr"])  # of the last step

    def step(self, progress: float, *, lr_factor: float = 1.0, skip: Tensor | None = None) -> None:
        """Updates the parameters from their gradients, then sets the gradients to None.

        progress: fraction of the run that is done, 0 to 1. lr_factor: factor of the scheduled learning rate. skip: see
        `step_unless`.
        """
        settings = {key: at(value, progress) for key, value in self.scheduled.items()}
        if "lr" in settings:
            self.lr = settings["lr"] = settings["lr"] * lr_factor
        self._apply(settings, skip)
        self.optimizer.zero_grad(set_to_none=True)

    def _apply(self, settings: dict[str, Any], skip: Tensor | None) -> None:
        for group in self.optimizer.param_groups:
            group.update(settings)
        step_unless(self.optimizer, skip)

    def state_dict(self) -> dict[str, Any]:
        """Returns the optimizer's state."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state`; the settings stay this optimizer's own. Raises ValueError if it does not fit.

        It fits where each parameter's state is as a step of this optimizer makes it, or is not there yet: fused updates
        write into it without looking at its shape.
        """
        expected = self._state_after_a_step()
        for number, saved in state["state"].items():
            problem = _misfit(saved, expected.get(number, {})) if saved else None
            if problem is not None:
                raise ValueError(f"optimizer, parameter {number}: {problem}")
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state["state"]})
        self.lr = _last_rate(state)
        self.optimizer.zero_grad(set_to_none=True)  # drops the gradients of a step that a rollback interrupted

    def _state_after_a_step(self) -> dict[int, dict[str, Any]]:
        clones = [nn.Parameter(parameter.detach().clone()) for parameter in self.parameters]
        for clone in clones:
            clone.grad = torch.zeros_like(clone)
        twin = self.make(clones)
        for group, own in zip(twin.param_groups, self.optimizer.param_groups, strict=True):
            group.update({key: value for key, value in own.items() if key != "params"})
        twin.step()
        state: dict[int, dict[str, Any]] = twin.state_dict()["state"]
        return state


def _misfit(saved: dict[str, Any], expected: dict[str, Any]) -> str | None:
    """Returns how the state of one parameter differs in its outline from the `expected` one, or None."""
    if saved.keys() != expected.keys():
        return f"holds {', '.join(map(str, saved))}, expected {', '.join(expected) or 'nothing'}"
    for name, value in expected.items():
        outlines = [
            f"{tuple(each.shape)} of {each.dtype}" if isinstance(each, Tensor) else type(each).__name__
            for each in (saved[name], value)
        ]
        if outlines[0] != outlines[1]:
            return f"{name} is {outlines[0]}, expected {outlines[1]}"
    return None


def _last_rate(state: dict[str, Any]) -> float:
    rates = [group.get("lr") for group in state["param_groups"][:1]]
    if not rates or isinstance(rates[0], bool) or not isinstance(rates[0], (int, float, Tensor)):
        raise ValueError("optimizer: no learning rate in the saved state")
    return float(rates[0])


@torch.no_grad()
def step_unless(optimizer: torch.optim.Optimizer, skip: Tensor | None) -> None:
    """Makes a step of `optimizer`, unless `skip` says that it is not to be made.

    skip: 0-dim float32 on the device of the parameters, 1 or 0; None for 0. The device decides, so that the host does
    not wait for what it computes, unless the optimizer keeps state on the host. A skipped step leaves parameters and
    state, step counters too, bit by bit as they were, whatever the gradients are. State that the first step makes is
    zero where that one is skipped.
    """
    if skip is None:
        optimizer.step()
    elif optimizer.defaults.get("fused"):
        optimizer.grad_scale, optimizer.found_inf = None, skip  # type: ignore[attr-defined]  # of GradScaler's protocol
        optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]
    else:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        state = optimizer.state  # which makes what is not there where it is indexed
        before = [(weight, weight.clone(), _clones(state.get(weight, {}))) for weight in weights]
        optimizer.step()
        for weight, old, old_state in before:
            weight.copy_(torch.where(skip > 0, old, weight))
            for key, value in state.get(weight, {}).items():
                if isinstance(value, Tensor):
                    skipped = skip.to(value.device) > 0
                    value.copy_(torch.where(skipped, old_state.get(key, torch.zeros_like(value)), value))


def _clones(state: dict[str, Any]) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in state.items() if isinstance(value, Tensor)}


def _is_scheduled(value: Any) -> bool:
    return isinstance(value, Schedule) or (isinstance(value, (list, tuple)) and any(map(_is_scheduled, value)))
