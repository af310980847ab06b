"""Hydra's and OmegaConf's errors in one line that names the key, the value and the nearest valid one."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gancli.build import KINDS
from gancli.commands.composition import Composition, compose, read_comments
from gancli.commands.sweeps import is_multirun
from gancli.config import config_dir, leaves
from gancli.errors import UserError, did_you_mean
from gancli.overrides import TEXTS, last_value, settings_of, typed_value

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

_EXTRAS = {"submitit_slurm": "slurm", "optuna": "sweep"}  # Hydra's plugin -> the extra of gancli that installs it
_KEY = re.compile(r"[A-Za-z_$][\w$-]*([./@][\w$-]+)*", re.ASCII)


def refuse_early(command: str, words: Sequence[str]) -> None:
    """Raises UserError for words that Hydra would take, or explain badly, though no command has a use for them."""
    for word in words:
        if word.startswith("~") and not word.startswith("~hydra"):
            raise UserError(_deletion(word.partition("=")[0][1:], compose(command, [])))
    for key, value in settings_of(words):
        if not _KEY.fullmatch(key):
            raise UserError(f"{key}={value}: no key stands before the equals sign; settings are written key=value")
        if key in TEXTS and value in ("", "''", '""'):
            raise UserError(f"{key}=: is empty; write something behind the equals sign, or leave {key} out")
        if key in KINDS and not _choices(key) and not value.startswith("{"):
            composition = compose(command, [])
            if key not in _known(composition) or isinstance(composition.value(key), Mapping):
                raise UserError(f"{key}={value}: {_instead_of_value(key, composition)}")
    run = None if is_multirun(words) else last_value(words, "run")
    if run is not None and "," in run and not run.startswith("[") and not Path(run).exists():
        raise UserError(f"run={run}: no such folder; several are run=[{run}]")
    if run is not None and "*" in run and not Path(run).exists():
        found = ",".join(sorted(map(str, Path().glob(run)))) if not Path(run).is_absolute() else ""
        raise UserError(f"run={run}: no such folder, and * stands for nothing here; name them, run=[{found or 'a,b'}]")


def _deletion(key: str, composition: Composition) -> str:
    known, choices = _known(composition), _choices(key)
    if key not in known:
        return f"~{key}: no such setting or group{did_you_mean(key, known)}"
    if choices:
        return f"~{key}: a part that every run has; choose {key}=… from {', '.join(choices)}"
    value = composition.value(key)
    if isinstance(value, Mapping):
        return f"~{key}: {_instead_of_value(key, composition)}"
    return f"~{key}: cannot be left out; give it a value, such as {key}={typed_value(value)}"


def _instead_of_value(key: str, composition: Composition) -> str:
    """Returns what to write in place of one value for a whole part."""
    if key not in (known := _known(composition)):
        return f"no such setting or group{did_you_mean(key, known)}"
    if key in composition.choices:
        group = composition.choices[key].group
        return f"a part is chosen by its group; write {group}=…, one of {', '.join(_choices(group))}"
    if choices := _choices(key.partition(".")[0]):
        return f"a part is chosen by its group; write {key.partition('.')[0]}=…, one of {', '.join(choices)}"
    inner = next(each for each, _ in leaves(composition.value(key), key) if not each.endswith("_target_"))
    return f"a section, which has no value of its own and is always there; set what is in it, such as {inner}=…"


def explain(error: Exception, command: str, words: list[str]) -> str:
    """Returns one clear text for an error in composing `command` with `words`."""
    from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException

    if isinstance(error, MissingConfigException) and error.missing_cfg_file and "/" in error.missing_cfg_file:
        return _unknown_choice(error.missing_cfg_file, error.options)
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    if isinstance(error, ConfigCompositionException):
        text = _misfit(command, words)
        if text is not None:
            return text
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return re.sub(r"\s+", " ", "; ".join(line.rstrip(".") for line in lines[:3])) or type(error).__name__


def _unknown_choice(file: str, options: Sequence[str] | None) -> str:
    group, _, name = file.rpartition("/")
    if name in _EXTRAS:
        return f"{group}: needs a package that is not here; pip install 'gancli[{_EXTRAS[name]}]'"
    known = sorted(options or _choices(group))
    return f"{group}={name}: no such choice{did_you_mean(name, known)}; choose from {', '.join(known) or 'none'}"


def _unreadable(override: str) -> str:
    name, equals, value = override.partition("=")
    if not equals:
        return f"{override}: has no value; write settings as key=value"
    if value.lstrip().startswith(("[", "{")):
        return f"{override}: not readable; are its brackets and quotes closed?"
    bare = value.strip("'\"")
    return f"{override}: not readable; quote such a value twice, once for the shell: \"{name}='{bare}'\""


def _misfit(command: str, words: list[str]) -> str | None:
    """Returns a text for the first override that the chosen groups have no place for; None where all have one.

    This is one of a key or group that does not exist, one that adds what exists, and several values without a sweep.
    """
    given = [word for word in words if "=" in word and not word.startswith(("-", "hydra"))]
    parsed = {word: _parse(word) for word in given}
    for (key, value), override in zip(settings_of(given), parsed.values(), strict=True):
        if override.is_sweep_override() and not is_multirun(words):
            return f"{key}={value}: {_several(key, value, compose(command, []))}"
    flags = dict(itertools.pairwise(words))
    more = Path(flags["--config-dir"]) if "--config-dir" in flags else None
    composition, chosen = compose(command, [], more=more), list[str]()
    groups = [word for word, override in parsed.items() if _choices(override.key_or_group)]
    for word in [*groups, *groups]:  # twice, since a choice may have a place only by another one that was typed later
        if word not in chosen and (composed := _compose(command, [*chosen, word], more)):
            composition, chosen = composed, [*chosen, word]
    known = _known(composition)
    for word, (key, value) in zip(given, settings_of(given), strict=True):
        if word in groups and word not in chosen:
            return f"{word}: {_where(command, key, value, composition)}"
        if word not in groups and key in known and parsed[word].is_add():
            return f"{word}: this setting exists already; write {key}={value}"
        if key not in known and not word.startswith("+"):
            hint = _other_choices(key, composition) or did_you_mean(key, known)
            new = f"; `gancli {command} --cfg job` prints every key, and +{key}={value} adds a new one"
            return f"{word}: no such setting or group{hint or new}"
    return None


def _several(key: str, value: str, composition: Composition) -> str:
    """Returns what to write in place of several values where one is expected."""
    if re.fullmatch(r"\d{1,3}(,\d{3})+", value):
        return f"several values; a number is written {value.replace(',', '_')}, and -m begins a sweep"
    if re.fullmatch(r"-?0,\d+", value):
        return f"several values; a number is written {value.replace(',', '.')}, and -m begins a sweep"
    is_list = key in composition.choices and composition.choices[key].is_list
    return f"several values are a sweep, which begins with -m{f', and a list is {key}=[{value}]' if is_list else ''}"


def _where(command: str, group: str, value: str, composition: Composition) -> str:
    """Returns where a choice of `group` can stand."""
    name, _, key = group.partition("@")
    places = [each.group for each in composition.choices.values() if each.group.partition("@")[0] == name]
    if group in places:
        return f"one choice is expected; {group}=… is one of {', '.join(_choices(group))}"
    if places:
        return f"say where: {' or '.join(f'{place}={value}' for place in places)}"
    if command in ("train", "doctor"):
        return f"a choice for one setting; write +{name}@{key or 'KEY'}={value}{'' if key else ' with its key'}"
    return f"no such setting or group{did_you_mean(group, _known(composition) - {name})}"


def _other_choices(key: str, composition: Composition) -> str:
    """Returns "; it belongs to …" for a `key` that other choices of its group have than the chosen one; "" for none."""
    for place, choice in composition.choices.items():
        below = key.removeprefix(f"{place}.")
        files = {name: composition.file(f"{choice.group.partition('@')[0]}/{name}") for name in _choices(choice.group)}
        having = [name for name, file in files.items() if file is not None and below in read_comments(file)[1]]
        if below != key and having:
            return f"; it belongs to {' or '.join(f'{choice.group}={name}' for name in having)}"
    return ""


def _parse(word: str) -> Override:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(word)


def _compose(command: str, words: list[str], more: Path | None) -> Composition | None:
    """Returns what the words compose to; None where they do not, such as for a group that has no place yet."""
    from hydra.errors import HydraException

    try:
        return compose(command, words, more=more)
    except HydraException:
        return None


def _choices(group: str) -> list[str]:
    """Returns the names of the choices of "group" or "group@place"; none where this is no group."""
    return sorted(file.stem for file in (config_dir() / group.partition("@")[0]).glob("*.yaml")) if group else []


def _known(composition: Composition) -> set[str]:
    """Returns all groups, and the dotted keys and sections of a composition."""
    keys = {key for key, _ in leaves(composition.settings)}
    parts = [key.split(".") for key in keys]
    sections = {".".join(part[:length]) for part in parts for length in range(1, len(part))}
    groups = {file.parent.relative_to(config_dir()).as_posix() for file in config_dir().glob("*/**/*.yaml")}
    return keys | sections | groups | {choice.group for choice in composition.choices.values()}


def plugin_error(error: Exception, words: list[str]) -> str | None:
    """Returns a text for an error that Hydra or one of its plugins raises as a plain exception; None for any other."""
    if _raised_in(error, "optuna"):  # it asks for the best of numbers that were all NaN
        return "hydra/sweeper: no run of this search ended in a number to compare; see objective=…"
    for key, value in settings_of(words):
        choices = _choices(key)
        if value == "null" and choices:
            name = key.partition("@")[0]
            instead = f"such as {key}=none for no {name}" if "none" in choices else f"one of {', '.join(choices)}"
            return f"{key}=null: a group has no null; name a choice, {instead}"
    return _launcher_error(error)


def _launcher_error(error: Exception) -> str | None:
    """Returns one line for what submitit raises: no Slurm here, a job refused, or a job without a result."""
    if not _raised_in(error, "submitit"):
        return None
    text = str(error).partition("\nError stream")[0].partition("\nNo error stream")[0]
    return f"hydra/launcher: {' '.join(line.strip() for line in text.splitlines()[:3])}"


def _raised_in(error: Exception, package: str) -> bool:
    """Whether the innermost frame of the error's traceback is code of `package`."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and f"{trace.tb_frame.f_globals.get('__name__', '')}.".startswith(f"{package}.")
