"""The run folder: the one owner of its file names and formats. It is all that sample, evaluate and resume need.

config.yaml          resolved settings; it makes the folder a run
run.json             format number; for each start the command line, versions, commit, classes, and how it ended
train.log            the log, written by Hydra
metrics.jsonl        a row of scalars every `log.every` images
evaluations.jsonl    a row per evaluation, with its protocol
samples.png          the last sample grid; samples/ holds the earlier ones
progress.png, .gif   the same noise over the run, from these grids
checkpoints/         see `training.checkpoint`
theory/              numbers and a figure of each diagnostic
events.*, wandb/     TensorBoard, Weights & Biases
tracking.json        what wandb and mlflow call this run
"""

from __future__ import annotations

import json
import logging
import platform
import re
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import IO, Any, cast

from gancli import __version__, config
from gancli.build import is_trusted, nodes
from gancli.errors import UserError
from gancli.files.atomic import atomic_write, sweep
from gancli.files.json_files import Row, append_row, keep_rows, read_json, read_rows
from gancli.files.user_paths import is_cache
from gancli.files.yaml_files import plain_yaml, read_plain_yaml

try:
    import fcntl
except ImportError:  # not a POSIX system: two runs in one folder are then not told apart
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)
FORMAT = 2  # of the folder; 1 had no number
_LOCK_ATTEMPTS = 3
_claims = dict[Path, IO[str]]()  # locks of this process for runs that have not begun


