"""The run folder: who may write there, and what a run says of itself."""

from __future__ import annotations

import copy
import json
import logging
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from gancli import __version__, config, launch
from gancli.checkpoint import write_whole
from gancli.errors import UserError

try:
    import fcntl
except ImportError:  # not a POSIX system: two runs in one folder are then not told apart
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder against other processes; the lock goes with the process, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a", encoding="utf-8") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{folder}: another process is training here; choose another hydra.run.dir") from None
        yield


def continued(folder: Path, settings: Mapping[str, Any], *, overrides: list[str]) -> tuple[dict[str, Any], bool]:
    """The settings to train by, and whether a run in `folder` goes on.

    With `resume=<folder>` they are the run's own, with what `overrides` give on top. Compares texts only,
    and imports nothing that they name. Raises UserError where going on would lose or mix up something.
    """
    resume, settings = str(settings["resume"]), dict(settings)
    if not (folder / "config.yaml").exists():
        return settings, False
    if resume == "never" and launch.restarted():
        resume = "auto"  # the scheduler says the same line again
    if resume == "never":
        raise UserError(f"{folder} holds a run already; resume=auto continues it, or choose another hydra.run.dir")
    if resume == "auto":
        saved = config.load_run(
            folder, trust=[str(node["_target_"]).split(".")[0] for _, node in config.nodes(settings)]
        )
    else:
        saved = config.load_run(folder, trust=settings["trust"])
        if not any(override.startswith("experiment=") for override in overrides):  # which speaks of everything
            settings = _on_top(saved, settings, overrides)
    changed = config.differences(saved, settings)
    if changed:
        raise UserError(
            f"{folder} was trained with other settings, so it cannot go on with these:\n  "
            + "\n  ".join(changed)
            + "\nUse the run's own settings, or start a new run in another hydra.run.dir."
        )
    return settings, True


def _on_top(saved: Mapping[str, Any], settings: Mapping[str, Any], overrides: list[str]) -> dict[str, Any]:
    """The saved settings, with those of `settings` that `overrides` speak of."""
    merged: dict[str, Any] = copy.deepcopy(dict(saved))
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        *way, last = key.partition("@")[2].split(".") if "@" in key else key.split(".")
        into, value = merged, settings
        for name in way:
            child, below = into.get(name), value.get(name)
            into[name] = child if isinstance(child, dict) else {}
            into, value = into[name], below if isinstance(below, Mapping) else {}
        if last in value:
            into[last] = value[last]
        else:
            into.pop(last, None)
    return merged


def describe(folder: Path, settings: Mapping[str, Any], *, overrides: list[str]) -> None:
    """Writes config.yaml, which makes the folder a run, and adds to run.json: what was typed, versions, commit."""
    packages = ("torch", "torchvision", "numpy", "hydra-core", "omegaconf")
    facts = {
        "began": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "overrides": overrides,
        "versions": {"gancli": __version__, "python": platform.python_version()}
        | {name: metadata.version(name) for name in packages},
        "git_commit": commit(),
    }
    record = {"starts": [*_starts(folder), facts]}
    write_whole(folder / "run.json", json.dumps(record, indent=2).encode())
    write_whole(folder / "config.yaml", yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True).encode())


def ended(folder: Path, how: str) -> None:
    """Adds to run.json how the last start ended."""
    starts = _starts(folder)
    starts[-1]["ended"] = how
    write_whole(folder / "run.json", json.dumps({"starts": starts}, indent=2).encode())


def _starts(folder: Path) -> list[Any]:
    try:
        return list(json.loads((folder / "run.json").read_text(encoding="utf-8"))["starts"])
    except (OSError, ValueError, KeyError, TypeError):  # the first start, or a file that somebody damaged
        return []


@cache
def commit() -> str | None:
    """Commit of the checkout that the package runs from, with "+changes" where files differ from it."""
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
