"""What Hydra calls for each command, here or on a cluster's node, and how it ends. Imports torch only at work."""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gancli import budget
from gancli.commands.hydra_callbacks import undo_start
from gancli.config import chosen_none
from gancli.distributed.launch import process_info
from gancli.errors import Collapsed, Diverged, ProcessLost, UserError
from gancli.overrides import typed_value
from gancli.reporting.streams import plain

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)
Work = Callable[[dict[str, Any], Any], float | None]  # settings, Hydra's own configuration -> what a sweep compares


def train(cfg: DictConfig) -> float | None:
    """`gancli train`; returns what a sweep compares."""

    def work(settings: dict[str, Any], hydra: DictConfig) -> float | None:
        from gancli.commands import train

        folder, overrides = Path(hydra.runtime.output_dir), _overrides(hydra)
        search = _direction(hydra.sweeper)
        trainer = train.run(settings, folder=folder, overrides=overrides, search=search, by_budget=budget.keys(cfg))
        if isinstance(trainer.stopped_by, signal.Signals):
            sys.exit(128 + trainer.stopped_by)
        return train.objective(trainer, settings["objective"])

    return run_command(work, cfg)


def evaluate(cfg: DictConfig) -> None:
    """`gancli evaluate`"""

    def work(settings: dict[str, Any], hydra: DictConfig) -> None:
        from gancli.commands import evaluate

        evaluate.run(settings, overrides=_overrides(hydra))

    run_command(work, cfg)


def doctor(runs: int) -> Callable[[DictConfig], None]:
    """`gancli doctor` of the first of so many runs; 0 where there is no sweep."""

    def task(cfg: DictConfig) -> None:
        def work(settings: dict[str, Any], hydra: DictConfig) -> None:
            from gancli.commands import doctor

            launched = {"launcher": hydra.launcher, "sweeper": hydra.sweeper, "runs": runs}
            doctor.run(settings, overrides=_overrides(hydra), by_budget=budget.keys(cfg), **launched)

        run_command(work, cfg)

    return task


def _plain(name: str) -> Callable[[DictConfig], None]:
    """Returns the task of a command that needs its settings alone: `run` in the module of that name."""

    def work(settings: dict[str, Any], hydra: DictConfig) -> None:
        importlib.import_module(f"gancli.commands.{name}").run(settings)

    def task(cfg: DictConfig) -> None:
        run_command(work, cfg)

    return task


sample, report, export, project, theory = map(_plain, ("sample", "report", "export", "project", "theory"))


def _overrides(hydra: Any) -> list[str]:
    """Returns the settings of the command line; those of a run that goes on were forced on what Hydra composed."""
    return [word.removeprefix("++") for word in hydra.overrides.task]


