"""What Hydra tells of the folders that it makes: a start that is refused changes none, a sweep names its report."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from gancli.distributed.launch import process_info
from gancli.errors import UserError
from gancli.overrides import typed
from gancli.reporting.streams import plain
from gancli.training.run_folder import RunFolder

_OF_HYDRA = {".hydra", "train.log", ".lock"}
_starts = list["_Start"]()  # of this process, the last one alone
_sweeps = list[str]()  # the folder of this sweep


@dataclass
class _Start:
    """How a run folder was before Hydra wrote into it. made: it, and those above it, that did not exist."""

    run: RunFolder
    made: list[Path] = field(init=False)
    hydra_files: dict[Path, bytes] = field(init=False)
    log_size: int | None = field(init=False)

    def __post_init__(self) -> None:
        folder = self.run.path
        self.made = [path for path in (folder, *folder.parents) if not path.exists()]
        self.hydra_files = {path: path.read_bytes() for path in self._files()}
        self.log_size = self.run.log.stat().st_size if self.run.log.exists() else None

    def undo(self) -> None:
        """Restores that, unless a run has written into a folder that this start made."""
        if self.made and not {path.name for path in self.run.path.iterdir()} - _OF_HYDRA:
            shutil.rmtree(self.run.path)
            with contextlib.suppress(OSError):  # not empty: of other runs
                for folder in self.made[1:]:
                    folder.rmdir()
        elif not self.made:
            self._restore()

    def _restore(self) -> None:
        for path in self._files():
            if path not in self.hydra_files:
                path.unlink()
            elif path.read_bytes() != self.hydra_files[path]:
                path.write_bytes(self.hydra_files[path])
        with contextlib.suppress(OSError):  # not there, or not empty
            (self.run.path / ".hydra").rmdir()
        if self.log_size is None:
            self.run.log.unlink(missing_ok=True)
        else:
            os.truncate(self.run.log, self.log_size)

    def _files(self) -> list[Path]:
        return list((self.run.path / ".hydra").glob("*.yaml"))


class Folders(Callback):
    """Remembers the folders of this start. Hydra calls it before it makes them."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Of a run that is not part of a sweep. Locks its folder; ends the process where another one works there."""
        _starts.clear()
        if config.hydra.runtime.choices["hydra/help"] != "train" or not process_info().is_main_process:
            return
        try:
            remember_start(Path(config.hydra.run.dir))
        except UserError as error:  # Hydra would make a warning of it
            print(plain(f"gancli: error: {error}"), file=sys.stderr)
            sys.exit(2)
        except OSError:  # Hydra will meet it too
            return

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Of a sweep; one run that is launched like a sweep of one has no folder of its own in it."""
        written: Any = OmegaConf.to_container(config, resolve=False)  # a job's number is not known yet
        _sweeps[:] = [] if written["hydra"]["sweep"]["subdir"] == "." else [config.hydra.sweep.dir]


def remember_start(folder: Path) -> None:
    """Locks a run folder for a run that begins soon, which `undo_start` can take back. Raises UserError, OSError."""
    _starts.clear()
    start = _Start(RunFolder(folder.absolute()))
    start.run.claim()
    _starts.append(start)


def keep_start() -> None:
    """Forgets how the folder of this start was before, once the training begins."""
    _starts.clear()


def undo_start() -> None:
    """Makes the folder of a start that was refused what it was before."""
    for start in _starts:
        with contextlib.suppress(OSError):  # the refusal is the error to report
            start.undo()
        start.run.release()
    _starts.clear()


def command_after_sweep() -> str | None:
    """Returns what to type after this sweep; None where there was none, or none of its runs began. Forgets it."""
    folder = Path(_sweeps.pop()) if _sweeps else None
    began = folder is not None and any(path.is_dir() for path in folder.glob("[!.]*"))
    return f"gancli report {typed('run', folder)}" if folder is not None and began else None
