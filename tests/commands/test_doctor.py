"""`gancli doctor` takes the arguments of `gancli train`, predicts the cost of the run, and leaves no files."""

import re
import weakref
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY

from gancli.commands import train
from gancli.commands.doctor import Costs, _forget_peak_memory, _peak_memory
from gancli.commands.sweeps import first_run
from gancli.training.logging import TrainingLogger

FEW = ["evaluation.every=32", "evaluation.count=40", "evaluation.reference_count=100"]


@pytest.fixture
def doctor(cli, tmp_path, monkeypatch):
    """`doctor(…)` measures few steps, must succeed and leave no files, and returns its output."""
    monkeypatch.setattr("gancli.commands.doctor.TIMED_SECONDS", 0.1)
    monkeypatch.setattr("gancli.commands.doctor._startup_seconds", lambda: 1.0)  # this process has run other tests

    def call(*words, tiny=TINY):
        result = cli("doctor", *tiny, *words)
        assert result.status == 0, result.err
        assert list(tmp_path.iterdir()) == []
        assert "images/s" in result.out and "images/s" not in result.err, "results alone are on standard output"
        return result.out + result.err

    return call


def test_speed_memory_length_metrics_and_launcher_are_reported(doctor):
    output = doctor(*FEW)
    for word in (
        "parameters",
        "images/s",
        "GiB",
        "64 images in 0:0",
        "metrics       fid",
        "launcher      none: the",
        "measuring steps",
    ):
        assert word in output, word
    assert "mode collapse" not in output and output.count("device: ") == 1


def test_a_run_limited_by_minutes(doctor):
    output = doctor("train.images=null", "train.minutes=3", "train.max_time=2")
    minutes, seconds = re.search(r"length        0:(\d\d):(\d\d), by train.minutes: about", output).groups()
    assert 180 <= 60 * int(minutes) + int(seconds) < 300, "three minutes plus start and end"
    assert "metrics       none" in output
    assert re.search(r"train.max_time ends a start after 0:02:00: [23] starts", output)


def test_an_experiment_without_its_penalties(doctor):
    output = doctor("experiment=gaussian_ring", "penalty=none", tiny=["device=cpu", "evaluation.every=null"])
    assert "images/s" in output


def test_memory_is_that_of_one_trainer_and_of_all_that_it_does(doctor, monkeypatch):
    made, done = [], []

    def assemble(*args, **kwargs):
        done.append(("assembled", [trainer() for trainer in made]))
        trainer = original(*args, **kwargs)
        made.append(weakref.ref(trainer))
        return trainer

    original = train.assemble
    monkeypatch.setattr(train, "assemble", assemble)
    monkeypatch.setattr("gancli.commands.doctor.diagnose", lambda run, _: done.append(len(run.rows)))
    monkeypatch.setattr("gancli.commands.doctor._peak_memory", lambda device: done.append(device.type) or "much")
    assert "memory        much at its peak" in doctor(*FEW)
    assert done == [("assembled", []), ("assembled", [None]), 4, "cpu"], "four rows, as the run would write"


def test_memory_is_of_the_device_that_computes(monkeypatch):
    peaks = {"before": 7 * 2**30, "now": 3 * 2**30}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: peaks.pop("before"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: max(peaks.values()))
    _forget_peak_memory()
    assert _peak_memory(torch.device("cuda")) == "3.00 GiB on the GPU"
    monkeypatch.setattr("resource.getrusage", lambda _: SimpleNamespace(ru_maxrss=2**21))
    monkeypatch.setattr("sys.platform", "linux")
    assert _peak_memory(torch.device("cpu")) == "2.00 GiB", "counted in KiB"
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("resource.getrusage", lambda _: SimpleNamespace(ru_maxrss=2**31))
    assert _peak_memory(torch.device("cpu")) == "2.00 GiB", "counted in bytes"


def test_the_health_monitor_does_not_stop_the_measurement(doctor):
    assert "metrics       fid" in doctor(*FEW, "health.action=stop", "health.diversity=1")


