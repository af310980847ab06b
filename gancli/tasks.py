"""What Hydra calls for each command, here or on a cluster's node, and how it ends. No torch before it is at work."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gancli.errors import Collapsed, Diverged, UserError
from gancli.launch import place

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> float | None:
    """`gancli train`; returns what a sweep compares."""

    def work(settings: dict[str, Any], hydra: DictConfig) -> float | None:
        from gancli import train

        folder, overrides = Path(hydra.runtime.output_dir), list(hydra.overrides.task)
        search = _worst(hydra.sweeper) is not None
        trainer = train.run(settings, folder=folder, overrides=overrides, search=search)
        if isinstance(trainer.stopped_by, signal.Signals):
            sys.exit(128 + trainer.stopped_by)
        return train.objective(trainer, settings["objective"])

    return _guarded(work, cfg)


def sample(cfg: DictConfig) -> None:
    """`gancli sample`"""

    def work(settings: dict[str, Any], hydra: DictConfig) -> None:
        from gancli import sample

        sample.run(settings)

    _guarded(work, cfg)


def evaluate(cfg: DictConfig) -> None:
    """`gancli evaluate`"""

    def work(settings: dict[str, Any], hydra: DictConfig) -> None:
        from gancli import evaluate

        evaluate.run(settings)

    _guarded(work, cfg)


def doctor(runs: int) -> Callable[[DictConfig], None]:
    """`gancli doctor` of the first of so many runs; 0 where there is no sweep."""

    def work(settings: dict[str, Any], hydra: DictConfig) -> None:
        from gancli import doctor

        overrides = list(hydra.overrides.task)
        doctor.run(settings, overrides=overrides, launcher=hydra.launcher, sweeper=hydra.sweeper, runs=runs)

    def task(cfg: DictConfig) -> None:
        _guarded(work, cfg)

    return task


def report(cfg: DictConfig) -> None:
    """`gancli report`"""

    def work(settings: dict[str, Any], hydra: DictConfig) -> None:
        from gancli import report

        report.run(settings)

    _guarded(work, cfg)


def theory(cfg: DictConfig) -> None:
    """`gancli theory`"""

    def work(settings: dict[str, Any], hydra: DictConfig) -> None:
        from gancli import theory

        theory.run(settings)

    _guarded(work, cfg)


def _guarded(work: Callable[[dict[str, Any], Any], float | None], cfg: DictConfig) -> float | None:
    """The work on resolved settings; its expected endings become an exit status."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    logging.captureWarnings(True)
    if not place().first:
        _leave_the_log()
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    hydra = HydraConfig.get()
    sweep = hydra.mode == RunMode.MULTIRUN
    try:
        return work(settings, hydra)
    except (UserError, Diverged, OSError) as error:
        if not sweep:
            sys.exit(ended(error))
        log.error("this job failed: %s", error)
        worst = _worst(hydra.sweeper)
        if isinstance(error, Diverged) and worst is not None:
            return worst  # a search goes on
        if not _together(error):
            sys.exit(ended(error))
        raise  # the other jobs of a sweep still run; the first failure is told again
    except Exception as error:
        if not place().alone and isinstance(error, RuntimeError) and _connection(error):
            if _first_to_tell():
                print(
                    "gancli: error: another process of this run ended without a word; was it killed?", file=sys.stderr
                )
            sys.exit(1)
        log.exception("this job failed: %s: %s", type(error).__name__, error)
        if sweep and _together(error):
            raise
        if not place().first and not _everywhere(error):
            traceback.print_exc()  # its log is switched off
        _first_to_tell()
        sys.exit(1)


def _together(error: Exception) -> bool:
    """Whether the next job of a sweep may begin: in several processes that share the sweep, if all of them begin it."""
    return place().alone or "SUBMITIT_EXECUTOR" in os.environ or _everywhere(error)  # whose processes have one job


def _everywhere(error: Exception) -> bool:
    distributed = sys.modules.get("gancli.distributed")
    return distributed is not None and distributed.everywhere(error)


def _leave_the_log() -> None:
    """The first process writes it; submitit starts the others with the same settings."""
    root = logging.getLogger()
    for handler in [each for each in root.handlers if isinstance(each, logging.FileHandler)]:
        root.removeHandler(handler)
        handler.close()


def _worst(sweeper: Mapping[str, Any]) -> float | None:
    """What a search by `sweeper` takes for the worst; None for a sweep that compares nothing."""
    direction = sweeper.get("direction")
    return None if direction is None else float("inf" if str(direction).endswith("minimize") else "-inf")


def ended(error: Exception) -> int:
    """Tells an expected ending and returns its exit status."""
    diverged = isinstance(error, Diverged)
    word = "collapsed" if isinstance(error, Collapsed) else "diverged" if diverged else "error"
    if _first_to_tell():
        known = place().first or not isinstance(error, OSError) or _everywhere(error)
        where = "" if known else f"process {place().rank}: "
        text = _worded(error) if isinstance(error, OSError) else str(error)
        print(f"gancli: {word}: {where}{text}", file=sys.stderr)
    return 1 if diverged else 2


def _first_to_tell() -> bool:
    """Whether no other process of this run has told of an error; the others end because of it, or of the same."""
    distributed = sys.modules.get("gancli.distributed")
    return place().first if distributed is None else distributed.first_to_fail()


def _connection(error: RuntimeError) -> bool:
    """Whether a message between processes did not come through."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "onnection", "NCCL"))


def _worded(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}; nothing that was saved before is lost"
