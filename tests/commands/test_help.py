"""What `--help` and `--cfg job` print: the settings with the comments of the YAML files."""

import subprocess
import sys

import pytest
import yaml

from gancli.cli import COMMANDS
from gancli.commands.composition import read_comments
from gancli.commands.help import SECTIONS
from gancli.config import compose, config_dir, leaves

CHOICES = sorted(file for file in config_dir().glob("**/*.yaml") if "hydra" not in file.parts)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_shows_every_setting_and_fits(cli, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "60")  # narrower than what it fits into
    out = cli(command, "--help").out
    assert out.startswith(f"gancli {command}: ") and out.count(f"\n  gancli {command}") >= 3, "three examples"
    settings = compose("train" if command == "doctor" else command, [])
    lines = [line.split()[0].partition("=")[0] for line in out.splitlines() if line.startswith("  ") and line.strip()]
    missing = {key for key, _ in leaves(settings)} - set(lines)
    assert {key for key in missing if not key.endswith("_target_")} == set()
    long = [line for line in out.splitlines() if len(line) > 80 and len(line.split()) > 1 and "gancli" not in line]
    assert not long, "only what cannot be broken"


def test_the_help_of_train_says_what_settings_choices_and_recipes_are(cli):
    text = " ".join(cli("train", "--help").out.split())
    comments = read_comments(config_dir() / "train.yaml")[1]
    for key in ("seed", "train.images", "health.diversity", "init"):
        assert comments[key] in text
    assert "train.images=300_000 real images seen" in text and "optimizer.generator.betas=[0.0,0.99]" in text
    for group in (path for path in config_dir().iterdir() if path.is_dir() and path.name != "hydra"):
        assert all(choice.stem in text for choice in group.glob("*.yaml"))
    for recipe in (config_dir() / "experiment").glob("*.yaml"):
        assert f"experiment={recipe.stem} {read_comments(recipe)[0]}" in text
    titles = [text.index(f" {title}: ") for title in SECTIONS]
    assert titles == sorted(titles)


def test_every_key_of_a_section_of_the_help_exists():
    assert {key for keys in SECTIONS.values() for key in keys} == set(compose("train", []))


def test_the_help_of_a_choice_shows_its_settings_and_the_other_choices(cli):
    text = " ".join(cli("train", "--help", "dataset=folder", "dataset.flip=true").out.split())
    assert "dataset.path=??? the folder or zip; must be given" in text and "dataset.flip=true mirror half" in text
    assert "dataset=svhn 99,289 house numbers" in text
    assert "train.images" not in text.partition("Examples:")[0]
    lr = cli("train", "--help", "+schedule@optimizer.generator.lr=cosine").out
    assert "schedule=linear " in lr and "optimizer.generator.lr.end=0.0" in lr
    assert "penalty.r2.interval" in cli("train", "--help", "penalty=[r1,r2]").out
    assert "device=cpu " in cli("sample", "--help", "device=cpu").out, "not the choice that it builds on"


def test_the_help_of_an_experiment_shows_its_values_with_what_they_mean(cli):
    out = cli("train", "experiment=gaussian_ring", "-h").out
    assert "optimizer.generator.lr.start=0.002      value until `begin`" in out
    assert "network.generator.fourier=0.5" in out and "train.batch_size" in out


def test_the_help_of_a_choice_of_ones_own(cli, tmp_path):
    (tmp_path / "conf" / "loss").mkdir(parents=True)
    (tmp_path / "conf" / "loss" / "mine.yaml").write_text(
        "# My loss.\n_target_: mine.Loss\nname: 'a # b'  # its name\n"
    )
    out = cli("train", "--help", "--config-dir=conf", "loss=mine").out
    assert out.count("loss=mine                               My loss.") == 2 and "loss=hinge" in out
    assert "loss.name=a # b                         its name" in out


def test_misspelt_choices_are_refused(cli):
    refused = cli("train", "--help", "dataset=foldr")
    assert refused.status == 2 and "did you mean folder?" in refused.err and not refused.out


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train", ["experiment=gaussian_ring", "dataset.modes=5", "objective='a: #b'"]),
        ("train", ["experiment=cifar10"]),
        ("evaluate", ["run='1e-4'"]),
        ("theory", []),
    ],
)
def test_the_printed_configuration_is_yaml_with_comments(cli, command, words):
    out = cli(command, *words, "--cfg", "job", "--resolve").out
    assert yaml.safe_load(out) == compose(command, words)
    assert out.count("  # ") > 10


def test_a_part_of_the_configuration_is_printed(cli):
    out = cli("train", "--cfg", "job", "--package", "train").out
    assert out.startswith("# @package train\n") and yaml.safe_load(out) == compose("train", [])["train"]
    refused = cli("train", "--cfg", "job", "-p", "trian")
    assert refused.status == 2 and "trian: no such key" in refused.err


@pytest.mark.parametrize("file", CHOICES, ids=lambda file: str(file.relative_to(config_dir())))
def test_every_choice_describes_itself_in_one_line(file):
    assert read_comments(file)[0].endswith((".", "…"))


def test_a_reader_that_has_read_enough_is_no_error():
    code = "import sys; from gancli.cli import run; sys.exit(run(['train', '--help']))"
    command = f"'{sys.executable}' -c \"{code}\" | true"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
