"""One optimizer per player: any of torch.optim, its settings constant or scheduled."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gancli.errors import SettingError
from gancli.schedules import Schedule, at


class OptimisticSGD(torch.optim.Optimizer):
    """w -= lr (2 g_t - g_{t-1}): each player assumes that the other goes on as before.

    Daskalakis et al., ICLR 2018, eq. 6.
    """

    def __init__(self, params: Iterable[nn.Parameter], *, lr: float = 1e-2) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update from `.grad`."""
        for group in self.param_groups:
            for weight in (weight for weight in group["params"] if weight.grad is not None):
                self._move(weight, weight.grad.clone(), group["lr"])

    def _move(self, weight: Tensor, direction: Tensor, lr: float) -> None:
        previous = self.state[weight].get("previous", direction)
        weight.sub_(lr * (2 * direction - previous))
        self.state[weight]["previous"] = direction


class OptimisticAdam(OptimisticSGD):
    """The same with Adam's direction in place of the gradient (Daskalakis et al., ICLR 2018, algorithm 1)."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.5, 0.9),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, lr=lr)
        for group in self.param_groups:
            group.update({"betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            (beta1, beta2), eps = group["betas"], group["eps"]
            for weight in (weight for weight in group["params"] if weight.grad is not None):
                state = self.state[weight]
                if not state:
                    state |= {"step": torch.zeros(()), "mean": torch.zeros_like(weight)}
                    state["square"] = torch.zeros_like(weight)
                state["step"] += 1
                state["mean"].lerp_(weight.grad, 1 - beta1)
                state["square"].lerp_(weight.grad.square(), 1 - beta2)
                mean = state["mean"] / (1 - beta1 ** float(state["step"]))
                square = state["square"] / (1 - beta2 ** float(state["step"]))
                self._move(weight, mean / (square.sqrt() + eps), group["lr"])


class ClippedSGD(torch.optim.SGD):
    """Gradient descent, after which every number is put back into [-clip, clip].

    For the discriminator with loss=wasserstein, whose steepness it bounds (Arjovsky et al., ICML 2017, section 3).
    """

    def __init__(self, params: Iterable[nn.Parameter], *, lr: float = 1e-2, clip: float = 0.01) -> None:
        super().__init__(params, lr=lr)
        _clip_after_steps(self, clip)


class ClippedRMSprop(torch.optim.RMSprop):
    """The same after RMSprop's step: the first Wasserstein GAN's (Arjovsky et al., ICML 2017, algorithm 1)."""

    def __init__(
        self, params: Iterable[nn.Parameter], *, lr: float = 5e-5, alpha: float = 0.99, clip: float = 0.01
    ) -> None:
        super().__init__(params, lr=lr, alpha=alpha)
        _clip_after_steps(self, clip)


def _clip_after_steps(optimizer: torch.optim.Optimizer, clip: float) -> None:
    if clip <= 0:
        raise SettingError(f"clip={clip}: a bound above 0")
    for group in optimizer.param_groups:
        group["clip"] = clip  # in the group, where schedules and checkpoints look for settings
    optimizer.register_step_post_hook(_clip)


@torch.no_grad()
def _clip(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        for weight in group["params"]:
            weight.clamp_(-group["clip"], group["clip"])


class ScheduledOptimizer:
    """A torch optimizer whose scheduled settings are set anew before each step.

    make: `partial(torch.optim.Adam, lr=…)`, as the configuration describes it. parameters: of one player's network.
    Raises what the optimizer raises.
    """

    def __init__(self, make: partial[torch.optim.Optimizer], parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.optimizer = make.func(self.parameters, **{key: at(value, 0.0) for key, value in make.keywords.items()})
        self.scheduled = {key: value for key, value in make.keywords.items() if key == "lr" or _is_scheduled(value)}

    @property
    def lr(self) -> float:
        """Learning rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self, progress: float, *, lr_factor: float = 1.0) -> None:
        """Updates the parameters from their gradients, which are then dropped.

        progress: share of the run that is done, 0 to 1. lr_factor: on top of the learning rate.
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
        """Goes on from `state`. Raises ValueError and what torch raises where it does not fit."""
        self.optimizer.load_state_dict(state)
        self.optimizer.zero_grad(set_to_none=True)  # gradients of a step that was not made


def _is_scheduled(value: Any) -> bool:
    return isinstance(value, Schedule) or (isinstance(value, (list, tuple)) and any(map(_is_scheduled, value)))
