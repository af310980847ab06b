"""What a recipe leaves to the budget: settings that follow from the time, the device and the number of pictures.

A recipe writes `${by_budget:batch_size}` for such a setting; whoever gives it a value overrides it as any other. The
settings of a run hold what was chosen, and a run that goes on keeps it, elsewhere and for longer too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from gancli.datasets.files import count_images
from gancli.errors import SettingError
from gancli.files.user_paths import expand

RESOLVER = "by_budget"
_MANY = 10_000  # pictures that a data set of unknown size is taken to have
_FEW_PASSES = 10  # through the data, in which a discriminator does not come to know its images
_FEW_IMAGES = 100_000  # which leave no time for small steps
_EVALUATION_EVERY = (15_000, 100_000)  # images, at least and at most; it takes minutes of a short run on a CPU
_IMAGES_PER_MINUTE = {False: 1_000, True: 60_000}  # roughly, of a CPU and of a GPU


class Budget(NamedTuple):
    """minutes: of training, infinite where only images limit it. images: to be seen, a rough guess where only the time
    limits them. gpu: whether it trains on one. pictures: of the data set, None where that is not known.
    """

    minutes: float
    images: float
    gpu: bool
    pictures: int | None

    @property
    def minutes_needed(self) -> float:
        """Of the training, a rough guess where only images limit it."""
        return self.images / _IMAGES_PER_MINUTE[self.gpu]

    @property
    def passes(self) -> float:
        """Through the data."""
        return self.images / (self.pictures or _MANY)

    def __str__(self) -> str:
        length = "any time"
        if self.minutes < float("inf"):
            length = f"{self.minutes:g} minutes"
        elif self.images < float("inf"):
            length = f"{self.images:,.0f} images"
        pictures = f"{self.pictures or _MANY:,} pictures{'' if self.pictures else ' (a guess)'}"
        return f"{length} of a {'GPU' if self.gpu else 'CPU'} and {pictures}"


def _resolution(budget: Budget) -> int:
    if budget.gpu:
        return 128 if budget.minutes_needed >= 120 else 64
    return 64 if budget.minutes_needed >= 5 else 32


def _augmentation(budget: Budget) -> list[str]:
    return ["translation"] if budget.passes < _FEW_PASSES else ["color", "translation", "cutout"]


def _generator_lr(budget: Budget) -> float:
    return 4e-3 if budget.images < _FEW_IMAGES else 1e-3


def _evaluation_every(budget: Budget) -> int:
    least, most = _EVALUATION_EVERY
    return int(max(least, min(most, budget.images / 4)))


_CHOICES: dict[str, Callable[[Budget], float | list[str]]] = {
    "resolution": _resolution,  # pixels of a side
    "batch_size": lambda budget: 32 if budget.gpu else 16,
    "channels": lambda budget: 32 if budget.gpu else 16,  # of the generator's finest map
    "augmentation": _augmentation,
    "generator_lr": _generator_lr,
    "discriminator_lr": lambda budget: _generator_lr(budget) / 2,
    "evaluation_every": _evaluation_every,  # images
}


def register() -> None:
    """Makes OmegaConf know the interpolation `${by_budget:…}`; calling it again changes nothing."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver(RESOLVER, _choose, replace=True)


def _choose(what: str, *, _root_: Any) -> float | list[str]:
    return _CHOICES[what](_budget(_root_))


def _budget(settings: Any) -> Budget:
    kind = settings["device"]["kind"]
    gpu = kind == "cuda" or (kind == "auto" and _has_gpu())
    minutes, images = (_number(settings["train"][name], float("inf")) for name in ("minutes", "images"))
    path, limit = settings["dataset"].get("path"), _number(settings["dataset"].get("limit"), float("inf"))
    pictures = None if path is None else _pictures(str(path))
    return Budget(
        minutes=minutes,
        images=min(images, minutes * _IMAGES_PER_MINUTE[gpu]),
        gpu=gpu,
        pictures=None if pictures is None else int(min(pictures, limit)),
    )


def _number(value: Any, none: float) -> float:
    """Returns a setting as a number, or `none` for null and for what is refused later."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return none


@lru_cache
def _pictures(path: str) -> int | None:
    try:
        return count_images(expand(path))
    except SettingError:
        return None


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def keys(settings: Any) -> list[str]:
    """Returns the keys of OmegaConf's settings that are left to the budget."""
    from omegaconf import OmegaConf

    return list(_left_to_the_budget(OmegaConf.to_container(settings, resolve=False)))


def chosen(settings: Any) -> str | None:
    """Returns what was chosen by which budget, in one line, from OmegaConf's settings; None where nothing was."""
    from omegaconf import OmegaConf

    values = ", ".join(f"{key}={_written(OmegaConf.select(settings, key))}" for key in keys(settings))
    return None if not values else f"by {_budget(settings)}: {values}"


def _written(value: Any) -> str:
    """Returns a value as it is written on the command line."""
    return str(value) if isinstance(value, (int, float)) else f"[{','.join(value)}]"


def _left_to_the_budget(node: Any, key: str = "") -> Iterator[str]:
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _left_to_the_budget(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, str) and node.startswith(f"${{{RESOLVER}:"):
        yield key
