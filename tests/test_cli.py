"""The command line as a shell sees it."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import TINY

from gancli import __version__
from gancli import cli as cli_module
from gancli.cli import COMMANDS
from gancli.commands.latest_run import REPORT_MARK


def shell(*argv, **environment):
    command = [sys.executable, "-m", "gancli", *argv]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=120)


def test_help_and_version_need_neither_torch_nor_hydra():
    code = (
        "import sys; from gancli import cli\n"
        "for argv in (['--help'], ['--version'], ['trian'], []):\n"
        "    cli.run(argv)\n"
        "heavy = {'torch', 'hydra', 'omegaconf', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in COMMANDS) and __version__ in done.stdout
    assert "did you mean train?" in done.stderr


def test_composing_needs_no_torch():
    code = (
        "import sys; from gancli import cli\n"
        "assert cli.run(['train', '--cfg', 'job']) == 0\n"
        "assert cli.run(['sample', '--help']) == 0\n"
        "assert cli.run(['sample', 'run=latest']) == 2\n"
        "assert 'torch' not in sys.modules, 'torch'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "run=latest: no run below" in done.stderr and "PyTorch" not in done.stderr


def test_the_first_line_says_what_begins_before_torch_is_imported(tmp_path):
    code = (
        "import sys; from gancli import cli; from gancli.commands import hydra_app\n"
        "class Stop(BaseException): pass\n"
        "def stop(*_): raise Stop\n"
        "sys.meta_path.insert(0, type('', (), {'find_spec': lambda name, *_: stop() if name == 'torch' else None}))\n"
        "try: cli.run(sys.argv[1:])\n"
        "except Stop: print('torch')\n"
    )
    words = ["train", "experiment=mnist", "seed=1", "hydra.run.dir=run"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "torch\n"
    assert done.stderr == (
        "gancli train: experiment=mnist dataset=mnist network=dcgan loss=nonsaturating; run folder run; "
        "loading PyTorch\n"
    )


def test_exit_statuses_of_the_process():
    assert shell("--version").stdout == f"gancli {__version__}\n"
    unknown = shell("smaple")
    assert unknown.returncode == 2 and "did you mean sample?" in unknown.stderr


def test_hydra_flags(cli):
    assert "seed: 7" in cli("train", "seed=7", "--cfg", "job").out
    assert "Defaults Tree" in cli("train", "--info", "defaults-tree").out
    assert "lr: 0.1" in cli("train", "optimizer.generator.lr=0.1", "--cfg", "job", "-p", "optimizer").out
    assert "weight_decay: 0.5" in cli("train", "+optimizer.generator.weight_decay=0.5", "--cfg", "job").out


def test_multirun(cli):
    result = cli("train", "-m", *TINY, "seed=1,2", "hydra.sweep.dir=sweep")
    assert result.status == 0, result.err
    assert result.err.endswith("side by side: gancli report run=sweep\n")
    assert all((Path("sweep") / job / "samples.png").exists() for job in ("0", "1"))


@pytest.mark.parametrize(
    "words, launched",
    [
        (["seed=1"], ["seed=1"]),
        (["hydra/launcher=basic", "hydra.run.dir=a"], ["hydra/launcher=basic", "hydra.run.dir=a"]),
        (["-m", "hydra/launcher=slurm", "seed=1,2"], ["-m", "hydra/launcher=slurm", "seed=1,2"]),
        (["hydra/launcher=slurm"], ["hydra/launcher=slurm", "--multirun"]),
        (
            ["hydra.run.dir=a", "hydra/launcher=slurm", "hydra.run.dir='b c'", "seed=1"],
            ["hydra/launcher=slurm", "seed=1", "hydra.sweep.dir='b c'", "hydra.sweep.subdir=.", "--multirun"],
        ),
    ],
)
def test_a_launched_run_keeps_its_folder(words, launched):
    assert cli_module._as_sweep_of_one(words) == launched


@pytest.mark.slow
def test_a_launched_run_is_resumed_where_it_is(cli, train):
    """By submitit without Slurm, whose two tasks are one run; the settings are the run's own."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    run = train("seed=5", "device.threads=1", folder="run")
    local = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10", "hydra.launcher.tasks_per_node=2"]
    result = cli("train", *local, "resume=run", "train.images=96")
    assert result.status == 0, result.err
    log = (run / "train.log").read_text()
    assert "resumed after 64 images" in log and "2 processes" in log
    assert log.count("resumed after") == 1, "one process writes it"
    assert (run / "checkpoints" / "images-000000000096.pt").exists()
    assert {path.name for path in Path().iterdir()} == {"run"}, "nothing was begun elsewhere"


