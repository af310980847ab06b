"""What is said of words that do not compose: the word as it was typed, and what to type instead."""

import pytest
from conftest import TINY

REFUSED = {
    "several values": ("seed=1,2", "seed=1,2: several values are a sweep, which begins with -m"),
    "several values for a list": ("penalty=r1,r2", "begins with -m, and a list is penalty=[r1,r2]"),
    "a number with commas": (
        "train.images=300,000",
        "train.images=300,000: several values; a number is written 300_000",
    ),
    "a number with a unit": ("train.images=300k", "train.images=300k: expected int or null; write 300_000"),
    "plus before what exists": ("+seed=3", "+seed=3: this setting exists already; write seed=3"),
    "a deleted section": ("~ema", "~ema: a section, which has no value of its own and is always there"),
    "a deleted setting": (
        "~train.minutes",
        "~train.minutes: cannot be left out; give it a value, such as train.minutes",
    ),
    "a deleted part": ("~penalty", "~penalty: a part that every run has; choose penalty=… from consensus,"),
    "a deleted typo": ("~emaa", "~emaa: no such setting or group; did you mean ema?"),
    "a part by its key": ("optimizer.generator=sgd", "write optimizer@optimizer.generator=…, one of adam,"),
    "a group without its place": ("optimizer=sgd", "say where: optimizer@optimizer.generator=sgd or optimizer@"),
    "a group for one setting": ("schedule=cosine", "write +schedule@KEY=cosine with its key"),
    "a setting of another choice": (
        "dataset.path=x",
        "dataset.path=x: no such setting or group; it belongs to dataset=folder",
    ),
    "a group that is null": ("dataset=null", "dataset=null: a group has no null; name a choice, one of celeba,"),
    "an empty path": ("hydra.run.dir=", "hydra.run.dir=: is empty"),
    "no key": ("=3", "=3: no key stands before the equals sign"),
    "half a key": ("loss.=3", "loss.=3: no key stands before the equals sign"),
    "an unknown flag": ("--mutlirun", "--mutlirun: no such flag; did you mean --multirun?"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_one_line_says_what_to_type_instead(cli, name):
    word, text = REFUSED[name]
    result = cli("train", word)
    assert result.status == 2 and text in result.err, result.err
    assert result.err.count("gancli: error:") == 1 and "Traceback" not in result.err
    assert f"did you mean {word.lstrip('~+').partition('=')[0]}?" not in result.err


def test_suggestions_come_from_the_groups_that_were_typed(cli):
    typed = ["distribution@dataset.distribution=expression", "dataset=distribution_1d"]  # the first needs the second
    assert "did you mean dataset.distribution.cdf?" in cli("train", *typed, "dataset.distribution.cdff=x").err
    assert "did you mean dataset.path?" in cli("train", "dataset=folder", "dataset.pth=x").err


def test_a_list_of_no_choices_is_an_empty_section(cli):
    result = cli("train", "penalty=[]", "diagnostic=[]", "metric=[]", "train.minutes=-1")
    assert result.status == 2 and result.err.count("\n") == 2 and "error: train.minutes=-1: " in result.err


def test_several_runs_are_a_list(cli, tmp_path):
    assert "run=a,b: no such folder; several are run=[a,b]" in cli("evaluate", "run=a,b").err
    (tmp_path / "a1").mkdir()
    (tmp_path / "a2").mkdir()
    assert "* stands for nothing here; name them, run=[a1,a2]" in cli("report", "run=a*").err
    (tmp_path / "a,b").mkdir()
    assert "run=a,b: no run folders here" in cli("report", "run=a,b").err, "a folder may have that name"


def test_flags_may_stand_among_the_settings(cli, tmp_path):
    (tmp_path / "conf" / "loss").mkdir(parents=True)
    (tmp_path / "conf" / "loss" / "mine.yaml").write_text("# Mine.\n_target_: gancli.losses.Hinge\n")
    out = cli("train", "seed=7", "--config-dir=conf", "loss=mine", "--cfg=job", "train.images=5").out
    assert "seed: 7" in out and "images: 5" in out and "gancli.losses.Hinge" in out
    result = cli("train", "-m", *TINY, "--config-dir", "conf", "seed=abc,abd", "loss=mine")
    assert result.status == 2 and "job 1: seed=abd: expected int" in result.err
