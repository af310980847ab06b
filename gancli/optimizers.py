"""Optimizers for games, and `ScheduledOptimizer`, which gives any torch optimizer scheduled settings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from gancli.errors import require_at_least, require_between, require_decay, require_positive

_LARGEST = 10_000  # rate, far beyond any with which a game was played


def require_ranges(**settings: Any) -> None:
    """Raises SettingError for numbers with which no optimizer makes sensible steps, now or later in the run.

    settings: of any optimizer, scheduled or not; torch checks fewer of them, and before the first step only.
    """

    def given(*names: str) -> dict[str, Any]:
        return {name: settings[name] for name in names if name in settings}

    require_at_least(0, **given("lr", "eps", "weight_decay"))
    require_positive(**given("clip"))
    require_between(0, _LARGEST, **given("lr", "eps", "weight_decay", "clip"))
    require_decay(**given("betas", "alpha", "momentum"))


class OptimisticSGD(torch.optim.Optimizer):
    """Optimistic gradient descent, w -= lr (2 g_t - g_{t-1}) (Daskalakis et al., ICLR 2018, eq. 6)."""

    def __init__(self, params: Iterable[nn.Parameter], *, lr: float = 1e-2) -> None:
        require_ranges(lr=lr)
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Updates the parameters from their gradients."""
        for group in self.param_groups:
            for weight in (weight for weight in group["params"] if weight.grad is not None):
                self._optimistic_step(weight, weight.grad.clone(), group["lr"])

    def _optimistic_step(self, weight: Tensor, direction: Tensor, lr: float) -> None:
        previous = self.state[weight].get("previous", direction)
        weight.sub_(lr * (2 * direction - previous))
        self.state[weight]["previous"] = direction


class OptimisticAdam(OptimisticSGD):
    """OptimisticSGD with Adam's direction in place of the gradient (Daskalakis et al., ICLR 2018, algorithm 1)."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.5, 0.9),
        eps: float = 1e-8,
    ) -> None:
        require_ranges(betas=betas, eps=eps)
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
                self._optimistic_step(weight, mean / (square.sqrt() + eps), group["lr"])


class ClippedSGD(torch.optim.SGD):
    """SGD that clamps all parameters to [-clip, clip] after each step.

    It bounds the Lipschitz constant of a discriminator for loss=wasserstein (Arjovsky et al., ICML 2017, section 3).
    """

    def __init__(self, params: Iterable[nn.Parameter], *, lr: float = 1e-2, clip: float = 0.01) -> None:
        super().__init__(params, lr=lr)
        _clip_after_steps(self, clip)


class ClippedRMSprop(torch.optim.RMSprop):
    """RMSprop that clamps all parameters to [-clip, clip] after each step (Arjovsky et al., ICML 2017, algorithm 1)."""

    def __init__(
        self, params: Iterable[nn.Parameter], *, lr: float = 5e-5, alpha: float = 0.99, clip: float = 0.01
    ) -> None:
        super().__init__(params, lr=lr, alpha=alpha)
        _clip_after_steps(self, clip)


def _clip_after_steps(optimizer: torch.optim.Optimizer, clip: float) -> None:
    require_ranges(clip=clip)
    for group in optimizer.param_groups:
        group["clip"] = clip  # a setting of the group can be scheduled and is saved in checkpoints
    optimizer.register_step_post_hook(_clip)


@torch.no_grad()
def _clip(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        for weight in group["params"]:
            weight.clamp_(-group["clip"], group["clip"])
