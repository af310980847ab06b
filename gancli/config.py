"""The configuration: where its YAML is, whether its settings fit, and which of them may change when a run resumes."""

from __future__ import annotations

import inspect
import re
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gancli import budget
from gancli.build import KINDS, nodes, resolve
from gancli.errors import UserError, did_you_mean
from gancli.schedules import Schedule

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

_READ_BY_COMMANDS = (  # settings that commands read themselves, besides the class that takes them
    *("train.batch_size", "train.accumulate", "log.samples", "log.holdout", "evaluation.every", "evaluation.count"),
)
_KNOWN_TO_THE_RUN = {"latent_dim", "image_shape", "num_classes", "seed", "labelled"}  # and given besides the settings
RUN_SCHEMA = {  # the types of a training's settings that belong to no section
    "seed": int,
    "conditional": bool,
    "pack": int,
    "resume": str,
    "init": str | None,
    "freeze": list[str],
    "objective": str | None,
    "trust": list[str],
}


def config_dir() -> Path:
    """Returns the folder of the YAML groups: inside the package of a wheel, beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    return next(folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir())


def compose(command: str, overrides: list[str]) -> dict[str, Any]:
    """Returns the resolved settings of a command line, as Hydra composes them."""
    return compose_run(command, overrides)[0]


def compose_run(command: str, overrides: list[str]) -> tuple[dict[str, Any], Path, list[str]]:
    """Returns the resolved settings of a command line, the folder that Hydra would run it in, and which keys are left
    to the budget.

    A program that uses Hydra itself finds it as it was.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.utils import setup_globals
    from omegaconf import OmegaConf, open_dict

    budget.register()
    setup_globals()  # ${now:…} in the name of the folder
    before, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
            composed = hydra.compose(command, overrides, return_hydra_config=True)
    finally:
        GlobalHydra.instance().hydra = before
    folder = Path(composed.hydra.run.dir)
    with open_dict(composed):
        del composed["hydra"]
    settings: Any = OmegaConf.to_container(composed, resolve=True)
    return chosen_none(overrides) | settings, folder, budget.keys(composed)


def chosen_none(overrides: Iterable[str]) -> dict[str, Any]:
    """Returns what Hydra leaves out for a group of which none is chosen, as by penalty=[]."""
    return {word.removesuffix("=[]"): {} for word in overrides if word.endswith("=[]")}


