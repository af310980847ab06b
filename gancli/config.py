"""From composed YAML to objects: `build` is the only place that instantiates, `check` the one that judges."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from gancli.errors import UserError

TRUSTED = ("gancli.", "torch.optim.")
MAY_CHANGE = (
    *(
        "train.images",
        "train.minutes",
        "train.max_time",
        "train.accumulate",
        "log",
        "checkpoint",
        "evaluation",
        "metric",
        "watch",
        "diagnostic",
    ),
    *("device.threads", "resume", "trust", "objective"),
    *("dataset.root", "dataset.path", "dataset.cache", "dataset.download"),  # where the data is, not what it is
)


def config_dir() -> Path:
    """The YAML groups: inside the package when installed from a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    return next(folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir())


def nearest(word: str, options: typing.Iterable[str]) -> str:
    """ "; did you mean …?" where one of `options` is close to `word`, else nothing."""
    found = difflib.get_close_matches(word, list(options), n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else ""


def make(node: Mapping[str, Any], *, key: str) -> functools.partial[Any]:
    """The class that `node` names with the node's settings, nested nodes built; still to be called."""
    settings = {name: _built(value, f"{key}.{name}") for name, value in node.items() if name != "_target_"}
    return functools.partial(resolve(node["_target_"], key=key), **settings)


def build(node: Mapping[str, Any], *args: Any, key: str, **known: Any) -> Any:
    """The object that `node` describes; `known` are the arguments that only the run can know.

    key: where the node stands in the configuration, for messages. Raises UserError.
    """
    maker = make(node, key=key)
    try:
        return maker(*args, **known)
    except ValueError as error:
        raise UserError(f"{key}.{error}") from error
    except TypeError as error:
        if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
            raise  # from inside the constructor: a bug, and its traceback tells
        raise UserError(f"{key}: {node['_target_']} does not take these settings: {error}") from error


def _built(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        if "_target_" in value:
            return build(value, key=key)
        return {name: _built(item, f"{key}.{name}") for name, item in value.items()}
    return [_built(item, key) for item in value] if isinstance(value, list) else value


def resolve(target: str, *, key: str) -> Any:
    """The class or function at the dotted path `target`. Raises UserError."""
    module, _, name = str(target).rpartition(".")
    try:
        found = getattr(__import__(module, fromlist=[name]), name)
    except (ImportError, ValueError):
        raise UserError(
            f"{key}._target_={target}: no module {module or target}; is its folder on PYTHONPATH and the name right?"
        ) from None
    except AttributeError:
        near = nearest(name, dir(__import__(module, fromlist=[name])))
        raise UserError(f"{key}._target_={target}: {module} has no {name}{near}") from None
    if not callable(found):
        raise UserError(f"{key}._target_={target}: is not a class")
    return found


def nodes(settings: Any, key: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every node with a `_target_`, with its key."""
    if isinstance(settings, Mapping):
        if "_target_" in settings:
            yield key, settings
        for name, value in settings.items():
            yield from nodes(value, f"{key}.{name}" if key else str(name))
    elif isinstance(settings, list):
        for item in settings:
            yield from nodes(item, key)


def check(settings: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raises one UserError with everything that is wrong with types, names and missing values.

    expected: the types of the top-level keys that are plain values. Every other key belongs to a node,
    and is held against the signature of the class that the node names.
    """
    errors = [f"{key}: a value is missing; give {key}=…" for key, value in leaves(settings) if value == "???"]
    for key, hint in expected.items():
        if not fits(settings[key], hint):
            errors.append(f"{key}={settings[key]}: expected {_name(hint)}")
    built = [f"{key}." for key, _ in nodes(settings)]
    for key, value in leaves(settings):
        if key not in expected and not key.startswith(tuple(built)):
            errors.append(f"{key}={value}: nothing reads this setting{nearest(key, settings)}")
    for key, node in nodes(settings):
        try:
            target = resolve(node["_target_"], key=key)
        except UserError as error:
            errors.append(str(error))
            continue
        errors += _misfits(key, node, target)
    if errors:
        raise UserError("\n".join(dict.fromkeys(errors)))


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
            yield f"{key}.{name}: {node['_target_']} has no such setting{nearest(name, parameters)}"
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
        and not any(key == free or key.startswith(free + ".") for free in MAY_CHANGE)
    ]


def load_run(folder: Path, *, trust: list[str], parts: tuple[str, ...] = ()) -> dict[str, Any]:
    """The settings of the run in `folder`, as plain values.

    The file is data: what will be built from it, all of it or the keys `parts` and what is under them,
    may name only classes of gancli, optimizers of torch, and of the packages in `trust`. Raises UserError.
    """
    path = folder / "config.yaml"
    if not folder.is_dir():
        raise UserError(f"run={folder}: no such folder")
    if not path.is_file():
        runs = sorted(str(found.parent) for found in folder.glob("**/config.yaml") if ".hydra" not in found.parts)
        raise UserError(
            f"run={folder}: not a run folder, it has no config.yaml" + (f"; try {runs[-1]}" if runs else "")
        )
    try:
        settings = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path}: not the configuration of a run")
    foreign = [
        f"{key}._target_={node['_target_']}"
        for key, node in nodes(settings)
        if (not parts or f"{key}.".startswith(tuple(f"{part}." for part in parts))) and not _trusted(node, trust)
    ]
    if foreign:
        raise UserError(
            f"{path} names classes that are not gancli's own, and building them runs their code:\n  "
            + "\n  ".join(foreign)
            + "\nIf that code is yours, say trust=[package] with the package it is in."
        )
    return settings


def moved(dataset: Mapping[str, Any], data: str | None) -> Mapping[str, Any]:
    """The settings of a data set that lies somewhere else now, in the folder or file `data`. Raises UserError."""
    if data is None:
        return dataset
    key = next((key for key in ("root", "path") if key in dataset), None)
    if key is None:
        raise UserError(f"data={data}: this run's data set lies in no folder; leave data out")
    return {**dataset, key: data}


def _trusted(node: Mapping[str, Any], trust: list[str]) -> bool:
    target = str(node["_target_"])
    if any(target.startswith(package + ".") for package in trust):
        return True
    if not target.startswith(TRUSTED):
        return False
    try:
        found = resolve(target, key="")
    except UserError:
        return False
    # The path may lead through a module that gancli merely imported, so the class itself is asked.
    return inspect.isclass(found) and f"{found.__module__}.".startswith(TRUSTED)
