"""Hydra's and OmegaConf's errors in one line that names the key, the value and the nearest valid one."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence

from gancli.config import compose, config_dir, leaves
from gancli.errors import did_you_mean

_EXTRAS = {"submitit_slurm": "slurm", "optuna": "sweep"}  # Hydra's plugin -> the extra of gancli that installs it


def explain(error: Exception, command: str, overrides: list[str]) -> str:
    """Returns one clear text for an error in composing `command` with `overrides`."""
    from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException

    if isinstance(error, MissingConfigException) and error.missing_cfg_file and "/" in error.missing_cfg_file:
        return _unknown_choice(error.missing_cfg_file, error.options)
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    if isinstance(error, ConfigCompositionException):
        unknown = _unknown_override(command, overrides)
        if unknown is not None:
            key, _, value = unknown.lstrip("+~").partition("=")
            word = key.partition("@")[0] if "/" in key else key
            shown = f"{word}={value}" if "=" in unknown else word
            hint = did_you_mean(word, known_keys(command))
            more = "" if hint else f"; `gancli {command} --cfg job` prints every key, and +{shown} adds a new one"
            return f"{shown}: no such setting or group{hint}{more}"
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return re.sub(r"\s+", " ", "; ".join(lines[:3])) or type(error).__name__


def _unknown_choice(file: str, options: Sequence[str] | None) -> str:
    group, _, name = file.rpartition("/")
    if name in _EXTRAS:
        return f"{group}: needs a package that is not here; pip install 'gancli[{_EXTRAS[name]}]'"
    known = sorted(options or (path.stem for path in (config_dir() / group).glob("*.yaml")))
    return f"{group}={name}: no such choice{did_you_mean(name, known)}; choose from {', '.join(known) or 'none'}"


def _unreadable(override: str) -> str:
    name, equals, value = override.partition("=")
    if not equals:
        return f"{override}: has no value; write settings as key=value"
    if value.lstrip().startswith(("[", "{")):
        return f"{override}: not readable; are its brackets and quotes closed?"
    bare = value.strip("'\"")
    return f"{override}: not readable; quote such a value twice, once for the shell: \"{name}='{bare}'\""


def _unknown_override(command: str, overrides: list[str]) -> str | None:
    """Returns the first override of a key or group that does not exist under the chosen groups; None for none."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    command = "train" if command == "doctor" else command  # which composes the same configuration
    words = [word for word in overrides if "=" in word and not word.startswith(("-", "hydra"))]
    words += [word for word in overrides if word.startswith("~") and "=" not in word]
    parsed = {word: OverridesParser.create().parse_override(word) for word in words}
    groups = [word for word, override in parsed.items() if _is_group(override.key_or_group)]
    settings = OmegaConf.create(compose(command, []))
    with contextlib.suppress(HydraException):  # a group that is not in this command's defaults
        settings = OmegaConf.create(compose(command, groups))
    for word, override in parsed.items():
        key = override.key_or_group
        if _is_group(key):
            try:
                compose(command, [word])
            except HydraException:
                return word
        elif not (override.is_add() or override.is_force_add()):
            parent, _, name = key.rpartition(".")
            node = OmegaConf.select(settings, parent) if parent else settings
            if not OmegaConf.is_dict(node) or name not in node:
                return word
    return None


def _is_group(key: str) -> bool:
    return (config_dir() / key.partition("@")[0]).is_dir()


def null_group(overrides: list[str]) -> str | None:
    """Returns a text where an override sets a group to null, which Hydra refuses; None where none does."""
    for word in overrides:
        key, _, value = word.partition("=")
        if value == "null" and _is_group(key):
            return f"{word}: a group has no null; name a choice, such as penalty=none for no penalty"
    return None


def launcher_error(error: Exception) -> str | None:
    """Returns one line for what submitit raises: no Slurm here, a job refused, or a job without a result."""
    if not raised_in(error, "submitit"):
        return None
    text = str(error).partition("\nError stream")[0].partition("\nNo error stream")[0]
    return f"hydra/launcher: {' '.join(line.strip() for line in text.splitlines()[:3])}"


def raised_in(error: Exception, package: str) -> bool:
    """Whether the innermost frame of the error's traceback is code of `package`."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and f"{trace.tb_frame.f_globals.get('__name__', '')}.".startswith(f"{package}.")


def known_keys(command: str) -> list[str]:
    """Returns the groups, and the dotted keys and sections of the command's default settings."""
    groups = [folder.name for folder in config_dir().iterdir() if folder.is_dir()]
    keys = [key for key, _ in leaves(compose("train" if command == "doctor" else command, []))]
    sections = {key.rpartition(".")[0] for key in keys} - {""}
    return [*groups, *keys, *sections]
