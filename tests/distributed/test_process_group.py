"""Several processes train one run: the same losses, one folder, one message, and nobody hangs."""

import json
import os
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
import train_as_rank
from conftest import TINY
from forked import Forked, command_line, start_server
from torch.distributed.launcher.api import LaunchConfig, launch_agent

from gancli.distributed import launch, process_group
from gancli.distributed.launch import ProcessInfo
from gancli.errors import ProcessLost, UserError
from gancli.training.checkpoint import Checkpoints

LENGTH = ["train.batch_size=16", "train.images=480", "log.every=16", "checkpoint.every=240", "log.pictures=800"]
SMALL = [*TINY, *LENGTH, "device.threads=1", "diagnostic=none"]
RUNS = {
    "default": ["evaluation.every=240", "evaluation.count=300", "evaluation.reference_count=300"],
    "batch_norm": ["network.discriminator.norm=batch", "loss=hinge"],
    "minibatch": [
        "network.discriminator.minibatch=std",
        "network.generator.norm=none",
        "loss=relativistic",
        "penalty=[r1,r2]",
    ],
    "discrimination": ["network.discriminator.minibatch=discrimination", "augment=ada"],
    "alternating": [
        *("update=alternating", "update.discriminator_steps=2", "loss=wasserstein", "penalty=[wgan_gp]"),
        "train.images=320",
    ],
    "conditional": ["conditional=true", "dataset.flip=true", "augment=diffaugment"],
    "packed": ["pack=2", "update=simultaneous"],
}
SHORT = ["train.images=160"]
NO_BATCH_NORM = ["network.generator.norm=none", "augment=diffaugment", "update=alternating"]


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(size, function, *args, cwd="."):
    """One process per rank, with the variables that torchrun sets."""
    common = {"WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port(), "OMP_NUM_THREADS": 1}
    return [Forked(function, *args, cwd=cwd, RANK=rank, LOCAL_RANK=rank, **common) for rank in range(size)]


def ended(processes):
    """(status, stderr) of each; a rank that hangs is a failure."""
    try:
        return [(status, err) for status, _, err in (process.ended() for process in processes)]
    finally:
        for process in processes:
            process.kill()


def until(true, seconds=240):
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds
        time.sleep(0.1)


def together(size, orders, folder):
    file = folder / f"orders-{size}.json"
    file.write_text(
        json.dumps({name: {"overrides": o, "folder": str(folder / f"{name}-{size}")} for name, o in orders.items()})
    )
    if size == 1:
        train_as_rank.train_all(file)
        return
    for status, err in ended(start(size, train_as_rank.train_all, file)):
        assert status == 0, err


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def resumed(folder):
    """After how many images the run went on, for each time that it did."""
    log = (folder / "train.log").read_text()
    return [int(found.replace(",", "")) for found in re.findall(r"resumed after ([\d,]+) images", log)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Thirty steps of the default on 1 and 2 processes, some of the others, and of one in micro-batches."""
    folder = tmp_path_factory.mktemp("several")
    for size in (1, 2):
        orders = {name: [*SMALL, *SHORT, *overrides] for name, overrides in RUNS.items()}
        orders["default"] = [*SMALL, *RUNS["default"]]
        orders["micro"] = [*SMALL, *SHORT, *NO_BATCH_NORM, f"train.accumulate={4 // size}"]
        if size == 1:
            orders["whole"] = [*SMALL, *SHORT, *NO_BATCH_NORM]
        together(size, orders, folder)
    return folder


def assert_like(one, other):
    assert len(one) == len(other) >= 10
    for a, b in zip(one, other, strict=True):
        for name in (name for name in a if name.startswith(("loss/", "penalty/", "augment/", "accuracy/", "logits/"))):
            assert b[name] == pytest.approx(a[name], rel=1e-4, abs=1e-5), (name, a["images"])


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_any_number_of_processes_trains_the_same_run(trained, name):
    one = rows(trained / f"{name}-1")
    assert_like(one, rows(trained / f"{name}-2"))


@pytest.mark.slow
def test_micro_batches_train_the_same_run(trained):
    whole = rows(trained / "whole-1")
    for size in (1, 2):
        assert_like(whole, rows(trained / f"micro-{size}"))


@pytest.mark.slow
def test_the_comparison_above_can_fail(trained):
    with pytest.raises(AssertionError):
        assert_like(rows(trained / "packed-1"), rows(trained / "conditional-1"))


@pytest.mark.slow
def test_one_folder_is_written_and_evaluated(trained):
    folder = trained / "default-2"
    assert {p.name for p in folder.iterdir()} >= {"config.yaml", "metrics.jsonl", "samples.png", "evaluations.jsonl"}
    assert len(list(folder.glob("events.*"))) == 1
    values = [
        [
            json.loads(line)["values"]["fd_random"]
            for line in (trained / f"default-{size}" / "evaluations.jsonl").read_text().splitlines()
        ]
        for size in (1, 2)
    ]
    assert values[1] == pytest.approx(values[0], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 4])
def test_a_checkpoint_of_two_goes_on_with_another_number(trained, tmp_path, size):
    import shutil

    folder = tmp_path / f"default-{size}"
    shutil.copytree(trained / "default-2", folder)
    (folder / "checkpoints" / "images-000000000480.pt").unlink()
    together(size, {"default": [*SMALL, *RUNS["default"], "resume=auto"]}, tmp_path)
    assert_like(rows(trained / "default-1"), rows(folder))
    a, b = (Checkpoints(run / "checkpoints").pick("last")[1] for run in (trained / "default-1", folder))
    for name, weight in a["generator"].items():
        assert torch.allclose(weight.float(), b["generator"][name].float(), rtol=1e-3, atol=1e-4), name


@pytest.mark.slow
def test_a_killed_process_ends_the_other(tmp_path):
    words = ["train", f"hydra.run.dir={tmp_path}/run", *SMALL, "train.images=4000", "checkpoint.every=80"]
    processes = start(2, command_line, *words)
    until(lambda: list((tmp_path / "run").glob("checkpoints/*.pt")))
    processes[1].kill()
    (status, err), _ = ended(processes)
    assert status == 1 and "without a word" in err and "Traceback" not in err


@pytest.fixture
def signals(monkeypatch):
    """torchrun's agent listens to signals, and says in the environment to which."""
    monkeypatch.setenv("TORCHELASTIC_SIGNALS_TO_HANDLE", "SIGTERM")
    before = signal.getsignal(signal.SIGTERM)
    yield "SIGTERM"
    signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
def test_torchrun_restarts_after_a_kill_and_the_run_goes_on(tmp_path, signals):
    """The agent that is torchrun, here in this process; one of its two workers is killed with -9."""
    run = tmp_path / "run"
    words = [f"hydra.run.dir={run}", *SMALL, "train.images=1600", "checkpoint.every=80"]
    start_server()
    once = LaunchConfig(
        **dict.fromkeys(("min_nodes", "max_nodes", "max_restarts"), 1),
        **{"nproc_per_node": 2, "start_method": "forkserver", "signals_to_handle": signals},
        **{"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": "1"},
    )

    def kill():
        until(lambda: list(run.glob("checkpoints/*.pt")))
        os.kill(int((tmp_path / "1").read_text()), signal.SIGKILL)

    with ThreadPoolExecutor() as other:
        killed = other.submit(kill)
        launch_agent(once, train_as_rank.train_under_torchrun, [tmp_path, words])
        killed.result()
    assert resumed(run)[0] > 0
    assert Checkpoints(run / "checkpoints").pick("last")[1]["images"] == 1600
    seen = [row["images"] for row in rows(run)]
    assert seen == sorted(set(seen)) and seen[-1] == 1600


@pytest.mark.slow
def test_only_the_main_process_of_two_measures_aloud(tmp_path):
    words = [*TINY, "evaluation.every=32", "evaluation.count=40", "evaluation.reference_count=100", "device.threads=1"]
    processes = start(2, train_as_rank.measure_shortly, *words, cwd=tmp_path)
    results = [process.ended() for process in processes]
    assert [status for status, _, _ in results] == [0, 0], results
    printed = ["".join(texts) for _, *texts in results]
    assert "".join(printed).count("images/s") == 1 and "2 processes" in printed[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "words, statuses",
    [(["seed=0,1"], [2, 2]), (["train.batch_size=15,16"], [2, 2])],
    ids=["the first meets it", "each meets it"],
)
def test_an_error_in_a_sweep_of_several_processes_hangs_nobody(tmp_path, words, statuses):
    (tmp_path / "sweep" / "0").mkdir(parents=True)
    if words[0].startswith("seed"):
        (tmp_path / "sweep" / "0" / "config.yaml").write_text("seed: 0")
    words = ["train", "-m", f"hydra.sweep.dir={tmp_path}/sweep", *SMALL, *words, "train.images=32"]
    results = ended(start(2, command_line, *words, cwd=tmp_path))
    assert [status for status, _ in results] == statuses
    said = "".join(err for _, err in results)
    assert said.count("gancli: error") == 1 and "Traceback" not in said
    if words[0].startswith("seed"):  # an error of all: the next job is trained
        assert Checkpoints(tmp_path / "sweep" / "1" / "checkpoints").pick("last")[1]["images"] == 32
    assert {path.name for path in tmp_path.iterdir()} == {"sweep"}, "nothing else is written"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (
            ["train.batch_size=15", "penalty=[consensus]"],
            ["train.batch_size=15: does not divide by 2 processes", "penalty.consensus: is of the whole batch's"],
        ),
        (["dataset=none_such"], ["dataset=none_such: no such choice"]),
    ],
    ids=["settings", "a choice"],
)
def test_a_mistake_is_told_once(tmp_path, words, texts):
    results = ended(start(2, command_line, "train", f"hydra.run.dir={tmp_path}/run", *SMALL, *words))
    printed = "".join(err for _, err in results)
    assert printed.count("gancli: error") == 1 and "Traceback" not in printed
    assert all(text in printed for text in texts)
    assert [status for status, _ in results] == [2, 2]


