"""`gancli doctor` says what a run would take, whatever words `gancli train` takes, and leaves nothing behind."""

import re
from types import SimpleNamespace

import pytest
from conftest import TINY
from test_distributed import ended, start

from gancli.commands.doctor import Costs
from gancli.commands.sweeps import one_of

FEW = ["evaluation.every=32", "evaluation.count=40", "evaluation.reference_count=100"]


@pytest.fixture
def doctor(cli, tmp_path, monkeypatch):
    """`doctor(…)` of few steps must succeed and leave nothing; what it said."""
    monkeypatch.setattr("gancli.commands.doctor.SECONDS", 0.1)
    monkeypatch.setattr("gancli.commands.doctor._awake", lambda: 1.0)  # this process has run other tests

    def call(*words, tiny=TINY):
        result = cli("doctor", *tiny, *words)
        assert result.status == 0, result.err
        assert list(tmp_path.iterdir()) == []
        return result.err

    return call


def test_it_reports_and_leaves_nothing(doctor):
    said = doctor(*FEW)
    for word in ("parameters", "images/s", "GiB", "64 images in 0:0", "metrics       fid", "launcher      none: the"):
        assert word in said, word
    assert "mode collapse" not in said and said.count("device: ") == 1


def test_a_budget_of_minutes(doctor):
    said = doctor("train.images=null", "train.minutes=3", "train.max_time=2")
    minutes, seconds = re.search(r"length        0:(\d\d):(\d\d), by train.minutes: about", said).groups()
    assert 180 <= 60 * int(minutes) + int(seconds) < 300, "three minutes, and start and end"
    assert "metrics       none" in said
    assert re.search(r"train.max_time ends a start after 0:02:00: [23] starts", said)


def test_penalties_that_an_experiment_speaks_of_and_that_were_not_chosen(doctor):
    said = doctor("experiment=gaussian_ring", "penalty=none", tiny=["device=cpu", "evaluation.every=null"])
    assert "images/s" in said


def test_a_watch_that_would_stop_a_run_so_young(doctor):
    assert "metrics       fid" in doctor(*FEW, "watch.action=stop", "watch.diversity=1e6")


def test_a_sweep_is_measured_by_its_first_run_and_counted(doctor):
    said = doctor("-m", "seed=0,1,2", "loss=hinge,minimax")
    assert "launcher      none: 6 runs, one after the other, here" in said


def test_what_slurm_would_be_asked_for(doctor):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    job = ["hydra.launcher.nodes=2", "hydra.launcher.tasks_per_node=4", "hydra.launcher.account=me"]
    said = doctor("-m", "hydra/launcher=slurm", *job, "hydra.launcher.mem_gb=16", "seed=range(0,3)")
    assert "launcher      slurm: an array of 3 jobs" in said
    for word in ("nodes=2", "account=me", "mem_gb=16", "timeout_min=720", "cpus_per_task=8", "array_parallelism=32"):
        assert word in said, word
    assert "8 processes a job; the times above are of 1, on this machine" in said


@pytest.mark.parametrize("launcher", ["submitit_local", "slurm"])
def test_a_launcher_without_a_sweep(doctor, launcher):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    said = doctor(f"hydra/launcher={launcher}", "hydra.launcher.timeout_min=1", "train.images=100_000_000")
    assert f"launcher      {launcher.removeprefix('submitit_')}: one job" in said
    assert re.search(r"limit 0:01:00: a job would go on about \d{2,} times", said)


def test_a_search(doctor):
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
    assert one_of(words) == (first, runs)


def test_what_a_run_does_is_counted():
    trainer = SimpleNamespace(
        step_images=10,
        monitor=SimpleNamespace(every=20, pictures=50),
        evaluation=SimpleNamespace(every=50),
        checkpoints=SimpleNamespace(every=30),
    )

    def times(images, **one):
        costs = dict.fromkeys(("start", "step", "row", "look", "picture", "checkpoint", "end"), 0.0)
        return Costs(**costs | one).training(trainer, images)

    assert [times(images, step=1) for images in (100, 95, 101)] == [10, 10, 11]
    assert [times(images, row=1) for images in (100, 110)] == [5, 6], "and one at the end"
    assert [times(images, look=1) for images in (100, 110)] == [2, 3]
    assert [times(images, checkpoint=1) for images in (90, 100)] == [3, 4]
    assert [times(images, picture=1) for images in (100, 110)] == [3, 3], "a picture of the end comes besides"
    trainer.monitor.every, trainer.evaluation.every = 3, None
    assert (times(100, row=1), times(100, look=1)) == (10, 0), "once a step at most"


def test_bad_input_is_that_of_train(cli):
    result = cli("doctor", *TINY, "train.batch_size=0")
    assert result.status == 2 and "train.batch_size=0: at least 1" in result.err
    result = cli("doctor", "train.imagez=3")
    assert result.status == 2 and "did you mean train.images?" in result.err
    result = cli("doctor", "-m", "seed=choice(1")
    assert result.status == 2 and "Traceback" not in result.err


@pytest.mark.slow
def test_several_processes_speak_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = ended(start(2, "-m", "gancli", "doctor", *TINY, *FEW, "device.threads=1"))
    assert [status for status, _ in results] == [0, 0], results
    assert "".join(err for _, err in results).count("images/s") == 1 and "2 processes" in results[0][1]
    assert list(tmp_path.iterdir()) == []