def run_command(work: Work, cfg: DictConfig) -> float | None:
    """Does the work on resolved settings; its expected errors become a message and an exit status."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    logging.captureWarnings(True)
    if not process_info().is_main_process:
        _close_log_files()
    hydra: Any = HydraConfig.get()
    if hydra.job.chdir:
        os.chdir(hydra.runtime.cwd)  # paths stay relative to where the command was typed
    log.info("%s", _first_line(hydra, OmegaConf.to_container(cfg)))  # counting the pictures of a folder may take long
    budget.register()
    settings: Any = chosen_none(hydra.overrides.task) | OmegaConf.to_container(cfg, resolve=True)  # type: ignore[operator]
    sweep = hydra.mode == RunMode.MULTIRUN
    if sweep:
        gc.collect()  # the networks of the job before this one
    if (chosen := budget.chosen(cfg)) is not None:
        log.info("%s", chosen)
    try:
        return work(settings, hydra)
    except (UserError, Diverged, OSError) as error:
        if not sweep:
            status = exit_status(error)
            if isinstance(error, UserError):
                _close_log_files()
                undo_start()
            sys.exit(status)
        worst = _worst_value(hydra.sweeper)
        if isinstance(error, Diverged) and worst is not None:
            _tell_of_failed_job(hydra.job.num, error)
            return worst  # a search goes on
        if not _next_job_may_begin(error):
            sys.exit(exit_status(error))
        _tell_of_failed_job(hydra.job.num, error)
        traceback.clear_frames(error.__traceback__)  # which hold networks, while Hydra holds the error
        raise  # the other jobs of a sweep still run
    except ProcessLost as error:
        report_error(f"error: {error}")
        sys.exit(1)
    except Exception as error:
        log.exception("this job failed: %s: %s", type(error).__name__, error)
        error.__dict__["reported_by"] = os.getpid()
        if sweep and _next_job_may_begin(error):
            raise
        if not process_info().is_main_process and not _is_shared(error):
            traceback.print_exc()  # the log of this process is switched off
        _end_together()
        sys.exit(1)


def _tell_of_failed_job(number: int, error: Exception) -> None:
    """Prints and logs the error of one job of a sweep, which is raised again at the end of the sweep."""
    text = _os_error_text(error) if isinstance(error, OSError) else str(error)
    if process_info().is_main_process:
        print(plain(f"gancli: error: job {number}: {text}"), file=sys.stderr, flush=True)
    record = log.makeRecord(log.name, logging.ERROR, __file__, 0, f"this job failed: {text}", (), None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)
    error.__dict__["reported_by"] = os.getpid()


def was_reported(error: Exception) -> bool:
    """Whether a job of a sweep in this process has told of the error; a job elsewhere told it to its own log."""
    return getattr(error, "reported_by", None) == os.getpid()


@contextlib.contextmanager
def errors_told_once() -> Iterator[None]:
    """Leaves out of standard error what Hydra prints there of a job that failed, since the error is reported anyway."""
    with contextlib.redirect_stderr(_WithoutHydrasLine(sys.stderr)):
        yield


class _WithoutHydrasLine:
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return 0 if text.startswith("Error executing job with overrides: ") else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _first_line(hydra: Any, settings: Any) -> str:
    """Returns what the command is about to do, for the seconds that it takes to import torch."""
    command, parts = hydra.runtime.choices["hydra/help"], list[str]()
    if command in ("train", "doctor") and settings["resume"] in ("never", "auto"):  # else the settings are the run's
        choices = hydra.runtime.choices
        groups = ["experiment", "dataset", "network", "network/generator", "network/discriminator", "loss"]
        chosen = {group: choices.get(group) for group in groups}
        implied = {group for group in groups if group.startswith("network/") and chosen[group] == chosen["network"]}
        parts.append(" ".join(f"{group}={chosen[group]}" for group in groups if chosen[group] and group not in implied))
    if command == "train":
        parts.append(f"run folder {os.path.relpath(hydra.runtime.output_dir)}")
    if settings.get("run") is not None:
        parts.append(f"run={typed_value(settings['run'])}")
    if "torch" not in sys.modules:
        parts.append("loading PyTorch")
    return f"gancli {command}: {'; '.join(parts)}".removesuffix(": ")


def exit_status(error: Exception) -> int:
    """Reports an expected error and returns its exit status."""
    diverged = isinstance(error, Diverged)
    word = "collapsed" if isinstance(error, Collapsed) else "diverged" if diverged else "error"
    known = process_info().is_main_process or not isinstance(error, OSError) or _is_shared(error)
    where = "" if known else f"process {process_info().rank}: "
    text = _os_error_text(error) if isinstance(error, OSError) else str(error)
    report_error(f"{word}: {where}{text}")
    return 1 if diverged else 2


def report_error(text: str) -> None:
    """Prints an error, once for all processes of the run, and returns when it is printed."""

    def tell() -> None:
        print(plain(f"gancli: {text}"), file=sys.stderr, flush=True)

    _end_together(tell)


def _end_together(tell: Callable[[], None] = lambda: None) -> None:
    if process_info().world_size == 1:
        tell()
        return
    from gancli.distributed.process_group import join_process_group

    try:
        group = join_process_group()
    except ProcessLost:  # the others are gone already
        tell()
        return
    group.report_error_once(tell)


def _next_job_may_begin(error: Exception) -> bool:
    """Whether the next job of a sweep may begin: where several processes share the sweep, only if all begin it."""
    if process_info().world_size == 1 or "SUBMITIT_EXECUTOR" in os.environ:  # submitit's processes have one job
        return True
    return _is_shared(error)


def _is_shared(error: Exception) -> bool:
    if process_info().world_size == 1:
        return True
    from gancli.distributed.process_group import join_process_group

    return join_process_group().is_shared(error)


def _close_log_files() -> None:
    """The main process writes them; submitit starts the other processes with the same settings."""
    root = logging.getLogger()
    for handler in [each for each in root.handlers if isinstance(each, logging.FileHandler)]:
        root.removeHandler(handler)
        handler.close()


def _worst_value(sweeper: Mapping[str, Any]) -> float | None:
    """Returns what a search by `sweeper` takes for the worst value; None for a sweep that compares nothing."""
    direction = _direction(sweeper)
    return None if direction is None else float("inf" if direction == "minimize" else "-inf")


def _direction(sweeper: Mapping[str, Any]) -> Literal["minimize", "maximize"] | None:
    """Returns what a search by `sweeper` does with the objective; None for a sweep that compares nothing."""
    direction = sweeper.get("direction")
    return None if direction is None else "minimize" if str(direction).endswith("minimize") else "maximize"


def _os_error_text(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}; nothing that was saved before is lost"
