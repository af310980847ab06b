"""What the system asks of a run between two steps: to stop, to save, to save and be started again."""

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

from gancli.distributed import Team

log = logging.getLogger(__name__)
Handler = Callable[[int, FrameType | None], Any] | int | None
AGAIN = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))


@dataclass(frozen=True, kw_only=True)
class Heard:
    """stop: the signal to end by. save: write a checkpoint now. requeue: then let the scheduler start the run again."""

    stop: signal.Signals | None = None
    save: bool = False
    requeue: bool = False


class Signals:
    """Listens within `listening`.

    SIGINT and SIGTERM end the run, a second one at once. A Slurm job saves at SIGTERM and goes on: on preemption only
    a job that lives until it is killed is queued again. SIGUSR1 and SIGUSR2, which `sbatch --signal` and submitit
    send before the time limit, save and queue the job again; outside Slurm they save.
    """

    def __init__(self) -> None:
        self.in_slurm = "SLURM_JOB_ID" in os.environ
        self.heard: set[int] = set()
        self.before: dict[int, Handler] = {}

    @contextmanager
    def listening(self, *, to_stop: bool = True) -> Iterator[Signals]:
        """Hears what asks to save; what asks to stop only with `to_stop`, else that has its usual effect."""
        new = {
            number: signal.signal(number, self._hear)
            for number in (signal.SIGINT, signal.SIGTERM, *AGAIN)
            if number not in self.before and (to_stop or self._saves_only(number))
        }
        self.before |= new
        try:
            yield self
        finally:
            for number, handler in new.items():
                signal.signal(number, handler)
                del self.before[number]

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if not self._saves_only(number):  # the next one is not waited for
            signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
        self.heard.add(number)

    def _saves_only(self, number: int) -> bool:
        return number in AGAIN or (number == signal.SIGTERM and self.in_slurm)

    def agreed(self, team: Team, seconds: float) -> tuple[float, Heard]:
        """What any process has heard since, and the time of the slowest: the same in all of them."""
        heard, self.heard = self.heard, set()
        stop = max((number for number in heard if not self._saves_only(number)), default=0)
        save, again = (any(map(test, heard)) for test in (self._saves_only, AGAIN.__contains__))
        time, *asked = team.largest([seconds, stop, save, again])
        number, saves, requeues = map(int, asked)
        return time, Heard(stop=signal.Signals(number) if number else None, save=bool(saves), requeue=bool(requeues))

    def requeue(self, team: Team) -> None:
        """After the checkpoint: by submitit where it listens, else by scontrol; Slurm then ends this process."""
        theirs = next((self.before[number] for number in AGAIN if callable(self.before[number])), None)
        if theirs is not None and callable(theirs):
            theirs(AGAIN[-1], None)  # queues the job again and raises SystemExit in the first process
        elif self.in_slurm and team.first:
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
