"""What a recipe leaves to the budget: settings that follow from the time, the device and the number of pictures.

A recipe writes `${by_budget:batch_size}` for such a setting; whoever gives it a value overrides it as any other. The
settings of a run hold what was chosen, so that a run that goes on elsewhere goes on with the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

RESOLVER = "by_budget"


class Budget(NamedTuple):
    """minutes: of training, infinite where only images limit it. gpu: whether it trains on one."""

    minutes: float
    gpu: bool

    def __str__(self) -> str:
        time = f"{self.minutes:g} minutes" if self.minutes < float("inf") else "any time"
        return f"{time} of a {'GPU' if self.gpu else 'CPU'}"


def _resolution(budget: Budget) -> int:
    if budget.gpu:
        return 128 if budget.minutes >= 120 else 64
    return 64 if budget.minutes >= 5 else 32


_CHOICES: dict[str, Callable[[Budget], int]] = {
    "resolution": _resolution,  # pixels of a side
    "batch_size": lambda budget: 32 if budget.gpu else 16,
    "channels": lambda budget: 32 if budget.gpu else 16,  # of the generator's finest map
}


def register() -> None:
    """Makes OmegaConf know the interpolation `${by_budget:…}`; calling it again changes nothing."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver(RESOLVER, _choose, replace=True)


def _choose(what: str, *, _root_: Any) -> int:
    return _CHOICES[what](_budget(_root_))


def _budget(settings: Any) -> Budget:
    minutes, kind = settings["train"]["minutes"], settings["device"]["kind"]
    gpu = kind == "cuda" or (kind == "auto" and _has_gpu())
    return Budget(minutes=float("inf") if minutes is None else float(minutes), gpu=gpu)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def chosen(settings: Any) -> str | None:
    """Returns what was chosen by which budget, in one line, from OmegaConf's settings; None where nothing was."""
    from omegaconf import OmegaConf

    keys = list(_left_to_the_budget(OmegaConf.to_container(settings, resolve=False)))
    if not keys:
        return None
    values = ", ".join(f"{key}={OmegaConf.select(settings, key)}" for key in keys)
    return f"by {_budget(settings)}: {values}"


def _left_to_the_budget(node: Any, key: str = "") -> Iterator[str]:
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _left_to_the_budget(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, str) and node.startswith(f"${{{RESOLVER}:"):
        yield key