def test_a_sweep_is_measured_by_its_first_run_and_counted(doctor):
    output = doctor("-m", "seed=0,1,2", "loss=hinge,minimax")
    assert "launcher      none: 6 runs, one after the other, here" in output


def test_the_request_to_slurm_is_shown(doctor):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    job = ["hydra.launcher.nodes=2", "hydra.launcher.tasks_per_node=4", "hydra.launcher.account=me"]
    output = doctor("-m", "hydra/launcher=slurm", *job, "hydra.launcher.mem_gb=16", "seed=range(0,3)")
    assert "launcher      slurm: an array of 3 jobs" in output
    for word in ("nodes=2", "account=me", "mem_gb=16", "timeout_min=720", "cpus_per_task=8", "array_parallelism=32"):
        assert word in output, word
    assert "8 processes a job; the times above are of 1, on this machine" in output


@pytest.mark.parametrize("launcher", ["submitit_local", "slurm"])
def test_a_launcher_without_a_sweep(doctor, launcher):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    output = doctor(f"hydra/launcher={launcher}", "hydra.launcher.timeout_min=1", "train.images=100_000_000")
    assert f"launcher      {launcher.removeprefix('submitit_')}: one job" in output
    assert re.search(r"limit 0:01:00: a job would be continued about \d{2,} times", output)


def test_the_runs_of_a_search_are_counted(doctor):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    words = ["hydra/sweeper=tpe", "hydra.sweeper.n_trials=7", "optimizer.generator.lr=tag(log,interval(1e-4,1e-2))"]
    assert "launcher      none: 7 runs" in doctor("-m", *words)


@pytest.mark.parametrize(
    "words, first, runs",
    [
        (["seed=0,1"], ["seed=0,1"], 0),
        (["hydra/launcher=basic", "seed=0"], ["hydra/launcher=basic", "seed=0"], 0),
        (["hydra/launcher=slurm", "seed=0"], ["hydra/launcher=slurm", "seed=0"], 1),
        (["-m", "seed=3,1", "+a=choice(x,y)", "b=range(1,5)"], ["seed=3", "+a=x", "b=1"], 16),
        (["--multirun", "penalty=[r1],[r1,r2]", "c=[1,2]"], ["penalty=[r1]", "c=[1,2]"], 2),
        (["-m", "lr=tag(log,interval(1e-3,1))", "loss=glob(*)"], ["lr=0.001", "loss=glob(*)"], 1),
    ],
)
def test_the_first_run_of_a_sweep(words, first, runs):
    assert first_run(words) == (first, runs)


def test_the_cost_of_the_training_counts_rows_evaluations_pictures_and_checkpoints():
    logger = object.__new__(TrainingLogger)
    logger.every, logger.pictures = 20, 50
    trainer = SimpleNamespace(
        step_images=10,
        logger=logger,
        evaluation=SimpleNamespace(every=50),
        checkpoints=SimpleNamespace(every=30),
    )

    def count(images, name):
        costs = dict.fromkeys(("start", "step", "row", "evaluation", "picture", "checkpoint", "end"), 0.0)
        return Costs(**costs | {name: 1.0}).training(trainer, images)

    assert [count(images, "step") for images in (100, 95, 101)] == [10, 10, 11]
    assert [count(images, "row") for images in (100, 110)] == [5, 6], "with one at the end"
    assert [count(images, "evaluation") for images in (100, 110)] == [2, 3]
    assert [count(images, "checkpoint") for images in (90, 100)] == [3, 4]
    assert [count(images, "picture") for images in (100, 110)] == [3, 3], "one more is drawn at the end"
    logger.every, trainer.evaluation.every = 3, None
    assert (count(100, "row"), count(100, "evaluation")) == (10, 0), "at most one row a step"


def test_bad_settings_are_refused_as_by_train(cli):
    result = cli("doctor", *TINY, "train.batch_size=0")
    assert result.status == 2 and "train.batch_size=0: at least 1" in result.err
    result = cli("doctor", "train.imagez=3")
    assert result.status == 2 and "did you mean train.images?" in result.err
    result = cli("doctor", "-m", "seed=choice(1")
    assert result.status == 2 and "Traceback" not in result.err