def test_no_process_leaves_before_all_have_come():
    store, left = torch.distributed.HashStore(), []

    def come(rank):
        process_group.wait_for_all(store, 2)
        left.append(rank)

    first = threading.Thread(target=come, args=(0,))
    first.start()
    first.join(timeout=0.2)
    assert first.is_alive() and not left
    come(1)
    first.join(timeout=30)
    assert sorted(left) == [0, 1]


def test_process_info_of_each_launcher():
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "5"}
    assert launch.process_info(torchrun) == ProcessInfo(rank=3, world_size=4, local_rank=1, address="a", port=5)
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}
    step |= {"SLURM_STEP_NODELIST": "gpu[03-04,7]-ib,x", "SLURM_JOB_ID": "40007"}
    assert launch.process_info(step) == ProcessInfo(rank=1, world_size=2, local_rank=1, address="gpu03-ib", port=20007)
    # A batch script's own shell knows the number of tasks, and has no peers.
    assert launch.process_info({"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}).world_size == 1
    assert launch.process_info({}) == ProcessInfo()
    local = {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_NTASKS": "2", "SUBMITIT_LOCAL_GLOBALID": "1"}
    local |= {"SUBMITIT_LOCAL_LOCALID": "1", "SUBMITIT_LOCAL_JOB_ID": "40001"}
    assert launch.process_info(local) == ProcessInfo(rank=1, world_size=2, local_rank=1, port=20001)
    assert launch.process_info(local | {"SUBMITIT_LOCAL_NTASKS": "1"}).world_size == 1


@pytest.mark.parametrize(
    "nodes, name", [("node1", "node1"), ("a,b", "a"), ("n[1-2]", "n1"), ("gpu[007,9]", "gpu007"), ("a-1,b[2-3]", "a-1")]
)
def test_first_host(nodes, name):
    assert launch.first_host(nodes) == name


@pytest.mark.parametrize(
    "environment, name",
    [
        ({"RANK": "a", "WORLD_SIZE": "2"}, "RANK=a"),
        ({"RANK": "0", "WORLD_SIZE": "2.0"}, "WORLD_SIZE=2.0"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK=-1"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "x"}, "LOCAL_RANK=x"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "70000"}, "MASTER_PORT=70000"),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "two"}, "SLURM_STEP_NUM_TASKS=two"),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": "x"}, "SLURM_JOB_ID=x"),
        ({"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_NTASKS": "2"}, "SUBMITIT_LOCAL_GLOBALID is not set"),
    ],
)
def test_an_impossible_variable_of_a_launcher_is_named(environment, name):
    with pytest.raises(UserError, match=f"^{re.escape(name)}"):
        launch.process_info(environment)


def test_an_empty_variable_of_a_launcher_counts_as_not_set():
    assert launch.process_info({"RANK": "", "WORLD_SIZE": "", "SLURM_STEP_NUM_TASKS": ""}) == ProcessInfo()
    empty = {"LOCAL_RANK": "", "MASTER_ADDR": "", "MASTER_PORT": ""}
    assert launch.process_info({"RANK": "1", "WORLD_SIZE": "2", **empty}) == ProcessInfo(rank=1, world_size=2)
    assert not launch.was_restarted({"SLURM_RESTART_COUNT": ""})


def test_a_command_refuses_an_impossible_variable_in_one_line(cli, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "one")
    done = cli("train")
    assert done.status == 2 and done.err.startswith("gancli: error: WORLD_SIZE=one: ") and done.err.count("\n") == 1


@pytest.mark.filterwarnings("error")  # such as of a function of torch that is to go
def test_a_process_that_never_comes_is_told_after_minutes_and_not_waited_for_again(monkeypatch):
    variables = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port()}
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    assert process_group._JOIN_TIMEOUT.total_seconds() <= 600
    monkeypatch.setattr(process_group, "_JOIN_TIMEOUT", timedelta(seconds=0.1))
    process_group._join.cache_clear()
    try:
        with pytest.raises(ProcessLost, match=r"not all 2 processes .* within .* minutes; was one of them killed"):
            process_group.join_process_group()
        monkeypatch.setattr(process_group, "_JOIN_TIMEOUT", timedelta(minutes=5))
        began = time.monotonic()
        with pytest.raises(ProcessLost):  # asked again, to report the error
            process_group.join_process_group()
        assert time.monotonic() - began < 5
    finally:
        process_group._join.cache_clear()
