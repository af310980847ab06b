"""What the settings of a training alone tell to be wrong: refused all at once, before data is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from gancli import config
from gancli.build import build, make, resolve
from gancli.commands.parts import check_optimizer, networks
from gancli.datasets.base import DatasetInfo, SyntheticDataset
from gancli.errors import SettingError, UserError, require_memory
from gancli.game import PLAYERS, Penalty
from gancli.networks.memory_limit import MemoryChecked
from gancli.training.initial_weights import checkpoints_of
from gancli.training.logging import POINTS_PER_SAMPLE
from gancli.training.trainer import Trainer
from gancli.updates import Update

T = TypeVar("T")
_FLOAT = 4  # bytes
NO_LABELS = "conditional=true: this data set has no labels; use conditional=false, or dataset.labels=true for a folder"


def check_settings(settings: Mapping[str, Any], *, world_size: int = 1, resuming: bool = False) -> None:
    """Raises one UserError with everything that is wrong and that the settings alone tell, before data is read.

    Every part is built that needs no data, and the networks where the settings tell the shape of the samples. A section
    with a wrong type is not built. resuming: whether a run goes on, which takes no weights of another one.
    """
    problems = list(config.problems_of_run(settings))
    errors = [text for _, text in problems]
    broken = {key.split(".")[0] for key, _ in problems}

    def attempt(section: str, function: Callable[[], T]) -> T | None:
        if section in broken:
            return None
        try:
            return function()
        except UserError as error:
            errors.extend(str(error).splitlines() if isinstance(error, SettingError) else [str(error)])
            return None

    def attempt_each(group: str) -> dict[str, Any]:
        found = {
            name: attempt(group, partial(build, node, key=f"{group}.{name}"))
            for name, node in settings[group].items()
            if name != "features"  # an extractor needs the data
        }
        return {name: part for name, part in found.items() if part is not None}

    def attempt_one(section: str, *known: Any) -> Any:
        return attempt(section, partial(build, settings[section], *known, key=section))

    info = attempt("dataset", lambda: _describe(settings["dataset"]))
    prior, update, augment = (attempt_one(section) for section in ("prior", "update", "augment"))
    attempt_one("loss")
    attempt_one("health")
    attempt_one("checkpoint", Path())
    penalties = attempt_each("penalty")
    attempt_each("metric")
    attempt_each("diagnostic")
    for section in ("device", "train", "evaluation", "log"):
        attempt(section, partial(_check_node, settings[section], section, world_size))
    attempt("metric", partial(_check_node, settings["metric"]["features"], "metric.features", world_size))
    if not broken & {"train", "pack", "conditional"}:
        parts = world_size * settings["train"]["accumulate"]
        errors += check_combination(settings, penalties, update, info, parts=parts)
    if info is not None and augment is not None:
        attempt("augment", lambda: augment.draws_for(info.shape))
    if info is not None and prior is not None and not broken & {"pack", "conditional", "freeze"}:
        # A pack that is refused already must not hide what else is wrong with the networks.
        pack = 1 if settings["conditional"] else max(settings["pack"], 1)
        chosen = {**settings, "pack": pack}

        def check_sizes() -> None:
            if not broken & {"train", "evaluation", "log"}:
                _check_samples(settings, info, prior.dim)
            _check_networks(chosen, info, prior.dim)

        attempt("network", check_sizes)
    for player in PLAYERS:
        attempt("optimizer", partial(check_optimizer, settings, player))
    attempt_one("ema", nn.Identity())
    if settings["init"] is not None and not resuming:
        attempt("init", lambda: checkpoints_of(settings["init"]))
    if errors:
        raise UserError("\n".join(dict.fromkeys(errors)))


def _check_samples(settings: Mapping[str, Any], info: DatasetInfo, dim: int) -> None:
    """Raises SettingError where the samples and the noise that are held at once do not fit into memory."""
    counts = {"train.batch_size": settings["train"]["batch_size"], "log.samples": settings["log"]["samples"]}
    if settings["evaluation"]["every"] is not None:
        counts["evaluation.count"] = settings["evaluation"]["count"]
    if issubclass(resolve(settings["dataset"]["_target_"], key="dataset"), SyntheticDataset):  # others hold but few out
        counts["log.holdout"] = settings["log"]["holdout"]
    sides = {"dataset.resolution": max(info.shape)} if "resolution" in settings["dataset"] else {}
    for key, count in counts.items():
        drawn = count * (POINTS_PER_SAMPLE if key == "log.samples" and len(info.shape) == 1 else 1)
        require_memory(_FLOAT * drawn * (prod(info.shape) + dim), **{key: count, "prior.dim": dim}, **sides)


def _check_networks(settings: Mapping[str, Any], info: DatasetInfo, dim: int) -> None:
    """Builds the networks. Raises UserError, also where their numbers would not fit into memory."""
    sizes = {"prior.dim": dim, "pack": settings["pack"]}
    for player in PLAYERS:
        given = settings["network"][player].items()
        sizes |= {f"network.{player}.{name}": value for name, value in given if isinstance(value, int)}
    with MemoryChecked(sizes):
        networks(settings, info.shape, info.num_classes or 0, dim)


def _check_node(node: Mapping[str, Any], key: str, world_size: int) -> None:
    """Calls the class's own `check_settings`, for a class whose constructor needs what only the data tells."""
    target = resolve(node["_target_"], key=key)
    known = {"world_size": world_size} if target is Trainer else {}
    if hasattr(target, "check_settings"):
        try:
            target.check_settings(**make(node, key=key).keywords, **known)
        except SettingError as error:
            raise error.at(key) from error


def _describe(node: Mapping[str, Any]) -> DatasetInfo | None:
    """Returns the shape of the samples and the number of classes where the settings alone tell them."""
    target = resolve(node["_target_"], key="dataset")
    if not hasattr(target, "describe"):
        return None
    given = make(node, key="dataset").keywords
    try:
        return target.describe(**given)  # type: ignore[no-any-return]
    except SettingError as error:
        raise error.at("dataset") from error


def check_combination(
    settings: Mapping[str, Any],
    penalties: Mapping[str, Penalty],
    update: Update | None,
    info: DatasetInfo | None,
    *,
    parts: int,
) -> list[str]:
    """Returns what is wrong with settings that are right each by itself. parts: into which a batch is divided."""
    errors, pack, conditional = [], settings["pack"], settings["conditional"]
    if pack < 1:
        errors.append(f"pack={pack}: 1 for none, or the number of samples that the discriminator sees together")
    if pack > 1:
        if parts > 1 and (settings["train"]["batch_size"] // parts) % pack:
            errors.append(
                f"pack={pack}: must divide each of the {parts} parts of a batch, or their last packs are filled up"
            )
        if conditional:
            errors.append(
                f"pack={pack}: samples of different classes do not go into one pack; use conditional=false, or pack=1"
            )
        errors += [
            f"pack={pack}: penalty {name} sets the norm of one sample's gradient, and a pack has one logit; "
            "use penalty=[r1] or penalty=[r1,r2]"
            for name, penalty in penalties.items()
            if penalty.requires_single_sample
        ]
    if conditional and info is not None and info.num_classes == 0:
        errors.append(NO_LABELS)
    if parts > 1:
        errors += [
            f"penalty.{name}: is of the whole batch's gradient, so one process and train.accumulate=1 only"
            for name, penalty in penalties.items()
            if penalty.player == "both"
        ]
        if update is not None and not update.divisible:
            errors.append(
                f"update={type(update).__name__.lower()}: cannot divide a batch, so one process and "
                "train.accumulate=1 only"
            )
    return errors
