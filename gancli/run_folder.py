"""The run folder: who may write there, and what a run says of itself."""

from __future__ import annotations

import json
import logging
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from gancli import __version__, config
from gancli.checkpoint import write_whole
from gancli.errors import UserError

try:
    import fcntl
except ImportError:  # not a POSIX system: two runs in one folder are then not told apart
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)
_SETTING = re.compile(r"[+~]{0,2}(?!hydra\b)[A-Za-z_][\w./@]*(=|$)")


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


def continues(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Whether the run in `folder` is to go on. Raises UserError where that would lose or mix up something."""
    resume = str(settings["resume"])
    if not (folder / "config.yaml").exists():
        if resume not in ("auto", "never"):
            raise UserError(
                f"resume={resume}: not a run folder, it has no config.yaml; or say resume=auto or resume=never"
            )
        return False
    if resume == "never":
        raise UserError(f"{folder} holds a run already; resume=auto continues it, or choose another hydra.run.dir")
    saved = config.load_run(folder, trust=[str(node["_target_"]).split(".")[0] for _, node in config.nodes(settings)])
    changed = config.differences(saved, settings)
    if changed:
        raise UserError(
            f"{folder} was trained with other settings, so it cannot go on with these:\n  "
            + "\n  ".join(changed)
            + "\nUse the run's own settings, or start a new run in another hydra.run.dir."
        )
    return True


def describe(folder: Path, settings: Mapping[str, Any], *, overrides: list[str]) -> None:
    """Writes config.yaml, which makes the folder a run, and run.json: versions, commit, overrides."""
    packages = ("torch", "torchvision", "numpy", "hydra-core", "omegaconf")
    facts = {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "overrides": overrides,
        "versions": {"gancli": __version__, "python": platform.python_version()}
        | {name: metadata.version(name) for name in packages},
        "git_commit": _commit(),
    }
    write_whole(folder / "run.json", json.dumps(facts, indent=2).encode())
    write_whole(folder / "config.yaml", yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True).encode())


def overrides_of(folder: Path) -> list[str]:
    """The overrides with which the run in `folder` was started. Raises UserError.

    They are data: settings of the run, not of Hydra, which could be told to build things.
    """
    try:
        overrides = json.loads((folder / "run.json").read_text(encoding="utf-8"))["overrides"]
    except (OSError, ValueError, KeyError, TypeError):
        overrides = None
    if not (folder / "config.yaml").is_file() or not isinstance(overrides, list):
        raise UserError(f"resume={folder}: not a run folder (its config.yaml or run.json is missing or damaged)")
    strange = [str(text) for text in overrides if not _SETTING.match(str(text))]
    if strange:
        raise UserError(f"resume={folder}: its run.json has overrides that are no settings of a run: {strange}")
    return [str(text) for text in overrides]


def _commit() -> str | None:
    """Commit of the checkout that the package runs from, with "+changes" where files differ from it."""
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
