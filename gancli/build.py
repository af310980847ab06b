"""From a node of the configuration to an object: the only place that instantiates classes by name."""

from __future__ import annotations

import fnmatch
import functools
import importlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from gancli.errors import SettingError, UserError, did_you_mean

TRUSTED = ("gancli.", "torch.optim.")
KINDS = {  # the class that a node at each key must name, or one derived from it; * stands for any other name
    "device": "gancli.device.Runtime",
    "dataset": "gancli.datasets.base.Dataset",
    "prior": "gancli.priors.Prior",
    "network.generator": "gancli.networks.base.Generator",
    "network.discriminator": "gancli.networks.base.Discriminator",
    "loss": "gancli.losses.Loss",
    "penalty.*": "gancli.game.Penalty",
    "augment": "gancli.augment.base.Augment",
    "update": "gancli.updates.Update",
    "optimizer.generator": "torch.optim.Optimizer",
    "optimizer.discriminator": "torch.optim.Optimizer",
    "ema": "gancli.training.ema.EMA",
    "metric.features": "gancli.metrics.features.Features",
    "metric.*": "gancli.metrics.base.Metric",
    "diagnostic.*": "gancli.diagnostics.base.Diagnostic",
    "train": "gancli.training.trainer.Trainer",
    "checkpoint": "gancli.training.checkpoint.Checkpoints",
    "log": "gancli.training.logging.TrainingLogger",
    "evaluation": "gancli.training.evaluation.PeriodicEvaluation",
    "health": "gancli.training.health.HealthMonitor",
}
_INSIDE = ("gancli.schedules.Schedule", "gancli.distributions.Distribution")  # what a setting of a part may be


def build(node: Mapping[str, Any], *args: Any, key: str, **known: Any) -> Any:
    """Returns an object of the class that `node["_target_"]` names, made of the node's other settings.

    args, known: constructor arguments that only the run can know, such as the image shape. key: where the node stands
    in the configuration, for messages. Raises UserError for bad settings; any other error of a constructor is a bug.
    """
    maker = make(node, key=key)
    try:
        return maker(*args, **known)
    except SettingError as error:
        raise error.at(key) from error
    except TypeError as error:
        if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
            raise  # raised inside the constructor: a bug
        raise UserError(f"{key}: {node['_target_']} does not take these settings: {error}") from error


def make(node: Mapping[str, Any], *, key: str) -> functools.partial[Any]:
    """Returns the class that `node` names with the node's settings, nested nodes built, but not yet called."""
    settings = {name: _build_nested(value, f"{key}.{name}") for name, value in node.items() if name != "_target_"}
    return functools.partial(resolve(node["_target_"], key=key), **settings)


def _build_nested(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        if "_target_" in value:
            return build(value, key=key)
        return {name: _build_nested(item, f"{key}.{name}") for name, item in value.items()}
    return [_build_nested(item, key) for item in value] if isinstance(value, list) else value


def resolve(target: str, *, key: str) -> Any:
    """Returns the class or function at the dotted path `target`, of the kind that belongs at `key`. Raises UserError.

    The kind is known for the keys of `KINDS` and below them, where classes of gancli are schedules and distributions.
    """
    module, _, name = str(target).rpartition(".")
    try:
        found = getattr(__import__(module, fromlist=[name]), name)
    except (ImportError, ValueError, RecursionError):
        raise UserError(
            f"{key}._target_={target}: no module {module or target}; is its folder on PYTHONPATH and the name right?"
        ) from None
    except AttributeError:
        hint = did_you_mean(name, dir(__import__(module, fromlist=[name])))
        raise UserError(f"{key}._target_={target}: {module} has no {name}{hint}") from None
    if not callable(found):
        raise UserError(f"{key}._target_={target}: is not a class")
    kinds = _kinds(key)
    is_free = not kinds or (kinds == _INSIDE and not str(target).startswith("gancli."))
    if not is_free and not (inspect.isclass(found) and issubclass(found, tuple(map(_import, kinds)))):
        raise UserError(f"{key}._target_={target}: not a {' or a '.join(kinds)}, which belongs here")
    return found


def _kinds(key: str) -> tuple[str, ...]:
    """Returns the paths of the classes of which one at `key` must be; none for a key that holds no part of a run."""
    for pattern, kind in KINDS.items():
        if fnmatch.fnmatchcase(key, pattern) and key.count(".") == pattern.count("."):
            return (kind,)
    section = key.partition(".")[0]
    return _INSIDE if section in {pattern.partition(".")[0] for pattern in KINDS} else ()


def _import(path: str) -> type:
    module, _, name = path.rpartition(".")
    found: type = getattr(importlib.import_module(module), name)
    return found


def nodes(settings: Any, key: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields every node with a `_target_`, with its dotted key."""
    if isinstance(settings, Mapping):
        if "_target_" in settings:
            yield key, settings
        for name, value in settings.items():
            yield from nodes(value, f"{key}.{name}" if key else str(name))
    elif isinstance(settings, list):
        for item in settings:
            yield from nodes(item, key)


def is_trusted(node: Mapping[str, Any], packages: list[str]) -> bool:
    """Whether building `node` runs only code of gancli, of torch's optimizers, or of `packages`."""
    target = str(node["_target_"])
    if any(target.startswith(package + ".") for package in packages):
        return True
    if not target.startswith(TRUSTED):
        return False
    try:
        found = resolve(target, key="")
    except UserError:
        return False
    # The path may lead through a module that gancli merely imported, so the class itself is asked.
    return inspect.isclass(found) and f"{found.__module__}.".startswith(TRUSTED)
