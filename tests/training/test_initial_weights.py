"""`init=RUN`: a new run starts from the weights of another one, and from nothing else of it."""

import json

import pytest
import torch
import yaml
from conftest import TINY, train_in

from gancli.errors import UserError
from gancli.training.checkpoint import Checkpoints, read

WEIGHTS = ("generator", "discriminator", "ema")


def newest(folder):
    return read(Checkpoints(folder / "checkpoints").files()[-1])


def at_rest(init, folder, *words):
    """Trains one step with learning rates of 0, after which the weights are those of the start."""
    still = ["optimizer.generator.lr=0", "optimizer.discriminator.lr=0", "network.generator.norm=none"]
    train_in(folder, *TINY, *still, f"init={init}", "train.images=16", *words)
    return newest(folder)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "run"
    train_in(folder, *TINY, "network.generator.norm=none")
    return folder


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in a | b)


def test_the_weights_are_those_of_the_newest_checkpoint_and_the_rest_is_new(source, tmp_path):
    there = newest(source)
    here = at_rest(source, tmp_path / "run", "loss=hinge", "seed=5", "ema.half_life=1e9", "ema.ramp_up=null")
    for name in WEIGHTS:
        assert all(torch.allclose(there[name][key], here[name][key], atol=1e-6) for key in there[name] | here[name])
    assert here["step"] == 1 and all(s["step"] == 1 for s in here["optimizers"]["generator"]["state"].values())
    start = json.loads((tmp_path / "run" / "run.json").read_text())["starts"][0]
    assert start["weights_from"] == str(source / "checkpoints" / "images-000000000064.pt")
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["init"] == str(source)


def test_a_run_that_goes_on_keeps_its_own_weights(source, tmp_path):
    first = at_rest(source, tmp_path / "run")
    again = at_rest("nowhere", tmp_path / "run", "resume=auto", "train.images=32")
    assert again["step"] == 2 and same(first["generator"], again["generator"])
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["init"] == str(source)
    starts = json.loads((tmp_path / "run" / "run.json").read_text())["starts"]
    assert ["weights_from" in start for start in starts] == [True, False]


def test_a_run_that_was_killed_before_its_first_checkpoint_takes_them_again(source, tmp_path):
    first = at_rest(source, tmp_path / "run")
    for file in (tmp_path / "run" / "checkpoints").iterdir():
        file.unlink()
    again = at_rest(source, tmp_path / "run", "resume=auto")
    assert again["step"] == 1 and same(first["generator"], again["generator"])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["network.generator.channels=4"], r"generator\.linear\.weight is \(.*\) here and \(.*\) there"),
        (["network.discriminator.hidden=8"], r"discriminator\..* is .* here and absent there"),
    ],
)
def test_the_first_tensor_that_does_not_fit_is_named(source, tmp_path, words, text):
    with pytest.raises(UserError, match=rf"init={source}: {text}; give this run"):
        at_rest(source, tmp_path / "run", *words)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_what_is_no_run_with_a_checkpoint_is_refused_before_data_is_read(source, tmp_path):
    (tmp_path / "young").mkdir()
    (tmp_path / "young" / "config.yaml").touch()
    for init, text in (("nowhere", "not a run folder"), (tmp_path / "young", "has no checkpoint yet")):
        with pytest.raises(UserError, match=f"init={init}: .*{text}"):
            train_in(tmp_path / "run", *TINY, f"init={init}", "dataset=folder", "dataset.path=nowhere")


def test_a_checkpoint_that_cannot_be_read_is_refused(source, tmp_path):
    (tmp_path / "bad" / "checkpoints").mkdir(parents=True)
    (tmp_path / "bad" / "config.yaml").touch()
    (tmp_path / "bad" / "checkpoints" / "images-000000000064.pt").write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match="no checkpoint there can be read"):
        at_rest(tmp_path / "bad", tmp_path / "run")


def test_the_refusal_of_other_settings_names_the_way_out(source):
    with pytest.raises(UserError, match=f"init={source} it begins with the weights of this one"):
        train_in(source, *TINY, "network.generator.norm=none", "resume=auto", "loss=hinge")
