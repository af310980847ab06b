"""What Hydra tells of the folders that it makes: a start that is refused leaves none, a sweep names its report."""

from __future__ import annotations

import contextlib
import shlex
import shutil
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

_OF_HYDRA = {".hydra", "train.log", ".lock"}
_made = list[Path]()  # by this start: the run folder, then those above it that did not exist either
_sweeps = list[str]()  # the folder of this sweep


class Folders(Callback):
    """Remembers the folders of this start. Hydra calls it before it makes them."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Of a run that is not part of a sweep."""
        folder = Path(config.hydra.run.dir).absolute()
        _made[:] = [path for path in (folder, *folder.parents) if not path.exists()]

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Of a sweep; one run that is launched like a sweep of one has no folder of its own in it."""
        written: Any = OmegaConf.to_container(config, resolve=False)  # a job's number is not known yet
        _sweeps[:] = [] if written["hydra"]["sweep"]["subdir"] == "." else [config.hydra.sweep.dir]


def remove_new_folders() -> None:
    """Removes what this start made, unless there is more in it than Hydra's own files. Nothing older is touched."""
    if not _made or not _made[0].is_dir() or {path.name for path in _made[0].iterdir()} - _OF_HYDRA:
        return
    shutil.rmtree(_made[0])
    with contextlib.suppress(OSError):  # not empty: of other runs
        for folder in _made[1:]:
            folder.rmdir()


def command_after_sweep() -> str | None:
    """Returns what to type after this sweep; None where there was none. Forgets it."""
    return f"gancli report run={shlex.quote(_sweeps.pop())}" if _sweeps else None
