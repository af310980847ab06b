"""`gancli doctor`: the cost of a run of `gancli train`, measured on a few steps in a temporary folder."""

from __future__ import annotations

import gc
import logging
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from gancli.commands import train
from gancli.commands.check_settings import check_settings
from gancli.diagnostics.base import TrainedRun, diagnose
from gancli.distributed.process_group import join_process_group
from gancli.errors import FeaturesUnavailable
from gancli.files.user_paths import expand
from gancli.reporting.streams import print_lines, without_messages
from gancli.training import cuda_graphs
from gancli.training.continued_settings import settings_to_continue
from gancli.training.logging import TrainingLogger
from gancli.training.run_folder import RunFolder
from gancli.training.trainer import Trainer

log = logging.getLogger(__name__)
log.setLevel(logging.INFO)  # also while the messages of the run are suppressed
TIMED_SECONDS = 6.0  # least duration of the steps that are timed
_YEAR = 365.25 * 24 * 3600
MIN_STEPS = 2  # least number of them
MAX_IMPORT_SECONDS = 10.0  # that a first assembly may take longer than a second one
DIAGNOSED_ROWS = 100  # of the log when diagnostics are measured, unless the run writes fewer
_UNINFORMATIVE = ("_target_", "submitit_folder", "name", "stderr_to_stdout", "max_num_timeout")  # launcher settings


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds of each thing that a run does. start: all before the first step. end: diagnostics after the last one."""

    start: float
    step: float
    row: float
    evaluation: float
    picture: float
    checkpoint: float
    end: float

    def training(self, trainer: Trainer, images: int) -> float:
        """Returns the seconds of a run of `images` images in the main process, without start and end."""
        logger = trainer.logger
        assert isinstance(logger, TrainingLogger)
        steps = math.ceil(images / trainer.step_images)
        return (
            self.step * steps
            + self.row * _count(logger.every, trainer, images)
            + self.evaluation * _count(trainer.evaluation.every, trainer, images)
            + self.checkpoint * _count(trainer.checkpoints.every, trainer, images)
            + self.picture * (min(steps, steps * trainer.step_images // logger.pictures) + 1)
        )


def _count(every: int | None, trainer: Trainer, images: int) -> int:
    """Returns how often a step of a run of `images` images reaches a multiple of `every` images, or is the last one."""
    steps = math.ceil(images / trainer.step_images)
    return min(steps, math.ceil(steps * trainer.step_images / every)) if every else 0


def run(
    settings: Mapping[str, Any],
    *,
    overrides: list[str],
    launcher: Mapping[str, Any],
    sweeper: Mapping[str, Any],
    runs: int,
    by_budget: Sequence[str] = (),
) -> dict[str, float]:
    """Measures and prints the costs; returns images per second and seconds, in the main process only.

    launcher, sweeper: Hydra's nodes. runs: of the sweep whose first run has these `settings`; 0 for no sweep.
    by_budget: keys of the settings that follow from the budget. Raises UserError, Diverged, OSError.
    """
    startup = _startup_seconds()
    settings = {**settings, "penalty": train.chosen_penalties(settings["penalty"], overrides)}
    resuming = False
    if settings["resume"] not in ("auto", "never"):
        resumed = RunFolder(expand(settings["resume"], key="resume"))
        settings, resuming = settings_to_continue(resumed, settings, overrides=overrides, by_budget=by_budget)
    check_settings(settings, world_size=join_process_group().world_size, resuming=resuming)
    with tempfile.TemporaryDirectory(prefix="gancli-doctor-") as path:
        folder = RunFolder(Path(path))
        trainer, seconds = _assemble(settings, folder)
        with without_messages("gancli"):  # which mean nothing after so few steps
            costs = _measure(trainer, folder, settings["diagnostic"], start=startup + seconds)
    if not trainer.process_group.is_main_process:
        return {}
    speed = trainer.step_images / costs.step
    _report("speed", f"{speed:,.0f} images/s, {costs.step:.2g} s a step of {trainer.step_images} images")
    _report("memory", f"{_peak_memory(trainer.game.stream.device)} at its peak")
    seconds = _report_length(trainer, costs)
    _report_metrics(trainer, costs)
    _report_launcher(launcher, sweeper, runs, seconds=seconds, processes=trainer.process_group.world_size)
    return {"images_per_second": speed, "seconds": seconds}


def _report(topic: str, text: str) -> None:
    print_lines([f"{topic:14}{text}"])


def _startup_seconds() -> float:
    """Returns the seconds that the start of Python and the imports took."""
    return time.process_time()


def _assemble(settings: Mapping[str, Any], folder: RunFolder) -> tuple[Trainer, float]:
    """Assembles the trainer; returns it and the seconds that `gancli train` would take to assemble it.

    The trainer is assembled twice. The first time includes imports, and decoding images and training a classifier,
    which a later run reads from a cache; so the second time counts, plus what imports can have added to the first.
    The peak of the GPU's memory counts from the second time too.
    """
    # After so few steps the health monitor would react to the start of the training.
    settings = {**settings, "health": {**settings["health"], "action": "warn"}}
    settings["log"] = {**settings["log"], "sinks": ["tensorboard", "jsonl"]}  # nobody else hears of a few steps
    began = time.monotonic()
    try:
        train.assemble(settings, folder=folder)
    except FeaturesUnavailable as error:
        log.warning("metrics       %s", error)
        settings = {**settings, "evaluation": {**settings["evaluation"], "every": None}}
        train.assemble(settings, folder=folder)
    first = time.monotonic() - began
    _forget_peak_memory()
    began = time.monotonic()
    with without_messages("gancli"):  # which mean nothing after so few steps
        trainer = train.assemble(settings, folder=folder)
    return trainer, min(first, time.monotonic() - began + MAX_IMPORT_SECONDS)


def _measure(trainer: Trainer, folder: RunFolder, diagnostics: Mapping[str, Any], *, start: float) -> Costs:
    """Times each thing separately. The first steps, which take longer, count as start; penalty intervals are complete.

    start: seconds until the trainer was assembled.
    """
    group, logger = trainer.process_group, trainer.logger
    length, minutes, diagnosed = trainer.length, trainer.minutes, DIAGNOSED_ROWS
    trainer.length = trainer.minutes = None  # schedules stay at their start, however short the run
    if isinstance(logger, TrainingLogger):
        diagnosed = diagnosed if length is None else min(diagnosed, _count(logger.every, trainer, length))
        every, pictures = logger.every, logger.pictures
        logger.every = logger.pictures = sys.maxsize
    trainer.saved_images = -1
    log.info("measuring the first steps")
    began = time.monotonic()
    logger.open(trainer.position)
    if isinstance(logger, TrainingLogger):
        _ = logger.outputs  # imports TensorBoard
    record = trainer.train_step()
    start += time.monotonic() - began
    interval = max([1, *(penalty.interval for penalty in trainer.game.penalties.values())])
    graphed = isinstance(trainer.update, cuda_graphs.CUDAGraphUpdate)
    for _ in range(cuda_graphs.WARM_UP * interval if graphed else 1):
        trainer.train_step()
    log.info("measuring steps, for %.0f s or longer", TIMED_SECONDS)
    began, steps, passed = time.monotonic(), 0, 0.0
    while steps < MIN_STEPS or steps % interval or passed < TIMED_SECONDS:
        record = trainer.train_step()
        (passed,) = group.all_reduce_max([time.monotonic() - began])  # a run communicates after each step too
        logger.log_step(trainer.position, record)
        steps += 1
    step, row, picture = (time.monotonic() - began) / steps, 0.0, 0.0
    log.info("measuring pictures, evaluations and checkpoints, two of each")
    if isinstance(logger, TrainingLogger):
        logger.every = 1
        row = _time_second_call(lambda: logger.log_step(trainer.position, record))
        picture = _time_second_call(lambda: logger.draw(trainer.position))
    evaluation = _time_second_call(lambda: _evaluate(trainer)) if trainer.evaluation.suite is not None else 0.0
    checkpoint = _time_second_call(trainer.save)
    logger.close(trainer.position)
    end = 0.0
    if group.is_main_process:
        rows = folder.read_metrics()
        for _ in range(diagnosed - len(rows)):
            folder.append_metrics(rows[-1])
        log.info("measuring diagnostics")
        began = time.monotonic()
        diagnose(TrainedRun(folder, trainer), train.diagnostics(diagnostics))
        end = time.monotonic() - began
    group.barrier()
    trainer.length, trainer.minutes = length, minutes
    if isinstance(logger, TrainingLogger):
        logger.every, logger.pictures = every, pictures
    return Costs(
        start=start, step=step, row=row, evaluation=evaluation, picture=picture, checkpoint=checkpoint, end=end
    )


def _evaluate(trainer: Trainer) -> None:
    trainer.evaluation.best = None  # so that the best checkpoint is written, as in a run that improves
    trainer.evaluate()


def _time_second_call(function: Callable[[], Any]) -> float:
    """Returns the seconds of a second call; the first one fills caches."""
    function()
    began = time.monotonic()
    function()
    return time.monotonic() - began


def _forget_peak_memory() -> None:
    """Frees what nobody uses, such as a trainer, which refers to itself; the GPU's peak counts from here on."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peak_memory(device: torch.device) -> str:
    """Returns the most memory that the run took, in words: of the GPU, tensors alone; else of the whole process."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB on the GPU"
    try:
        import resource
    except ImportError:  # not a POSIX system
        return "not known"
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes of what the system counts in
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.2f} GiB"


def _report_length(trainer: Trainer, costs: Costs) -> float:
    """Prints how long the run would take in all, and returns the seconds."""
    training = costs.training(trainer, trainer.length) if trainer.length is not None else float("inf")
    limit = 60 * trainer.minutes if trainer.minutes is not None else float("inf")
    seconds = costs.start + min(training, limit) + costs.end
    if training <= limit:
        _report("length", f"{trainer.length:,} images in {_duration(seconds)}")
    else:
        seconds += costs.evaluation + costs.checkpoint + costs.picture  # after the time limit
        images = int(limit / costs.training(trainer, 10**9) * 10**9)
        _report("length", f"{_duration(seconds)}, by train.minutes: about {images:,} images")
    _report("", f"of these {costs.start:.0f} s to start and {costs.end:.0f} s for diagnostics")
    if trainer.max_time is not None and seconds > 60 * trainer.max_time:
        starts = math.ceil(seconds / (60 * trainer.max_time))
        _report("", f"train.max_time ends a start after {_duration(60 * trainer.max_time)}: {starts} starts")
    return seconds


def _report_metrics(trainer: Trainer, costs: Costs) -> None:
    evaluation = trainer.evaluation
    if evaluation.suite is None or evaluation.every is None:
        _report("metrics", "none")
        return
    share = costs.evaluation / (costs.evaluation + costs.step * evaluation.every / trainer.step_images)
    _report("metrics", f"{', '.join(evaluation.suite.metrics)}: {100 * share:.1f} % of the time")


def _report_launcher(
    node: Mapping[str, Any], sweeper: Mapping[str, Any], runs: int, *, seconds: float, processes: int
) -> None:
    """Prints which jobs would be started, and whether a run fits into the time limit of a job."""
    name = str(node["_target_"]).rpartition(".")[2].removesuffix("Launcher").lower()
    if runs and "n_trials" in sweeper:
        runs = sweeper["n_trials"]
    if name == "basic":
        started = f"{runs} runs, one after the other, here" if runs > 1 else "the run starts here"
        _report("launcher", f"none: {started}")
        return
    _report("launcher", f"{name}: {f'an array of {runs} jobs' if runs > 1 else 'one job'}")
    requested = {key: value for key, value in node.items() if isinstance(value, (str, int, float)) and value != ""}
    shown = " ".join(f"{key}={value}" for key, value in requested.items() if key not in _UNINFORMATIVE)
    _report("", shown)
    tasks = (node.get("nodes") or 1) * (node.get("tasks_per_node") or 1)
    if tasks != processes:
        _report("", f"{tasks} processes a job; the times above are of {processes}, on this machine")
    limit = 60 * (node.get("timeout_min") or math.inf)
    if seconds > limit:
        _report("", f"limit {_duration(limit)}: a job would be continued about {seconds // limit:.0f} times")


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds))) if seconds < 1e10 else f"{seconds / _YEAR:,.0f} years"
