"""A real Slurm of two nodes on this machine: arrays, requeueing, a run of two tasks, and the plain batch script."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from comparing import last, same, without_time
from conftest import TINY
from test_process_group import resumed

ROOT = Path(__file__).parents[2]
JOB = ["hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=5"]
SLURM = ["hydra/launcher=slurm", *JOB]
SMALL = [*TINY, "device.threads=1", "diagnostic=none", "train.images=640"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("slurmctld") is None, reason="no Slurm here (Debian: slurm-wlm)"),
    pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="a Slurm of one's own needs root"),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    folder = tmp_path_factory.mktemp("slurm")
    script = ROOT / "scripts" / "slurm_local.sh"
    subprocess.run([script, "up", folder], check=True, capture_output=True, timeout=60)
    path = f"{folder}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"
    yield os.environ | {"SLURM_CONF": f"{folder}/slurm.conf", "PATH": path, "OMP_NUM_THREADS": "1"}
    subprocess.run([script, "down", folder], check=True)


def gancli(slurm, *words):
    return subprocess.Popen(
        [sys.executable, "-m", "gancli", *map(str, words)], env=slurm, stderr=subprocess.PIPE, text=True
    )


def finished(process):
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err


def scontrol(slurm, *words):
    return subprocess.run([*words], env=slurm, check=True, capture_output=True, text=True).stdout


def until(true, seconds=120):
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds
        time.sleep(0.2)


def begun(run):
    """Whether a step was made: from then on the run listens, and a signal finds something to save."""
    file = run / "metrics.jsonl"
    return file.exists() and file.stat().st_size > 0


def test_an_array_one_of_whose_jobs_is_signalled_as_before_its_time_limit(slurm, tmp_path):
    """The undisturbed run is seed 0 of another sweep; the signalled job is queued again by submitit and goes on."""
    longer = [*SMALL, "train.images=16_000", "log.every=1600", "checkpoint.every=100_000"]
    sweep = gancli(slurm, "train", "-m", *SLURM, *longer, "seed=0,1,2", f"hydra.sweep.dir={tmp_path}/signalled")
    until(lambda: begun(tmp_path / "signalled" / "0"))
    job = scontrol(slurm, "squeue", "-h", "-r", "-o", "%i").split()[0].split("_")[0]
    scontrol(slurm, "scancel", "--signal=USR2", f"{job}_0")
    finished(sweep)
    finished(gancli(slurm, "train", *SLURM, *longer, "seed=0", f"hydra.sweep.dir={tmp_path}/undisturbed"))
    runs = [tmp_path / "signalled" / str(number) for number in range(3)]
    assert [last(run)["images"] for run in runs] == [16_000] * 3
    assert [len(resumed(run)) for run in runs] == [1, 0, 0] and resumed(runs[0])[0] > 0
    assert same(without_time(last(runs[0])), without_time(last(tmp_path / "undisturbed" / "0")))


def test_two_tasks_are_one_run_that_goes_on_after_the_signal(slurm, tmp_path):
    run = tmp_path / "two"
    words = [*SLURM, "hydra.launcher.nodes=2", *SMALL, "train.images=8_000", "log.every=160", f"hydra.run.dir={run}"]
    process = gancli(slurm, "train", *words)
    until(lambda: begun(run))
    job = scontrol(slurm, "squeue", "-h", "-o", "%i").split()[0]
    scontrol(slurm, "scancel", "--signal=USR2", job)
    finished(process)
    log = (run / "train.log").read_text()
    assert log.count("2 processes") == 2, "one log for both tasks, and two starts"
    assert len(resumed(run)) == 1 and resumed(run)[0] > 0
    assert last(run)["images"] == 8_000
    assert len(list(run.glob("events.*"))) == 2, "one for each start"
    script = next(run.glob(".submitit/*/*.sh")).read_text()
    assert "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK" in script and "export SLURM_KILL_BAD_EXIT=1" in script


def test_a_dead_task_ends_its_job(slurm, tmp_path):
    run = tmp_path / "two"
    words = [*SLURM, "hydra.launcher.tasks_per_node=2", *SMALL, "train.images=null", "train.minutes=10"]
    process = gancli(slurm, "train", *words, "log.every=160", f"hydra.run.dir={run}")
    until(lambda: begun(run))
    tasks = subprocess.run(["pgrep", "-f", f"submitit.core._submit {run}"], capture_output=True, text=True).stdout
    ranks = {child: Path(f"/proc/{child}/environ").read_text().split("\0") for child in tasks.split()}
    os.kill(next(int(child) for child, told in ranks.items() if "SLURM_PROCID=1" in told), 9)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and err.splitlines()[-1].startswith("gancli: error: hydra/launcher: Job ")
    assert "Traceback" not in err


def test_the_plain_batch_script_goes_on_after_the_signal(slurm, tmp_path):
    """In a folder that it chooses by itself."""
    overrides = [*SMALL, "train.images=16_000", "log.every=1600"]
    command = ["sbatch", "--parsable", "--gpus-per-node=0", "--cpus-per-task=1", "--time=5", "--ntasks-per-node=1"]
    command += ["--nodes=1", f"--output={tmp_path}/%j.log", str(ROOT / "scripts" / "train.sbatch"), *overrides]
    job = subprocess.run(command, env=slurm, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()
    run = tmp_path / "outputs" / "slurm" / f"{job}_0"
    until(lambda: begun(run))
    scontrol(slurm, "scancel", "--signal=USR1", job)
    until(lambda: "COMPLETED" in scontrol(slurm, "scontrol", "show", "job", job), seconds=180)
    assert last(run)["images"] == 16_000
    assert len(resumed(run)) == 1 and resumed(run)[0] > 0
