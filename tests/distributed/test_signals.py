"""What the system asks between two steps, in one process; tests of Slurm and of several processes are elsewhere."""

import os
import signal
import subprocess
import time

import pytest
from comparing import last, same, without_time

from gancli.distributed import signals
from gancli.distributed.process_group import SINGLE_PROCESS
from gancli.distributed.signals import Request, Signals


def once(monkeypatch, what, after=3):
    """`what()` during step number `after`."""
    from gancli.training.trainer import Trainer

    before, steps = Trainer.train_step, []

    def step(self):
        steps.append(0)
        if len(steps) == after:
            what()
        return before(self)

    monkeypatch.setattr(Trainer, "train_step", step)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_any_run_saves_when_told_to_and_goes_on(train, monkeypatch, number):
    whole = train(folder="whole", images=128)
    once(monkeypatch, lambda: os.kill(os.getpid(), number))
    told = train(folder="told", images=128)
    assert (told / "checkpoints" / "images-000000000048.pt").exists()
    assert not (whole / "checkpoints" / "images-000000000048.pt").exists()
    assert same(without_time(last(whole)), without_time(last(told)))


@pytest.mark.parametrize("where", ["assemble", "diagnose"])
def test_what_is_heard_before_or_after_the_loop_ends_nothing(train, monkeypatch, where):
    from gancli.commands import train as training

    before = getattr(training, where)

    def told(*args, **known):
        os.kill(os.getpid(), signal.SIGUSR1)
        return before(*args, **known)

    monkeypatch.setattr(training, where, told)
    folder = train(images=64)
    assert last(folder)["images"] == 64
    assert (folder / "checkpoints" / "images-000000000016.pt").exists() == (where == "assemble")
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGXCPU])
def test_a_lost_terminal_and_spent_cpu_time_save_and_end_a_run_however_often_they_are_told(number):
    before = signal.signal(number, signal.SIG_DFL)  # SIGHUP is ignored where the tests run under nohup
    try:
        with Signals().listening() as signals:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
            assert signals.poll(SINGLE_PROCESS, 0.0)[1] == Request(stop=number)
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_a_lost_terminal_is_nothing_where_it_is_ignored_as_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals().listening() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.poll(SINGLE_PROCESS, 0.0)[1] == Request()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_is_warned_that_slurm_will_end_it_first(train, monkeypatch, caplog):
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 600))
    train("train.max_time=30", images=16)
    assert "train.max_time=30: Slurm ends this job 10 minutes after its start" in caplog.text


def test_a_slurm_job_saves_at_sigterm_and_lives_on(train, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    once(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGTERM))
    folder = train(folder="run", images=128)
    assert (folder / "checkpoints" / "images-000000000048.pt").exists()
    assert last(folder)["images"] == 128


@pytest.mark.parametrize(
    "environment, job",
    [
        ({"SLURM_JOB_ID": "7"}, "7"),
        ({"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2"}, "5_2"),
    ],
)
def test_a_slurm_job_is_queued_again(monkeypatch, environment, job):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    called = []
    monkeypatch.setattr(signals.shutil, "which", lambda name: name)
    monkeypatch.setattr(
        signals.subprocess, "run", lambda words, **_: called.append(words) or subprocess.CompletedProcess(words, 0)
    )
    with Signals().listening() as listening:
        os.kill(os.getpid(), signal.SIGUSR1)
        _, request = listening.poll(SINGLE_PROCESS, 0.0)
        assert request.save and request.requeue and request.stop is None
        listening.requeue(SINGLE_PROCESS)
    assert called == [["scontrol", "requeue", job]]


def test_a_handler_that_was_there_is_asked_to_queue_again(monkeypatch):
    """submitit's, which ends the process itself."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    called = []
    before = signal.signal(signal.SIGUSR2, lambda *_: called.append("theirs"))
    try:
        with Signals().listening() as listening:
            os.kill(os.getpid(), signal.SIGUSR2)
            assert listening.poll(SINGLE_PROCESS, 0.0)[1].requeue and not called
            listening.requeue(SINGLE_PROCESS)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert called == ["theirs"]


def test_the_time_of_a_start_is_limited_and_the_run_goes_on(train, cli):
    folder = train("train.max_time=1e-6", images=128)
    assert last(folder)["images"] == 16
    again = cli("train", f"resume={folder}", "train.max_time=null")
    assert again.status == 0, again.err
    assert last(folder)["images"] == 128


def test_a_scheduler_that_starts_the_same_line_again_is_understood(train, cli, monkeypatch):
    folder = train(images=32)
    words = ["train", f"hydra.run.dir={folder}"]
    from conftest import TINY

    assert cli(*words, *TINY, "train.images=64").status == 2
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert cli(*words, *TINY, "train.images=64").status == 0
    assert last(folder)["images"] == 64
