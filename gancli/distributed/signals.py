"""Signals: what the system asks of a run between two steps: to stop, to save, or to save and be requeued."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from gancli.distributed.process_group import ProcessGroup

log = logging.getLogger(__name__)
Handler = Callable[[int, FrameType | None], Any] | int | None
REQUEUE = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))
# The terminal is gone, or the CPU time is used up. The system may repeat them while the checkpoint is written.
WARNINGS = tuple(getattr(signal, name) for name in ("SIGHUP", "SIGXCPU") if hasattr(signal, name))


@dataclass(frozen=True, kw_only=True)
class Request:
    """stop: the signal to end by. save: write a checkpoint now. requeue: then let the scheduler start the run again."""

    stop: signal.Signals | None = None
    save: bool = False
    requeue: bool = False


class Signals:
    """Receives signals within `listening` and keeps them until the next `poll`.

    SIGINT and SIGTERM end the run, a second one at once; so do SIGHUP, unless it is ignored, as under nohup, and
    SIGXCPU, however often they come. A Slurm job saves at SIGTERM and goes on: on preemption only
    a job that lives until it is killed is queued again. SIGUSR1 and SIGUSR2, which `sbatch --signal` and submitit
    send before the time limit, save and queue the job again; outside Slurm they save.
    """

    def __init__(self) -> None:
        self.in_slurm = "SLURM_JOB_ID" in os.environ
        self.received: set[int] = set()
        self.previous_handlers: dict[int, Handler] = {}

    @contextmanager
    def listening(self, *, to_stop: bool = True) -> Iterator[Signals]:
        """Receives signals that ask to save, and with `to_stop` also those that ask to stop, in this context."""
        new = {
            number: signal.signal(number, self._receive)
            for number in (signal.SIGINT, signal.SIGTERM, *WARNINGS, *REQUEUE)
            if number not in self.previous_handlers
            and (to_stop or self._asks_to_save(number))
            and not (number in WARNINGS and signal.getsignal(number) == signal.SIG_IGN)
        }
        self.previous_handlers |= new
        try:
            yield self
        finally:
            for number, handler in new.items():
                signal.signal(number, handler)
                del self.previous_handlers[number]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self._asks_to_save(number) and number not in WARNINGS:  # the next one is not waited for
            signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
        self.received.add(number)

    def _asks_to_save(self, number: int) -> bool:
        return number in REQUEUE or (number == signal.SIGTERM and self.in_slurm)

    def poll(self, process_group: ProcessGroup, seconds: float) -> tuple[float, Request]:
        """Returns the time of the slowest process, and what any process was asked since: the same in all of them."""
        received, self.received = self.received, set()
        stop = max((number for number in received if not self._asks_to_save(number)), default=0)
        save, again = (any(map(test, received)) for test in (self._asks_to_save, REQUEUE.__contains__))
        time, *asked = process_group.all_reduce_max([seconds, stop, save, again])
        number, saves, requeues = map(int, asked)
        return time, Request(stop=signal.Signals(number) if number else None, save=bool(saves), requeue=bool(requeues))

    def requeue(self, process_group: ProcessGroup) -> None:
        """After the checkpoint: by submitit where it listens, else by scontrol; Slurm then ends this process."""
        theirs = next(
            (self.previous_handlers[number] for number in REQUEUE if callable(self.previous_handlers[number])), None
        )
        if theirs is not None and callable(theirs):
            theirs(REQUEUE[-1], None)  # queues the job again and raises SystemExit in the first process
        elif self.in_slurm and process_group.is_main_process:
            _requeue()


def _requeue() -> None:
    env = os.environ
    job = env["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in env and "SLURM_ARRAY_TASK_ID" in env:
        job = f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    if shutil.which("scontrol") is None:
        log.warning("saved, but scontrol is not here to queue job %s again", job)
        return
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    if done.returncode:
        log.warning("saved, but job %s could not be queued again: %s", job, done.stderr.strip())
    else:
        log.info("saved; job %s is queued again", job)