class RunFolder:
    """The files of one run. path: the folder; it need not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.record = self.path / "run.json"
        self.log = self.path / "train.log"
        self.metrics = self.path / "metrics.jsonl"
        self.evaluations = self.path / "evaluations.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.samples = self.path / "samples"
        self.final_samples = self.path / "samples.png"
        self.progress_strip = self.path / "progress.png"
        self.progress_animation = self.path / "progress.gif"
        self.theory = self.path / "theory"
        self.tracking = self.path / "tracking.json"
        self.pictures = (self.final_samples, self.progress_strip, self.progress_animation)
        self.texts = (self.config, self.record, self.log, self.metrics, self.evaluations, self.tracking)

    def sample_grid(self, images: int) -> Path:
        """Returns the file of the sample grid after `images` images."""
        return self.samples / f"images-{images:012d}.png"

    def sample_grids(self) -> dict[int, Path]:
        """Returns the files of the sample grids by the number of images seen, the first ones first."""
        found = (
            (re.fullmatch(r"images-(\d{12})\.png", file.name), file) for file in sorted(self.samples.glob("*.png"))
        )
        return {int(match[1]): file for match, file in found if match is not None}

    def check_files(self) -> None:
        """Raises UserError where a file or folder of the run is a link, a pipe or a device.

        The folder may come from elsewhere, and what is written to such a file would land in another place, or wait for
        ever. The run folder itself may be a link.
        """
        folders = (self.checkpoints, self.samples, self.theory, self.path / ".hydra")
        inside = [
            path for folder in folders if folder.is_dir() and not folder.is_symlink() for path in folder.iterdir()
        ]
        others = [self.path / name for name in (".lock", "export", "wandb")]
        for path in [*self.texts, *self.pictures, *others, *folders, *inside]:
            if path.is_symlink() or (path.exists() and not path.is_file() and not path.is_dir()):
                raise UserError(f"{path}: is a link, a pipe or a device; a run folder holds files and folders alone")

    def exists(self) -> bool:
        """Whether the folder holds a run."""
        return self.config.is_file()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder and holds it against other processes; the lock ends with the process. Raises UserError.

        What killed processes left half written is deleted.
        """
        with _claims.pop(self.path.resolve(), None) or self._lock():
            for folder in (self.path, self.checkpoints, self.samples, self.theory):
                sweep(folder)
            yield

    def claim(self) -> None:
        """Locks the folder, made if need be, for a run of this process that begins later by `locked`. As `locked`."""
        self.release()
        _claims[self.path.resolve()] = self._lock()

    def release(self) -> None:
        """Gives up the claim, if there is one."""
        if self.path.resolve() in _claims:
            _claims.pop(self.path.resolve()).close()

    def _lock(self) -> IO[str]:
        self.path.mkdir(parents=True, exist_ok=True)
        self.check_files()
        file = open(self.path / ".lock", "a", encoding="utf-8")  # noqa: SIM115
        if fcntl is not None:
            for attempt in range(_LOCK_ATTEMPTS):
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError as error:
                    if isinstance(error, BlockingIOError) and attempt + 1 < _LOCK_ATTEMPTS:
                        time.sleep(0.05)  # somebody may only look whether it is locked
                        continue
                    file.close()
                    if not isinstance(error, BlockingIOError):
                        raise
                    raise UserError(
                        f"{self.path}: another process is training here; choose another hydra.run.dir"
                    ) from None
        return file

    def is_locked(self) -> bool:
        """Whether a process of this machine trains here now, as far as that can be known."""
        lock = self.path / ".lock"
        if fcntl is None or lock.is_symlink() or not lock.is_file():
            return False
        try:
            with open(lock, encoding="utf-8") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    # Settings and starts

    def settings(self, *, trust: list[str], parts: tuple[str, ...] = ()) -> dict[str, Any]:
        """Returns the settings of the run as plain values: all of them, or those at and below the keys `parts`.

        The folder may come from elsewhere, so it is data: its settings may name only classes of gancli, optimizers of
        torch, and classes of the packages in `trust`, each where its kind belongs; no file of weights that another
        package would load; and no folder to write to but a cache that is one already. Raises UserError.
        """
        self.check_files()
        settings = self.read_config()
        self.check_format()
        if parts:
            settings = _only(settings, parts)
        require_trusted(settings, file=self.config, trust=trust)
        found = config.problems(settings, {}) if parts else config.problems_of_run(settings)
        problems = [text for _, text in found]
        problems += [f"{key}: is missing" for key in parts if "_target_" not in _at(settings, key)]
        if problems:
            raise UserError(f"{self.config} does not hold the settings of a run:\n  " + "\n  ".join(problems))
        for key, node in nodes(settings):
            if node.get("cache") is not None and not is_cache(node["cache"]):
                log.warning("%s.cache=%s in %s is no cache and is not used", key, node["cache"], self.config)
                cast(dict[str, Any], node)["cache"] = None
            if node.get("download"):
                cast(dict[str, Any], node)["download"] = False
        return settings

    def read_config(self) -> dict[str, Any]:
        """Returns what config.yaml holds, unchecked. Raises UserError where it is no YAML mapping of plain values."""
        if not self.path.is_dir():
            raise UserError(f"run={self.path}: no such folder")
        if not self.config.is_file():
            runs = sorted(str(file.parent) for file in self.path.glob("**/config.yaml") if ".hydra" not in file.parts)
            raise UserError(
                f"run={self.path}: not a run folder, it has no config.yaml" + (f"; try {runs[-1]}" if runs else "")
            )
        try:
            settings = read_plain_yaml(self.config)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.config}: not readable as YAML: {error}") from None
        if not isinstance(settings, dict):
            raise UserError(f"{self.config}: not the configuration of a run")
        return settings

    def check_format(self) -> None:
        """Raises UserError where another version of gancli wrote the folder in another format."""
        record = read_json(self.record)
        found = record.get("format", 1 if record else FORMAT)
        if found == FORMAT:
            return
        starts = record.get("starts")
        last = starts[-1] if isinstance(starts, list) and starts and isinstance(starts[-1], dict) else {}
        versions = last.get("versions")
        version = versions.get("gancli") if isinstance(versions, dict) else None
        version = version if isinstance(version, str) else "of an unknown version"
        raise UserError(
            f"{self.path}: written by gancli {version} in run folder format {found}; gancli {__version__} reads format "
            f"{FORMAT}. Use gancli {version} for this run, or train it anew."
        )

    def describe(
        self,
        settings: Mapping[str, Any],
        *,
        overrides: list[str],
        weights_from: str | None = None,
        classes: Sequence[str] = (),
        device: str | None = None,
        processes: int = 1,
    ) -> None:
        """Writes config.yaml, and adds a start to run.json: the overrides, versions, and the commit.

        weights_from: the checkpoint of another run whose weights this start begins with. classes: the names of the
        data's classes, in the order of their labels, where they have names. device: of each of the `processes`.
        """
        packages = ("torch", "torchvision", "numpy", "hydra-core", "omegaconf")
        start = {
            "began": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "overrides": overrides,
            "versions": {"gancli": __version__, "python": platform.python_version()}
            | {name: metadata.version(name) for name in packages},
            "git_commit": git_commit(),
            "device": device,
            "processes": processes,
        }
        if weights_from is not None:
            start["weights_from"] = weights_from
        if classes:
            start["classes"] = list(classes)
        self._write_starts([*self.starts(), start])
        atomic_write(self.config, plain_yaml(dict(settings)).encode())

    def record_end(self, how: str, *, samples: Mapping[str, Any] | None = None) -> None:
        """Adds to run.json how the last start ended. samples: from which weights the last sample grid is, and why."""
        starts = self.starts()
        starts[-1]["ended"] = how
        if samples is not None:
            starts[-1]["samples"] = dict(samples)
        self._write_starts(starts)

    def has_ended(self, how: str) -> bool:
        """Whether the last start ended in this way."""
        return bool(starts := self.starts()) and starts[-1].get("ended") == how

    def starts(self) -> list[Row]:
        """Returns one row per start, oldest first; none where the file is missing or damaged."""
        starts = read_json(self.record).get("starts", [])
        return [start for start in starts if isinstance(start, dict)] if isinstance(starts, list) else []

    def class_names(self) -> list[str]:
        """Returns the names of the classes, in the order of their labels; none where they have no names."""
        starts = self.starts()
        names = starts[-1].get("classes") if starts else None
        return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []

    def _write_starts(self, starts: list[Row]) -> None:
        atomic_write(self.record, json.dumps({"format": FORMAT, "starts": starts}, indent=2).encode())

    def last_log_line(self) -> str:
        """Returns the last line of the log without its date, such as why a job failed. A traceback has no dates."""
        if not self.log.is_file():
            return ""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        dated = [line.split("] ", 1)[1] for line in lines if re.match(r"\[\d{4}-.*?\]\[.*?\]\[[A-Z]+\] ", line)]
        return dated[-1] if dated else ""

    # Rows of scalars and evaluations

    def append_metrics(self, row: Row) -> None:
        """Appends a row with `images`, `seconds` and scalars. Raises OSError."""
        append_row(self.metrics, row)

    def append_evaluation(self, row: Row) -> None:
        """Appends an evaluation with its protocol, and by which version it was made. Raises OSError."""
        append_row(self.evaluations, {**row, **provenance()})

    def read_metrics(self) -> list[Row]:
        """Returns the rows of metrics.jsonl, oldest first."""
        return read_rows(self.metrics)

    def read_evaluations(self, *, by: str | None = None) -> list[Row]:
        """Returns the rows of evaluations.jsonl, oldest first. by: "train" or "evaluate", None for both."""
        rows = [row for row in read_rows(self.evaluations) if isinstance(row.get("values"), dict)]
        return [row for row in rows if by is None or row.get("by") == by]

    def truncate_after(self, images: int) -> None:
        """Deletes the rows and sample grids of training after more than `images` images, and lines that were cut off.

        A run that was killed after its last checkpoint, or was rolled back, takes those steps again.
        """
        keep_rows(self.metrics, lambda row: row["images"] <= images)
        keep_rows(self.evaluations, lambda row: row.get("by") != "train" or row["images"] <= images)
        for after, file in self.sample_grids().items():
            if after > images:
                file.unlink(missing_ok=True)

    def read_tracking(self) -> dict[str, str]:
        """Returns what services call this run, by the name of the service."""
        return {name: value for name, value in read_json(self.tracking).items() if _is_id(value)}

    def write_tracking(self, ids: Mapping[str, str]) -> None:
        """Writes what services call this run. Raises OSError."""
        atomic_write(self.tracking, json.dumps(dict(ids), indent=1).encode())

    # Diagnostics

    def write_diagnostic(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes what the diagnostic `name` found. Raises OSError."""
        self.theory.mkdir(exist_ok=True)
        atomic_write(self.theory / f"{name}.json", json.dumps(dict(content), indent=1).encode())

    def read_diagnostic(self, name: str) -> Row:
        """Returns what the diagnostic `name` found; an empty dict where it left nothing."""
        return read_json(self.theory / f"{name}.json")


def _is_id(value: Any) -> bool:
    """Whether a value, maybe from a file of somebody else's, can be what a service calls a run."""
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_-]{4,64}", value) is not None