def test_no_slurm_here(cli, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    monkeypatch.setenv("PATH", "")
    result = cli("train", "hydra/launcher=slurm", *TINY)
    assert result.status == 2 and "gancli: error: hydra/launcher: Could not detect" in result.err


def test_torchrun_with_restarts_needs_a_folder_that_lasts(cli, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    for words, key in (([], "hydra.run.dir"), (["-m", "seed=1,2"], "hydra.sweep.dir")):
        result = cli("train", *TINY, *words)
        assert result.status == 2 and f"give {key}=FOLDER" in result.err
        assert not list(Path().iterdir())
    assert cli("train", "--cfg", "job").status == 0
    assert cli("train", *TINY, "hydra.run.dir=run").status == 0


def test_a_job_that_is_queued_again_does_not_begin_anew_without_a_word(cli, monkeypatch):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    result = cli("train", *TINY)
    assert result.status == 2 and "give hydra.run.dir=FOLDER in the job's command" in result.err
    assert not list(Path().iterdir())


def test_completion_of_commands_groups_and_choices():
    def complete(line):
        return shell("-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line))).stdout.split()

    assert complete("gancli tr") == list(COMMANDS)
    assert "loss=" in complete("gancli train los")
    assert "loss=hinge" in complete("gancli train loss=h")
    assert "format=" in complete("gancli sample for")


def test_a_loss_of_ones_own_needs_a_class_and_a_yaml(cli, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from gancli.losses import NonSaturating\n\n\n"
        "class Softer(NonSaturating):\n"
        "    def __init__(self, *, factor: float):\n"
        "        self.factor = factor\n\n"
        "    def generator(self, fake_logits, real_logits):\n"
        "        return self.factor * super().generator(fake_logits, real_logits)\n"
    )
    (tmp_path / "conf" / "loss").mkdir(parents=True)
    (tmp_path / "conf" / "loss" / "softer.yaml").write_text("_target_: mine.Softer\nfactor: 0.5\n")
    words = ["train", f"--config-dir={tmp_path}/conf", "loss=softer", *TINY, f"hydra.run.dir={tmp_path}/run"]
    with monkeypatch.context() as given:
        given.syspath_prepend(tmp_path)
        done = cli(*words)
    assert done.status == 0, done.err
    del sys.modules["mine"]
    sampled = cli("sample", "run=run", "out=a.png")
    assert sampled.status == 0 and "mine" not in sys.modules, "the loss is not built for it: " + sampled.err
    monkeypatch.syspath_prepend(tmp_path)
    refused = cli("train", "resume=run")
    assert refused.status == 2 and "trust=[package]" in refused.err and "mine" not in sys.modules
    taken = cli("train", "resume=run", "trust=[mine]", "train.images=96")
    assert taken.status == 0, taken.err
    del sys.modules["mine"]


def test_two_processes_do_not_train_in_one_folder(cli, tmp_path):
    from gancli.training.run_folder import RunFolder

    with RunFolder(tmp_path / "run").locked():
        result = cli("train", *TINY, "hydra.run.dir=run")
        assert [path.name for path in Path("run").iterdir()] == [".lock"], "nothing is written where another one works"
    assert result.status == 2 and result.err.count("\n") == 1 and "another process" in result.err


def test_a_start_that_is_refused_leaves_no_folder(cli, tmp_path):
    refused = ["train", *TINY, "train.batch_size=100_000"]  # more than the data has, which only the data tells
    assert cli(*refused).status == 2 and not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    for folder in ("mine", "mine/new/run"):
        assert cli(*refused, f"hydra.run.dir={folder}").status == 2
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {".lock"}, "the folder was there"
    run = cli("train", *TINY, "hydra.run.dir=mine")
    assert run.status == 0, run.err
    before = content_below(tmp_path)
    for words in (["resume=mine", "train.batch_size=32"], ["hydra.run.dir=mine", *TINY, "train.images=16"]):
        assert cli("train", *words).status == 2
        assert content_below(tmp_path) == before


def content_below(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_latest_is_the_run_with_the_newest_checkpoint(cli, trained, tmp_path):
    for folder in ("train/old", "multirun/a b/0", "theory/runs/newest"):
        shutil.copytree(trained, tmp_path / "outputs" / folder)
    for number, file in enumerate(["multirun/a b/0", "train/old", "theory/runs/newest"]):
        for checkpoint in (tmp_path / "outputs" / file / "checkpoints").iterdir():
            os.utime(checkpoint, (number, number))
    assert cli("sample", "run=latest", "out=a.png").err.startswith("gancli: run=latest is outputs/theory/runs/newest\n")
    (tmp_path / "outputs/theory" / REPORT_MARK).touch()
    sampled = cli("sample", "run=latest", "out=a.png", "overwrite=true")
    assert sampled.status == 0 and sampled.err.startswith("gancli: run=latest is outputs/train/old\n"), sampled.err
    os.utime(next((tmp_path / "outputs/multirun/a b/0/checkpoints").iterdir()), (9, 9))
    (tmp_path / "outputs/multirun/a b/multirun.yaml").touch()
    assert "resume=latest is outputs/multirun/a b/0\n" in cli("train", "resume=latest").err
    assert cli("report", "run=latest").status == 0 and (tmp_path / "outputs/multirun/a b/report.html").exists()
    assert "latest" not in cli("sample", "run=latest", "--cfg", "job").err


def test_a_finished_run_says_how_to_go_on(cli, train):
    run = train("seed=3").resolve()
    before = (run / "run.json").read_bytes(), list(run.glob("events.*"))
    result = cli("train", "resume=run")
    assert result.status == 0, result.err
    assert before == ((run / "run.json").read_bytes(), list(run.glob("events.*"))), "nothing was begun"
    assert result.err.endswith(f"to go on:\n  gancli train resume={run} train.images=128\n")
    words = result.err.splitlines()[-1].split()[1:]
    assert f"gancli train resume={run} train.images=256" in cli(*words).err


def test_what_a_run_prints_can_be_typed(cli):
    folder = "it's, lr=1 [a] $HOME/2024_01_05"
    trained = cli("train", *TINY, f"hydra.run.dir={folder}")
    assert trained.status == 0 and Path(folder, "config.yaml").exists(), trained.err
    lines = [line.strip() for line in trained.err.splitlines()]
    goes_on, sample = (
        next(shlex.split(line)[1:] for line in lines if line.startswith(f"gancli {command} "))
        for command in ("train", "sample")
    )
    assert cli(*sample, "out=a.png").status == 0
    assert cli(*goes_on).status == 0 and Path(folder, "checkpoints/images-000000000128.pt").exists()


def test_a_name_that_reads_as_a_number_is_a_name(cli, trained, tmp_path):
    for name in ("20240105", "2024_01_05"):
        shutil.copytree(trained, tmp_path / name)
    assert cli("sample", "run=2024_01_05", "out=1e3.png").status == 0 and Path("1e3.png").exists()
    assert cli("train", "resume=2024_01_05", "train.images=8e1").status == 0
    assert Path("2024_01_05/checkpoints/images-000000000080.pt").exists()
    assert not Path("20240105/checkpoints/images-000000000080.pt").exists()
    assert "hydra.run.dir=elsewhere: resume=" in cli("train", "resume=20240105", "hydra.run.dir=elsewhere").err


def test_paths_are_relative_to_where_the_command_was_typed(cli, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    result = cli("train", "hydra.job.chdir=true", *TINY, "init=run", "hydra.run.dir=new", "evaluation.cache=cache")
    assert result.status == 0, result.err
    assert Path.cwd() == tmp_path and Path("new/samples.png").exists() and not Path("new/new").exists()


def test_a_run_goes_on_with_settings_that_the_defaults_lack(cli, train, tmp_path):
    from PIL import Image

    for number in range(40):
        (tmp_path / "set").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"set/{number}.png")
    folder = ["dataset=folder", "dataset.path=set", "dataset.resolution=8", f"dataset.cache={tmp_path}/cache"]
    run = train(*folder, "metric/features=classifier")
    (tmp_path / "set").rename("moved")
    refused = cli("train", "resume=run", "dataset.flip=true")
    assert refused.status == 2 and "dataset.flip: False -> True" in refused.err
    words = ["resume=run", "dataset.path=moved", "train.images=80", "metric/features=random"]
    result = cli("train", *words)
    assert result.status == 0, result.err
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["dataset"]["path"] == "moved" and settings["metric"]["features"]["_target_"].endswith("Random")
    assert json.loads((run / "run.json").read_text())["starts"][-1]["overrides"] == words
