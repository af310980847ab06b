"""Hydra's and OmegaConf's complaints, in a line that names the key, the value and the nearest valid one."""

from __future__ import annotations

import re

from gancli.config import config_dir, leaves
from gancli.errors import did_you_mean


def explain(error: Exception, command: str, overrides: list[str]) -> str:
    """One clear text for an error in composing `command` with `overrides`."""
    text = str(error).strip()
    choice = re.search(r"Could not (?:find|load) '(?P<group>[^']*)/(?P<name>[^'/]*)'", text)
    if choice:
        group, name = choice["group"], choice["name"]
        extra = {"submitit_slurm": "slurm", "optuna": "sweep"}.get(name)
        if extra is not None:
            return f"{group}: needs a package that is not here; pip install 'gancli[{extra}]'"
        options = sorted(re.findall(r"^\t(\S+)$", text, flags=re.MULTILINE))
        options = options or sorted(file.stem for file in (config_dir() / group).glob("*.yaml"))
        return (
            f"{group}={name}: no such choice{did_you_mean(name, options)}; choose from {', '.join(options) or 'none'}"
        )
    key = re.search(r"Could not (?:override|append to|delete) '?(?P<key>[^'\s]+?)'?[.:]?(?:\s|$)", text)
    if key:
        word = key["key"].partition("@")[0] if "/" in key["key"] else key["key"]
        value = next((o.partition("=")[2] for o in overrides if o.lstrip("+~").startswith(f"{key['key']}=")), None)
        shown = word if value is None else f"{word}={value}"
        near = did_you_mean(word, known_keys(command))
        more = "" if near else f"; `gancli {command} --cfg job` prints every key, and +{shown} adds a new one"
        return f"{shown}: no such setting or group{near}{more}"
    if "missing EQUAL" in text:
        return text.splitlines()[0] + "; write settings as key=value"
    override = getattr(error, "override", None)  # of Hydra's parser
    if isinstance(override, str) and "=" in override:
        name, _, value = override.partition("=")
        if value.lstrip().startswith(("[", "{")):
            return f"{override}: not readable; are its brackets and quotes closed?"
        bare = value.strip("'\"")
        return f"{override}: not readable; quote such a value twice, once for the shell: \"{name}='{bare}'\""
    lines = [line for line in text.splitlines() if line.strip()]
    return re.sub(r"\s+", " ", "; ".join(lines[:3])) or type(error).__name__


def of_the_launcher(error: Exception) -> str | None:
    """One line for what submitit raises: no Slurm here, a job that it refused or that ended without a result."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not trace.tb_frame.f_globals.get("__name__", "").startswith("submitit."):
        return None
    text = str(error).partition("\nError stream")[0].partition("\nNo error stream")[0]
    shown = " ".join(line.strip() for line in text.splitlines()[:3])
    more = "; its log is in that folder" if "has not produced any output" in text else ""
    return f"hydra/launcher: {shown}{more}"


def known_keys(command: str) -> list[str]:
    """The groups, and the dotted keys of the command's default settings."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        settings = OmegaConf.to_container(compose("train" if command == "doctor" else command), resolve=False)
    groups = [folder.name for folder in config_dir().iterdir() if folder.is_dir()]
    keys = [key for key, _ in leaves(settings)]
    sections = {key.rpartition(".")[0] for key in keys} - {""}
    return [*groups, *keys, *sections]
