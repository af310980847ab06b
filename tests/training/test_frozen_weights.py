"""`freeze=[…]`: which parameters keep their values, and that a run with them is one like any other."""

import pytest
import torch
import yaml
from conftest import TINY, train_in

from gancli.errors import UserError
from gancli.training.checkpoint import Checkpoints, read

FROZEN = "freeze=[discriminator.stages.0.*,generator.linear.*]"


def state(folder, which):
    return read(Checkpoints(folder / "checkpoints").files()[which])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frozen") / "run"
    train_in(folder, *TINY, FROZEN, "checkpoint.every=16", "checkpoint.keep=9")
    return folder


def test_only_the_other_parameters_move(run):
    first, last = state(run, 0), state(run, -1)
    for player, kept in (("discriminator", "stages.0."), ("generator", "linear."), ("ema", "linear.")):
        parameters = [name for name in first[player] if name.endswith(("weight", "bias"))]
        same = {name for name in parameters if torch.equal(first[player][name], last[player][name])}
        assert same == {name for name in parameters if name.startswith(kept)}, player


def test_optimizers_hold_no_state_of_frozen_parameters(run):
    states = {player: found["state"] for player, found in state(run, -1)["optimizers"].items()}
    assert len(states["discriminator"]) == 4 and len(states["generator"]) == 7


def test_a_run_that_is_resumed_ends_in_the_same_tensors(run, tmp_path):
    parts = ["checkpoint.every=16", "checkpoint.keep=9", FROZEN]
    train_in(tmp_path / "run", *TINY, *parts, "train.images=32")
    train_in(tmp_path / "run", *TINY, *parts, "resume=auto")
    a, b = state(run, -1), state(tmp_path / "run", -1)
    for part in ("generator", "discriminator", "ema"):
        assert all(torch.equal(a[part][name], b[part][name]) for name in a[part] | b[part])
    with pytest.raises(UserError, match=r"freeze: \[.*\] -> \[\]"):
        train_in(tmp_path / "run", *TINY, *parts[:2], "resume=auto", "train.images=96")
    assert yaml.safe_load((run / "config.yaml").read_text())["freeze"] == FROZEN.partition("[")[2][:-1].split(",")


def test_weights_of_another_run_are_frozen_as_they_came(run, tmp_path, caplog):
    caplog.set_level("INFO")
    train_in(tmp_path / "run", *TINY, f"init={run}", "freeze=[discriminator.stages.*]", "train.images=32")
    there, here = state(run, -1)["discriminator"], state(tmp_path / "run", -1)["discriminator"]
    assert {name for name in here if torch.equal(here[name], there[name])} == {
        name for name in here if name.startswith("stages.")
    }
    frozen = sum(here[name].numel() for name in here if name.startswith("stages."))
    assert f"({frozen:,} of them frozen)" in caplog.text


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("discriminator.stage.0.weight", r"matches no parameter; the nearest are discriminator\.stages\.0\.weight, "),
        ("stages.*", r"matches no parameter; there are generator\.linear\.weight, .*, …"),
        ("discriminator.*", r"leaves nothing of the discriminator to train"),
    ],
)
def test_a_pattern_that_cannot_be_meant_is_refused_before_data_is_read(tmp_path, pattern, text):
    with pytest.raises(UserError, match=text):
        train_in(tmp_path / "run", *TINY, f"freeze=[{pattern}]")
    assert not (tmp_path / "run").exists() or not (tmp_path / "run" / "config.yaml").exists()
