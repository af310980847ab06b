"""The package as a whole: the wheel away from the checkout, the documentation, the scripts, the length of the loop."""

import inspect
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import zipfile
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "gancli").rglob("*.py"))
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]


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
    types = {"gancli/__init__.pyi", "gancli/py.typed"}
    assert names == configs | types | {str(p.relative_to(ROOT)) for p in SOURCES}


@pytest.mark.slow
def test_the_wheel_trains_from_another_folder_and_imports_what_it_uses(wheel, tmp_path):
    from conftest import TINY

    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    elsewhere.mkdir()
    environment = os.environ | {"PYTHONPATH": str(site)}
    code = (
        f"import gancli, sys; assert gancli.__file__.startswith({str(site)!r}); from gancli.cli import main\n"
        "try: main()\n"
        "finally: assert not {'torchvision', 'sklearn', 'matplotlib'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, "train", *TINY, "hydra.run.dir=run"]
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (elsewhere / "run" / "samples.png").exists()


def shell_lines(page):
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip() and not line.startswith("#")]


def gancli_words(line):
    """Returns the words after `gancli` of a line for a shell, or None for another program's line."""
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):  # PYTHONPATH=.
        words.pop(0)
    if words[:1] == ["sbatch"]:
        return ["train", *words[2:]]
    return words[words.index("gancli") + 1 :] if "gancli" in words else None


def compose_all(commands):
    """Composes commands, given as (line, words). Those with the same choices of groups share one composition.

    Hydra applies every override of a composition, so a key or a choice that does not exist fails in any of them.
    """
    from gancli.commands.sweeps import first_run
    from gancli.config import compose

    def chooses(word):
        return (ROOT / "configs" / re.split("[@=]", word.lstrip("+"))[0]).is_dir()

    shared = defaultdict(list)
    for line, (command, *words) in commands:
        words = [word for word in first_run(words)[0] if not word.startswith("-")]
        choices = frozenset(filter(chooses, words))
        shared["train" if command == "doctor" else command, choices].append((line, words))
    for (command, _), members in shared.items():
        words = dict.fromkeys(word for _, words in members for word in words)
        try:
            compose(command, sorted(words, key=chooses, reverse=True))
        except Exception as error:
            raise AssertionError("\n".join(line for line, _ in members)) from error


def test_the_first_two_commands_of_the_readme_set_up_train_and_test():
    first, second = shell_lines(README)[:2]
    assert first.endswith("gancli train") and "pip install" in first
    assert second.endswith("scripts/check") and "pip install" in second


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 150


def test_every_gancli_command_of_the_documentation_composes():
    lines = [line for page in PAGES for line in shell_lines(page)][2:]
    commands = {line: words for line in lines if "--config-dir" not in line and (words := gancli_words(line))}
    assert len(commands) > 60
    compose_all(commands.items())


@pytest.mark.parametrize(
    "words", ["train train.imges=1", "train loss=hing", "sample run=a cout=3", "doctor hydra.rn=1"]
)
def test_a_misspelt_command_of_the_documentation_would_fail(words):
    with pytest.raises(AssertionError, match=words):
        compose_all([(words, words.split()), ("train seed=1", ["train", "seed=1"])])


def test_the_table_of_groups_names_every_choice():
    table = (ROOT / "docs" / "networks-and-losses.md").read_text()
    rows = {}
    for row in re.findall(r"^\| `(\w+)` \| (.*) \|$", table, flags=re.MULTILINE):
        rows.setdefault(*row)  # the first table is that of the groups
    for group in (path for path in (ROOT / "configs").iterdir() if path.is_dir() and path.name != "hydra"):
        missing = [choice.stem for choice in group.glob("*.yaml") if f"`{choice.stem}`" not in rows[group.name]]
        assert not missing, (group.name, missing)


def test_the_loss_of_the_documentation_composes_and_checks_its_setting(cli, monkeypatch, tmp_path):
    text = (ROOT / "docs" / "extending.md").read_text()
    code, settings = (re.search(rf"```{kind}\n(.*?)```", text, flags=re.DOTALL)[1] for kind in ("python", "yaml"))
    (tmp_path / "conf" / "loss").mkdir(parents=True)
    (tmp_path / "mine.py").write_text(code)
    (tmp_path / "conf" / "loss" / "smoothed.yaml").write_text(settings)
    monkeypatch.syspath_prepend(tmp_path)
    words = ["train", f"--config-dir={tmp_path}/conf", "loss=smoothed"]
    assert "real: 0.9" in cli(*words, "--cfg", "job").out
    refused = cli(*words, "loss.real=2.0")
    assert refused.status == 2 and refused.err.endswith("\ngancli: error: loss.real=2.0: a label above 0, at most 1\n")
    del sys.modules["mine"]