def check(settings: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
    """Raises one UserError with everything that `problems` finds."""
    found = [text for _, text in problems(settings, schema)]
    if found:
        raise UserError("\n".join(dict.fromkeys(found)))


def problems_of_run(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields (key, text) for every part of a training that `settings` lack, and all that `problems` finds in them."""
    for key in KINDS:
        section, _, name = key.partition(".")
        found = settings.get(section)
        node = found.get(name) if name and isinstance(found, Mapping) else found
        if name == "*" and not isinstance(found, Mapping):
            yield section, f"{section}: is to be a mapping of names to parts"
        elif name == "*" and isinstance(found, Mapping):  # files are called by these names
            wrong = [each for each in found if not re.fullmatch(r"\w+", str(each))]
            yield from ((section, f"{section}.{each}: a name consists of letters, digits and _") for each in wrong)
        elif not (isinstance(node, Mapping) and "_target_" in node):
            yield section, f"{key}: names no class; every run has this part"
    for key in _READ_BY_COMMANDS:
        section, _, name = key.partition(".")
        if isinstance(settings.get(section), Mapping) and name not in settings[section]:
            yield section, f"{key}: is missing"
    yield from problems(settings, RUN_SCHEMA)


def problems(settings: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields (key, text) for every setting whose type or name is wrong, and for every missing value.

    schema: the types of the top-level keys that are plain values. Every other key belongs to a node and is checked
    against the signature of the class that the node names.
    """
    for key, value in leaves(settings):
        if value == "???":
            yield key, f"{key}: a value is missing; give {key}=…"
    for key, hint in schema.items():
        if key not in settings:
            yield key, f"{key}: is missing"
        elif not fits(settings[key], hint):
            yield key, _misfit(key, settings[key], hint)
        elif settings[key] == "":
            yield key, f"{key}='': is empty"
    built = [f"{key}." for key, _ in nodes(settings)]
    for key, value in leaves(settings):
        if key not in schema and not key.startswith(tuple(built)):
            yield key, f"{key}={_shown(value)}: nothing reads this setting{did_you_mean(key, settings)}"
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
    is_optimizer = key.startswith("optimizer.")  # all of whose numbers can be scheduled
    for name, value in node.items():
        if name == "_target_" or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            continue
        if name not in parameters:
            yield f"{key}.{name}: {node['_target_']} has no such setting{did_you_mean(name, parameters)}"
        elif value != "???" and name in hints and not fits(value, hints[name], scheduled=is_optimizer):
            yield _misfit(f"{key}.{name}", value, hints[name])
        elif value == "" and str(node["_target_"]).startswith("gancli."):
            yield f"{key}.{name}='': is empty"
    for name, parameter in parameters.items():
        is_needed = parameter.default is parameter.empty and _is_plain(hints.get(name))
        if is_needed and name not in {*node, *_KNOWN_TO_THE_RUN}:
            yield f"{key}.{name}: is missing"


def _is_plain(hint: Any) -> bool:
    """Whether values of this type stand in YAML: numbers, texts, lists of them, and schedules."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType, list, tuple):
        return all(_is_plain(each) for each in args if each is not ...)
    return origin is typing.Literal or hint in (int, float, bool, str, types.NoneType, Schedule)


def _misfit(key: str, value: Any, hint: Any) -> str:
    """Returns what is wrong with a value that does not fit `hint`, and how it is written where that can be guessed."""
    more, short = "", re.fullmatch(r"(\d+)([kM])", value) if isinstance(value, str) else None
    if short is not None and fits(1, hint):
        more = f"; write {int(short[1]) * {'k': 1_000, 'M': 1_000_000}[short[2]]:_}"
    elif isinstance(value, str) and fits([value], hint):
        more = f"; a list is written {key}=[{value}]"
    elif isinstance(value, (int, float)) and fits("", hint):
        more = f"; text that reads as a number or a boolean is quoted twice: \"{key}='{value}'\""
    return f"{key}={_shown(value)}: expected {_name(hint)}{more}"


def _shown(value: Any) -> Any:
    """Returns null, true and false as YAML writes them, and any other value as it is."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else value


def fits(value: Any, hint: Any, *, scheduled: bool = False) -> bool:
    """Whether a value from YAML can be handed to a parameter annotated with `hint`; unknown hints take all.

    scheduled: whether a schedule may stand for any number.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in (Any, object):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, arg, scheduled=scheduled) for arg in args)
    if origin is typing.Literal:  # true is not 1
        return any(type(value) is type(arg) and value == arg for arg in args)
    if origin in (list, tuple):
        inner = args[:1] if args[1:] in ((), (...,)) else args
        if not isinstance(value, list) or (len(inner) > 1 and len(inner) != len(value)):
            return False
        hints = [inner[min(i, len(inner) - 1)] for i in range(len(value))] if inner else []
        return all(fits(item, each, scheduled=scheduled) for item, each in zip(value, hints, strict=False))
    if isinstance(value, Mapping) and "_target_" in value:
        return _makes(value, Schedule if scheduled and hint is float else hint)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    if hint in (bool, str):
        return isinstance(value, hint)
    if hint is types.NoneType:
        return value is None
    kind = origin or hint
    if not inspect.isclass(kind):
        return True
    is_collection = kind.__module__ in (
        "builtins",
        "collections.abc",
    )  # what YAML can hold, of the classes that are left
    return is_collection and isinstance(value, (list, dict)) and isinstance(value, kind)


def _makes(node: Mapping[str, Any], hint: Any) -> bool:
    """Whether what `node` becomes can be handed to a parameter annotated with `hint`, as far as that can be known."""
    try:
        found = resolve(node["_target_"], key="")
    except UserError:  # which is reported by itself
        return True
    kind = typing.get_origin(hint) or hint
    if not inspect.isclass(found) or getattr(kind, "_is_protocol", False):
        return True
    return not inspect.isclass(kind) or issubclass(found, kind)


def _name(hint: Any) -> str:
    options = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, options))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_name(option) for option in options if getattr(option, "__module__", "") != "torch")
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
