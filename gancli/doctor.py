"""`gancli doctor`: what `gancli train` with the same words would take, from a few steps in a folder thrown away."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from gancli import config, graphs, train
from gancli.errors import UserError
from gancli.trainer import Trainer

log = logging.getLogger(__name__)
SECONDS = 6.0  # of steps to take the time of
LEAST = 2  # steps


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds of each thing that a run does, and how many images lie between two of them."""

    step: float
    look: float
    picture: float
    checkpoint: float

    def total(self, trainer: Trainer, images: int) -> float:
        """Of a run of so many images."""
        every = {
            "look": trainer.evaluation.every if trainer.evaluation.evaluator is not None else None,
            "picture": trainer.monitor.pictures,
            "checkpoint": trainer.checkpoints.every,
        }
        seconds = self.step * images / trainer.step_images
        for name, each in every.items():
            seconds += getattr(self, name) * (images // each + 1) if each else 0.0
        return seconds


def run(settings: Mapping[str, Any], launcher: Mapping[str, Any]) -> dict[str, float]:
    """Prints the findings and returns the numbers. launcher: Hydra's node. Raises UserError, Diverged, OSError."""
    config.check(settings, train.PLAIN)
    with tempfile.TemporaryDirectory(prefix="gancli-doctor-") as folder:
        trainer = _assembled(settings, Path(folder))
        costs = _measured(trainer)
    speed = trainer.step_images / costs.step
    log.info("speed         %s images/s, %.2g s a step of %s images", f"{speed:,.0f}", costs.step, trainer.step_images)
    log.info("memory        %s at its peak", _memory())
    found = {"images_per_second": speed, "seconds": _length(trainer, costs)}
    _metrics(trainer, costs)
    _launcher(launcher, found["seconds"])
    return found


def _assembled(settings: Mapping[str, Any], folder: Path) -> Trainer:
    try:
        return train.assemble(settings, folder=folder)
    except UserError as error:
        if "weights" not in str(error) and "features" not in str(error):
            raise
        log.warning("metrics       %s", error)
        return train.assemble({**settings, "evaluation": {**settings["evaluation"], "every": None}}, folder=folder)


def _measured(trainer: Trainer) -> Costs:
    """After the first steps, which take longer; then whole rounds of the lazy penalties."""
    logging.getLogger("gancli").setLevel(logging.ERROR)  # what a run says of itself means nothing so early
    trainer.saved = -1
    trainer.monitor.begin(trainer)
    record = trainer.train_step()
    round_ = max([1, *(penalty.interval for penalty in trainer.game.penalties.values())])
    for _ in range(graphs.WARM_UP * round_ if isinstance(trainer.update, graphs.Replayed) else 1):
        trainer.train_step()
    trainer.monitor.watch(trainer, record)
    began, steps = time.monotonic(), 0
    while steps < LEAST or steps % round_ or time.monotonic() - began < SECONDS:
        trainer.monitor.watch(trainer, trainer.train_step())
        steps += 1
    step = (time.monotonic() - began) / steps
    look = _timed(lambda: trainer.evaluation.look(trainer)) if trainer.evaluation.evaluator is not None else 0.0
    picture, checkpoint = _timed(lambda: trainer.monitor.draw(trainer)), _timed(trainer.save)
    trainer.monitor.end(trainer)
    logging.getLogger("gancli").setLevel(logging.NOTSET)
    return Costs(step=step, look=look, picture=picture, checkpoint=checkpoint)


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
    """Says how long the run would take, and returns the seconds."""
    seconds = costs.total(trainer, trainer.length) if trainer.length is not None else float("inf")
    limit = 60 * trainer.minutes if trainer.minutes is not None else float("inf")
    if seconds <= limit:
        log.info("length        %s images in %s", f"{trainer.length:,}", _time(seconds))
    else:
        images = int(trainer.step_images * limit / (costs.total(trainer, 10**7) / 10**7 * trainer.step_images))
        log.info("length        %s, by train.minutes: about %s images", _time(limit), f"{images:,}")
    return min(seconds, limit)


def _metrics(trainer: Trainer, costs: Costs) -> None:
    evaluation = trainer.evaluation
    if evaluation.evaluator is None or evaluation.every is None:
        log.info("metrics       none")
        return
    share = costs.look / (costs.look + costs.step * evaluation.every / trainer.step_images)
    log.info("metrics       %s: %.1f %% of the time", ", ".join(evaluation.evaluator.metrics), 100 * share)


def _launcher(node: Mapping[str, Any], seconds: float) -> None:
    if "timeout_min" not in node:
        log.info("launcher      none: the run starts here")
        return
    tasks = node["nodes"] * node["tasks_per_node"]
    where = f"{node['nodes']} nodes of {node['tasks_per_node']} tasks, {node['gpus_per_node'] or 0} GPUs each"
    log.info(
        "launcher      Slurm: %s, partition %s, %s", where, node["partition"] or "by default", f"{tasks} processes"
    )
    limit = 60 * node["timeout_min"]
    if seconds > limit:
        log.info("              limit %s: the job would go on about %d times", _time(limit), seconds // limit)


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
