"""One optimizer per player: any of torch.optim, its settings constant or scheduled."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

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
        raise ValueError(f"clip={clip}: a bound above 0")
    for group in optimizer.param_groups:
        group["clip"] = clip  # in the group, where schedules and checkpoints look for settings
    optimizer.register_step_post_hook(_clip)


@torch.no_grad()
def _clip(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        for weight in group["params"]:
            weight.clamp_(-group["clip"], group["clip"])


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