def require_trusted(settings: Mapping[str, Any], *, file: Path, trust: list[str]) -> None:
    """Raises UserError where building `settings`, which came from `file`, may run code that is not gancli's own.

    trust: packages whose classes it may name.
    """
    foreign = [f"{key}._target_={node['_target_']}" for key, node in nodes(settings) if not is_trusted(node, trust)] + [
        f"{key}.weights={node['weights']} (a file that torch_fidelity loads)"
        for key, node in nodes(settings)
        if isinstance(node.get("weights"), str) and "torch_fidelity" not in trust
    ]
    if foreign:
        raise UserError(
            f"{file} names what is not gancli's own, and building it may run code:\n  "
            + "\n  ".join(foreign)
            + "\nIf that code is yours, say trust=[package] with the package it is in."
        )


def _at(settings: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Returns the mapping at a dotted key, an empty one where there is none."""
    found: Any = settings
    for name in key.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _only(settings: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Returns the settings at the dotted `keys` alone."""
    picked: dict[str, Any] = {}
    for key in keys:
        *parents, last = key.split(".")
        into = picked
        for name in parents:
            into = into.setdefault(name, {})
        into[last] = _at(settings, key)
    return picked


def provenance() -> dict[str, str | None]:
    """Returns the version and the commit that compute, for the protocol of a number."""
    return {"gancli": __version__, "git_commit": git_commit()}


@cache
def git_commit() -> str | None:
    """Returns the commit of the checkout that the package runs from, with "+changes" where files differ from it."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(checkout), "describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
