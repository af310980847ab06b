"""`gancli doctor`: what `gancli train` with the same words would take, from a few steps in a folder thrown away."""

from __future__ import annotations

import logging
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from gancli.commands import train
from gancli.diagnostics.base import Run, diagnose
from gancli.distributed.process_group import join_process_group
from gancli.errors import FeaturesUnavailable
from gancli.training import cuda_graphs
from gancli.training.logging import TrainingLogger
from gancli.training.run_folder import RunFolder, settings_to_continue
from gancli.training.trainer import Trainer

log = logging.getLogger(__name__)
SECONDS = 6.0  # of steps to take the time of
LEAST = 2  # steps
IMPORTS = 10.0  # seconds at most
ROWS = 100  # of the log, for diagnostics that read it


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds of each thing that a run does. start: before its first step. end: diagnostics after its last one."""

    start: float
    step: float
    row: float
    evaluation: float
    picture: float
    checkpoint: float
    end: float

    def training(self, trainer: Trainer, images: int) -> float:
        """Returns the seconds of a run of so many images, between start and end, in the main process."""
        logger = trainer.logger
        assert isinstance(logger, TrainingLogger)
        steps = math.ceil(images / trainer.step_images)
        images = steps * trainer.step_images

        def times(every: int | None) -> int:
            """Multiples of `every` that steps reach or pass, and the end where it is none."""
            return min(steps, math.ceil(images / every)) if every else 0

        return (
            self.step * steps
            + self.row * times(logger.every)
            + self.evaluation * times(trainer.evaluation.every)
            + self.checkpoint * times(trainer.checkpoints.every)
            + self.picture * (min(steps, images // logger.pictures) + 1)
        )


def run(
    settings: Mapping[str, Any],
    *,
    overrides: list[str],
    launcher: Mapping[str, Any],
    sweeper: Mapping[str, Any],
    runs: int,
) -> dict[str, float]:
    """Prints the findings and returns the numbers, in the first process. launcher, sweeper: Hydra's nodes.

    runs: of a sweep of which `settings` are one; 0 for none. Raises UserError, Diverged, OSError.
    """
    awake = _awake()
    settings = {**settings, "penalty": train.chosen_penalties(settings["penalty"], overrides)}
    if settings["resume"] not in ("auto", "never"):
        resumed = RunFolder(Path(settings["resume"]).expanduser())
        settings, _ = settings_to_continue(resumed, settings, overrides=overrides)
    train.check_settings(settings, world_size=join_process_group().world_size)
    with tempfile.TemporaryDirectory(prefix="gancli-doctor-") as folder:
        trainer, seconds = _assembled(settings, RunFolder(Path(folder)))
        with _quiet():
            costs = _measured(trainer, RunFolder(Path(folder)), settings["diagnostic"], start=awake + seconds)
    if not trainer.process_group.is_main_process:
        return {}
    speed = trainer.step_images / costs.step
    log.info("speed         %s images/s, %.2g s a step of %s images", f"{speed:,.0f}", costs.step, trainer.step_images)
    log.info("memory        %s at its peak", _memory())
    found = {"images_per_second": speed, "seconds": _length(trainer, costs)}
    _metrics(trainer, costs)
    _launcher(launcher, sweeper, runs, seconds=found["seconds"], processes=trainer.process_group.world_size)
    return found


def _awake() -> float:
    """Seconds that starting Python and importing took."""
    return time.process_time()


def _assembled(settings: Mapping[str, Any], folder: RunFolder) -> tuple[Trainer, float]:
    """And the seconds that `gancli train` takes for it: it imports, but finds what was decoded or learned here.

    So a second time counts, and of what the first one took longer no more than imports do.
    """
    # There is nothing to act on so early.
    settings = {**settings, "health": {**settings["health"], "action": "warn"}}
    began = time.monotonic()
    try:
        train.assemble(settings, folder=folder)
    except FeaturesUnavailable as error:
        log.warning("metrics       %s", error)
        settings = {**settings, "evaluation": {**settings["evaluation"], "every": None}}
        train.assemble(settings, folder=folder)
    first, began = time.monotonic() - began, time.monotonic()
    with _quiet():
        trainer = train.assemble(settings, folder=folder)
    return trainer, min(first, time.monotonic() - began + IMPORTS)


@contextmanager
def _quiet() -> Iterator[None]:
    """What a run says of itself means nothing so early."""
    logger = logging.getLogger("gancli")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _measured(trainer: Trainer, folder: RunFolder, diagnostics: Mapping[str, Any], *, start: float) -> Costs:
    """Measures each thing by itself, after the first steps, which take longer; steps over whole penalty intervals."""
    group, logger = trainer.process_group, trainer.logger
    length, minutes = trainer.length, trainer.minutes
    trainer.length = trainer.minutes = None  # steps are as at the beginning, however short the run
    if isinstance(logger, TrainingLogger):
        every, pictures = logger.every, logger.pictures
        logger.every = logger.pictures = sys.maxsize
    trainer.saved_images = -1
    began = time.monotonic()
    logger.open(trainer.position)
    if isinstance(logger, TrainingLogger):
        _ = logger.writer  # TensorBoard's import
    record = trainer.train_step()
    start += time.monotonic() - began
    interval = max([1, *(penalty.interval for penalty in trainer.game.penalties.values())])
    graphed = isinstance(trainer.update, cuda_graphs.CUDAGraphUpdate)
    for _ in range(cuda_graphs.WARM_UP * interval if graphed else 1):
        trainer.train_step()
    began, steps, passed = time.monotonic(), 0, 0.0
    while steps < LEAST or steps % interval or passed < SECONDS:
        record = trainer.train_step()
        (passed,) = group.all_reduce_max([time.monotonic() - began])  # as a run asks after each step
        logger.log_step(trainer.position, record)
        steps += 1
    step, row, picture = (time.monotonic() - began) / steps, 0.0, 0.0
    if isinstance(logger, TrainingLogger):
        logger.every = 1
        row = _timed(lambda: logger.log_step(trainer.position, record))
        picture = _timed(lambda: logger.draw(trainer.position))
    evaluation = _timed(lambda: _evaluate(trainer)) if trainer.evaluation.suite is not None else 0.0
    checkpoint = _timed(trainer.save)
    logger.close(trainer.position)
    end = 0.0
    if group.is_main_process:
        last = folder.read_metrics()[-1]
        for _ in range(ROWS):
            folder.append_metrics(last)
        began = time.monotonic()
        diagnose(Run(folder, trainer), train.diagnostics(diagnostics))
        end = time.monotonic() - began
    group.barrier()
    trainer.length, trainer.minutes = length, minutes
    if isinstance(logger, TrainingLogger):
        logger.every, logger.pictures = every, pictures
    return Costs(
        start=start, step=step, row=row, evaluation=evaluation, picture=picture, checkpoint=checkpoint, end=end
    )


def _evaluate(trainer: Trainer) -> None:
    trainer.evaluation.best = None  # so that the best checkpoint is written, as a run that gets better does
    trainer.evaluate()


def _timed(what: Callable[[], Any]) -> float:
    """Seconds of the second time: the first one fills caches."""
    what()
    began = time.monotonic()
    what()
    return time.monotonic() - began


def _memory() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB on the GPU"
    try:
        import resource
    except ImportError:  # not a POSIX system
        return "not known"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"


def _length(trainer: Trainer, costs: Costs) -> float:
    """Says how long the run would take from its first line to its last, and returns the seconds."""
    training = costs.training(trainer, trainer.length) if trainer.length is not None else float("inf")
    limit = 60 * trainer.minutes if trainer.minutes is not None else float("inf")
    seconds = costs.start + min(training, limit) + costs.end
    if training <= limit:
        log.info("length        %s images in %s", f"{trainer.length:,}", _time(seconds))
    else:
        seconds += costs.evaluation + costs.checkpoint + costs.picture  # when the time is up
        images = int(limit / costs.training(trainer, 10**9) * 10**9)
        log.info("length        %s, by train.minutes: about %s images", _time(seconds), f"{images:,}")
    log.info("              of these %.0f s to start and %.0f s for diagnostics", costs.start, costs.end)
    if trainer.max_time is not None and seconds > 60 * trainer.max_time:
        starts = math.ceil(seconds / (60 * trainer.max_time))
        log.info("              train.max_time ends a start after %s: %d starts", _time(60 * trainer.max_time), starts)
    return seconds


def _metrics(trainer: Trainer, costs: Costs) -> None:
    evaluation = trainer.evaluation
    if evaluation.suite is None or evaluation.every is None:
        log.info("metrics       none")
        return
    share = costs.evaluation / (costs.evaluation + costs.step * evaluation.every / trainer.step_images)
    log.info("metrics       %s: %.1f %% of the time", ", ".join(evaluation.suite.metrics), 100 * share)


def _launcher(
    node: Mapping[str, Any], sweeper: Mapping[str, Any], runs: int, *, seconds: float, processes: int
) -> None:
    """What would be started where, and whether it fits."""
    name = str(node["_target_"]).rpartition(".")[2].removesuffix("Launcher").lower()
    if runs and "n_trials" in sweeper:
        runs = sweeper["n_trials"]
    if name == "basic":
        log.info(
            "launcher      none: %s", f"{runs} runs, one after the other, here" if runs > 1 else "the run starts here"
        )
        return
    log.info("launcher      %s: %s", name, f"an array of {runs} jobs" if runs > 1 else "one job")
    asked = {key: value for key, value in node.items() if isinstance(value, (str, int, float)) and value != ""}
    log.info("              %s", " ".join(f"{key}={value}" for key, value in asked.items() if key not in _NOT_ASKED))
    tasks = (node.get("nodes") or 1) * (node.get("tasks_per_node") or 1)
    if tasks != processes:
        log.info("              %d processes a job; the times above are of %d, on this machine", tasks, processes)
    limit = 60 * (node.get("timeout_min") or math.inf)
    if seconds > limit:
        log.info("              limit %s: a job would go on about %d times", _time(limit), seconds // limit)


_NOT_ASKED: Sequence[str] = ("_target_", "submitit_folder", "name", "stderr_to_stdout", "max_num_timeout")


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
