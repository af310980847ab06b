"""The configuration: where its YAML is, whether its settings fit, and which of them may change when a run resumes."""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gancli.build import nodes, resolve
from gancli.errors import UserError, did_you_mean

RESUME_MUTABLE = (
    *(
        "train.images",
        "train.minutes",
        "train.max_time",
        "train.accumulate",
        "log",
        "checkpoint",
        "evaluation",
        "metric",
        "health",
        "diagnostic",
    ),
    *("device.threads", "resume", "init", "trust", "objective"),
    *("dataset.root", "dataset.path", "dataset.cache", "dataset.download"),  # where the data is
)


def config_dir() -> Path:
    """Returns the folder of the YAML groups: inside the package of a wheel, beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    return next(folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir())


def compose(command: str, overrides: list[str]) -> dict[str, Any]:
    """Returns the resolved settings of a command line, as Hydra composes them."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        settings: Any = OmegaConf.to_container(hydra.compose(command, overrides), resolve=True)
    return dict(settings)


def check(settings: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
    """Raises one UserError with everything that `problems` finds."""
    found = [text for _, text in problems(settings, schema)]
    if found:
        raise UserError("\n".join(dict.fromkeys(found)))


def problems(settings: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields (key, text) for every setting whose type or name is wrong, and for every missing value.

    schema: the types of the top-level keys that are plain values. Every other key belongs to a node and is checked
    against the signature of the class that the node names.
    """
    for key, value in leaves(settings):
        if value == "???":
            yield key, f"{key}: a value is missing; give {key}=…"
    for key, hint in schema.items():
        if not fits(settings[key], hint):
            yield key, f"{key}={settings[key]}: expected {_name(hint)}"
    built = [f"{key}." for key, _ in nodes(settings)]
    for key, value in leaves(settings):
        if key not in schema and not key.startswith(tuple(built)):
            yield key, f"{key}={value}: nothing reads this setting{did_you_mean(key, settings)}"
    for key, node in nodes(settings):
        try:
            target = resolve(node["_target_"], key=key)
        except UserError as error:
            yield key, str(error)
            continue
        for text in _misfits(key, node, target):
            yield key, text


def _misfits(key: str, node: Mapping[str, Any], target: Any) -> Iterator[str]:
    parameters = inspect.signature(target).parameters
    try:
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError, AttributeError):  # a class of the user's own with names we cannot see
        hints = {}
    for name, value in node.items():
        if name == "_target_" or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            continue
        if name not in parameters:
            yield f"{key}.{name}: {node['_target_']} has no such setting{did_you_mean(name, parameters)}"
        elif value != "???" and name in hints and not fits(value, hints[name]):
            yield f"{key}.{name}={value}: expected {_name(hints[name])}"


def fits(value: Any, hint: Any) -> bool:
    """Whether a value from YAML can be handed to a parameter annotated with `hint`; unknown hints take all."""
    if isinstance(value, Mapping) and "_target_" in value:
        return True  # it becomes an object, whose own settings are checked
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, arg) for arg in args)
    if origin is typing.Literal:
        return value in args
    if origin in (list, tuple):
        inner = args[:1] if args[1:] in ((), (...,)) else args
        if not isinstance(value, list) or (len(inner) > 1 and len(inner) != len(value)):
            return False
        return all(fits(item, inner[min(i, len(inner) - 1)]) for i, item in enumerate(value)) if inner else True
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    if hint in (bool, str):
        return isinstance(value, hint)
    if hint is types.NoneType:
        return value is None
    return not (inspect.isclass(hint) and isinstance(value, (str, int, float, bool, types.NoneType)))


def _name(hint: Any) -> str:
    options = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, options))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_name(option) for option in options)
    if typing.get_origin(hint) is list and options:
        return f"list of {_name(options[0])}"
    return "null" if hint is types.NoneType else getattr(hint, "__name__", str(hint))


def leaves(settings: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is not a mapping, with its dotted key."""
    if isinstance(settings, Mapping):
        for name, value in settings.items():
            yield from leaves(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, settings


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """ "key: old -> new" for each setting that differs and may not change when a run goes on."""
    before, after = dict(leaves(old)), dict(leaves(new))
    missing = object()
    return [
        f"{key}: {before.get(key, '(absent)')} -> {after.get(key, '(absent)')}"
        for key in before | after
        if before.get(key, missing) != after.get(key, missing)
        and not any(key == free or key.startswith(free + ".") for free in RESUME_MUTABLE)
    ]


def moved(dataset: Mapping[str, Any], data: str | None) -> Mapping[str, Any]:
    """The settings of a data set that lies somewhere else now, in the folder or file `data`. Raises UserError."""
    if data is None:
        return dataset
    key = next((key for key in ("root", "path") if key in dataset), None)
    if key is None:
        raise UserError(f"data={data}: this run's data set lies in no folder; leave data out")
    return {**dataset, key: data}
