"""The house: the wheel away from the checkout, the README's commands, sizes of rooms."""

import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "gancli").rglob("*.py"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_the_wheel_carries_every_yaml_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    configs = {f"gancli/configs/{p.relative_to(ROOT / 'configs')}" for p in (ROOT / "configs").rglob("*.yaml")}
    assert names == configs | {str(p.relative_to(ROOT)) for p in SOURCES}


@pytest.mark.slow
def test_the_wheel_trains_from_another_folder(wheel, tmp_path):
    from conftest import TINY

    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    elsewhere.mkdir()
    environment = os.environ | {"PYTHONPATH": str(site)}
    code = f"import gancli; assert gancli.__file__.startswith({str(site)!r}); from gancli.cli import main; main()"
    command = [sys.executable, "-c", code, "train", *TINY, "hydra.run.dir=run"]
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (elsewhere / "run" / "samples.png").exists()


def readme_commands():
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip() and not line.startswith("#")]


def test_the_first_two_commands_of_the_readme_set_up_train_and_test():
    first, second = readme_commands()[:2]
    assert first.endswith("gancli train") and "pip install" in first
    assert second.endswith("scripts/check") and "pip install" in second


def test_every_gancli_command_of_the_readme_composes(cli):
    commands = [line for line in readme_commands() if line.startswith("gancli ")]
    assert len(commands) >= 8
    for line in commands:
        words = shlex.split(line, comments=True)[1:]
        if any(word.startswith(("--config-dir", "resume=")) for word in words):
            continue  # these need a folder that the text makes up; tests of their own run them
        if "-m" in words:  # a sweep's first job
            words = [
                re.sub(r"=([^,\[]+),.*", r"=\1", word) for word in words if word != "-m" and "interval(" not in word
            ]
        result = cli(*words, "--cfg", "job")
        assert result.status == 0, (line, result.err)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "benchmark_step.py --rounds 1 --size 8 --batch 8 --channels 8 --steps 1",
        "measure_experiments.py",
        "benchmark_startup.py --help",
        "kill_and_resume.py --help",
        "benchmark_data.py --help",
        "benchmark_gpu.py --help",
    ],
)
def test_scripts_run(command, tmp_path):
    name, *words = command.split()
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / name), *words], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_benchmark_for_gpus_says_where_there_is_none(tmp_path):
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(ROOT / "scripts" / "benchmark_gpu.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("no CUDA device is visible here") and done.stderr.count("\n") == 1


def test_no_room_has_grown_past_300_lines():
    long = {str(p): n for p in SOURCES if (n := len(p.read_text().splitlines())) > 300}
    assert not long


def test_the_training_step_reads_on_one_screen():
    import inspect

    from gancli.training.trainer import Trainer
    from gancli.updates import Simultaneous

    assert len(inspect.getsource(Trainer.train_step).splitlines()) < 40
    assert len(inspect.getsource(Simultaneous.stages).splitlines()) < 40
    assert len(inspect.getsource(Trainer.fit).splitlines()) < 60