def anchors(page):
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


TEXTS = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "outputs" / "README.md"]


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_the_documentation_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.replace("\n", " ").partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.fixture
def script(monkeypatch, capsys, tmp_path):
    """`script("name.py", …)` runs a script in this process: exit status (or message), out and err."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    monkeypatch.chdir(tmp_path)

    def call(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *words])
        try:
            runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
            status = 0
        except SystemExit as end:
            status = end.code or 0
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


WITH_HELP = {path.name for path in (ROOT / "scripts").glob("*.py")} - {"make_golden_losses.py"}  # which has no options


@pytest.mark.parametrize("name", sorted(WITH_HELP))
def test_a_script_says_what_it_does(script, name):
    status, out, _ = script(name, "--help")
    assert status == 0 and f"scripts/{name}" in out


@pytest.mark.slow
def test_the_benchmark_of_a_step_runs(script):
    words = ["--rounds=1", "--size=8", "--batch=8", "--channels=8", "--steps=1"]
    status, out, _ = script("benchmark_step.py", *words)
    assert status == 0 and out.count("images/s") == 3


def test_the_measurements_of_a_gpu_say_where_there_is_none(script, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, out, _ = script("measure_gpu.py")
    assert status.startswith("no CUDA device is visible here") and out == ""


@pytest.mark.slow
def test_the_measurements_of_a_gpu_run_in_small(script):
    words = ["--device=cpu", "--parts", "steps", "--networks", "resnet 32x32", "--seconds=0", "--batch=2"]
    words += ["--channels=4"]
    status, _, _ = script("measure_gpu.py", *words, "--out=gpu.json")
    found = json.loads(Path("gpu.json").read_text())
    assert status == 0 and found["torch"] and set(found["seconds"]) == {"steps"}
    assert len(found["steps"]) == 2 * 3 and all(step["images_per_second"] > 0 for step in found["steps"])


def test_images_are_sorted_into_clusters_that_serve_as_classes(script, read_folder):
    import numpy as np

    from gancli.datasets.digits import Digits

    status, out, _ = script("cluster_images.py", "clusters", "--count", "20", "--", "dataset=digits")
    assert status == 0 and "1,617 images in 20 clusters" in out
    found = read_folder("clusters", labels=True, channels=1)
    assert len(found) == 1617 and found.num_classes == 20 and len(found.holdout(1000)[0]) == 180
    images, labels = Digits().reference("train", 2000)
    digit_of = {image.numpy().tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
    counts = np.zeros((20, 10))
    for image, cluster in zip(*found.reference("train", 2000), strict=True):
        counts[cluster, digit_of[image.numpy().tobytes()]] += 1
    assert counts.max(1).sum() / counts.sum() > 0.95, "a cluster holds one digit; 0.91 of k-means do on the pixels"
    status, _, _ = script("cluster_images.py", "clusters", "--", "dataset=digits")
    assert "is there already" in status


def test_operations_are_counted(script):
    status, out, _ = script("count_operations.py", "--network=dcgan 64x64")
    assert status == 0
    assert out in (ROOT / "docs" / "performance.md").read_text()


def test_the_table_of_results_is_the_one_that_the_script_writes(script):
    status, table, _ = script("measure_experiments.py")
    text = (ROOT / "docs" / "recipes.md").read_text()
    assert status == 0 and f"<!-- experiments -->\n{table}<!-- end of experiments -->\n" in text
    assert "| FD (classifier) |" in table and " FID " not in table


def test_results_from_a_dirty_tree_are_marked(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["measure_experiments.py"])
    functions = runpy.run_path(str(ROOT / "scripts" / "measure_experiments.py"))
    record = next(r for r in json.loads((ROOT / "docs" / "experiments.json").read_text()) if r["experiment"] == "mnist")
    clean = functions["table"]([record | {"git_commit": "b833"}])
    assert "†" not in clean
    for commit in ("b833+changes", None):
        marked = functions["table"]([record | {"git_commit": commit}])
        assert "| `mnist` † |" in marked and "† At least one run" in marked


def test_the_training_step_reads_on_one_screen():
    from gancli.training.trainer import Trainer
    from gancli.updates import Simultaneous

    assert len(inspect.getsource(Trainer.train_step).splitlines()) < 40
    assert len(inspect.getsource(Simultaneous.player_updates).splitlines()) < 45
    assert len(inspect.getsource(Trainer.fit).splitlines()) < 60
