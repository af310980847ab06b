"""Parts of a run that need more than one section of the settings: the networks, the average, the optimizers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from gancli.build import build, make
from gancli.datasets.base import Dataset
from gancli.errors import SettingError, UserError
from gancli.game import Game
from gancli.networks.base import Discriminator, Generator
from gancli.networks.packed import Packed, packed_shape
from gancli.optimizers import require_ranges
from gancli.randomness import seeded
from gancli.schedules import at
from gancli.training.ema import EMA
from gancli.training.frozen_weights import freeze
from gancli.training.scheduled_optimizer import ScheduledOptimizer

T = TypeVar("T")
_STATISTICS_SAMPLES = 1024


def networks(
    settings: Mapping[str, Any], shape: tuple[int, ...], num_classes: int, latent_dim: int
) -> tuple[Generator, Discriminator]:
    """Builds generator and discriminator for data of `shape`; they take labels only where that was asked for.

    Parameters that are not to be trained need no gradient. Raises UserError.
    """
    known = {"image_shape": shape, "num_classes": num_classes if settings["conditional"] else 0}
    parts, pack = settings["network"], settings["pack"]
    generator = build(parts["generator"], key="network.generator", latent_dim=latent_dim, **known)
    known["image_shape"] = packed_shape(shape, pack)
    discriminator = build(parts["discriminator"], key="network.discriminator", **known)
    discriminator = discriminator if pack == 1 else Packed(discriminator, pack=pack)
    freeze({"generator": generator, "discriminator": discriminator}, settings["freeze"])
    return generator, discriminator


def optimizer(settings: Mapping[str, Any], player: str, parameters: Iterable[nn.Parameter]) -> ScheduledOptimizer:
    """Builds the player's optimizer. Raises UserError."""
    return _with_key(settings, player, lambda maker: ScheduledOptimizer(maker, parameters))


def average(settings: Mapping[str, Any], game: Game, dataset: Dataset) -> EMA:
    """Builds the generator's average, with noise and labels, as frequent as in the data, to measure statistics for."""
    device = game.stream.device
    known: dict[str, Any] = {"noise": game.prior.sample(_STATISTICS_SAMPLES, seeded(settings["seed"], "statistics"))}
    if game.generator.num_classes:
        labels = dataset.reference("train", _STATISTICS_SAMPLES)[1]
        assert labels is not None
        known["labels"] = labels[torch.arange(_STATISTICS_SAMPLES) % len(labels)]
    known = {name: tensor.to(device) for name, tensor in known.items()}
    ema: EMA = build(settings["ema"], game.generator, key="ema", autocast=game.autocast, **known)
    return ema


class _SettingsAccepted(Exception):
    """Raised where an optimizer asks for its parameters, which it does after it has checked its settings."""


def check_optimizer(settings: Mapping[str, Any], player: str) -> None:
    """Raises UserError for wrong optimizer settings, without the seconds that torch takes to make an optimizer."""

    class NoParameters(list[nn.Parameter]):
        def __iter__(self) -> Iterator[nn.Parameter]:
            raise _SettingsAccepted

    def check(maker: partial[Any]) -> None:
        require_ranges(**maker.keywords)
        maker.func(NoParameters(), **{key: at(value, 0.0) for key, value in maker.keywords.items()})

    with contextlib.suppress(_SettingsAccepted):
        _with_key(settings, player, check)


def _with_key(settings: Mapping[str, Any], player: str, function: Callable[[partial[Any]], T]) -> T:
    """Calls `function` with the optimizer still to be called; torch's complaints become errors that name the key."""
    key = f"optimizer.{player}"
    try:
        return function(make(settings["optimizer"][player], key=key))
    except SettingError as error:
        raise error.at(key) from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{key}: {error}") from error
