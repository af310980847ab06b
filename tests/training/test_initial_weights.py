"""`init=RUN`: a new run starts from the weights of another one that fit, and from nothing else of it."""

import json

import pytest
import torch
import yaml
from conftest import TINY, train_in

from gancli.errors import UserError
from gancli.networks.dcgan import DCGANDiscriminator, DCGANGenerator
from gancli.networks.r3gan import R3GANDiscriminator
from gancli.training.checkpoint import Checkpoints, read
from gancli.training.initial_weights import Fit

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


def test_what_does_not_fit_keeps_its_random_start_and_is_named(source, tmp_path, caplog):
    caplog.set_level("INFO")
    there = newest(source)
    here = at_rest(source, tmp_path / "run", "conditional=true", "ema.half_life=1e9", "ema.ramp_up=null")
    for name in WEIGHTS:
        fitting = [key for key in here[name] if key in there[name] and here[name][key].shape == there[name][key].shape]
        left = {"linear.weight", "noise.embedding.weight"} if name != "discriminator" else {"head.embedding.weight"}
        assert here[name].keys() - set(fitting) == left
        assert all(torch.allclose(here[name][key], there[name][key], atol=1e-6) for key in fitting)
    assert "  generator: 5 of 7 tensors, " in caplog.text
    assert (
        "noise.embedding.weight ((10, 8) here, absent there), linear.weight ((256, 16) here, (256, 8) there)"
        in caplog.text
    )
    assert "  discriminator: 6 of 7 tensors, " in caplog.text


R3GAN_FINEST = {
    "stages.0.weight",
    *(f"stages.1.{layer}.weight" for layer in ("expand", "grouped", "reduce")),
    "stages.3.weight",
}


@pytest.mark.parametrize(
    ("kind", "changed", "left", "is_from_the_end"),
    [
        # At twice the size and half the channels the coarse stages are the same, a discriminator's last ones.
        (DCGANGenerator, {"image_shape": (3, 32, 32), "channels": 4}, {"stages.5.weight", "stages.8.weight"}, False),
        (DCGANDiscriminator, {"image_shape": (3, 32, 32), "channels": 4}, {"stages.0.weight", "stages.2.weight"}, True),
        (R3GANDiscriminator, {"image_shape": (3, 32, 32), "channels": 4}, R3GAN_FINEST, True),
        # With the same channels it is the fine ones.
        (DCGANDiscriminator, {"image_shape": (3, 32, 32)}, {"stages.5.weight", "head.linear.weight"}, False),
        # Grey images and classes change the outermost layers only.
        (DCGANGenerator, {"image_shape": (1, 16, 16)}, {"stages.5.weight"}, False),
        (DCGANDiscriminator, {"image_shape": (1, 16, 16)}, {"stages.0.weight"}, False),
        (DCGANDiscriminator, {"num_classes": 3}, {"head.embedding.weight"}, False),
        (DCGANDiscriminator, {}, set(), False),
    ],
)
def test_stages_are_taken_where_they_fit(kind, changed, left, is_from_the_end):
    known = {"image_shape": (3, 16, 16), "channels": 8, **({"latent_dim": 4} if kind is DCGANGenerator else {})}
    here, there = kind(**{**known, **changed}), kind(**known)
    fit = Fit(here, there.state_dict())
    here.load_state_dict(fit.taken, strict=False)
    assert {name for name in fit.left if name.endswith("weight") and fit.here[name].ndim > 1} == left
    assert fit.is_from_the_end is is_from_the_end
    pool = {tuple(tensor.flatten().tolist()) for tensor in there.state_dict().values()}
    assert all(tuple(here.state_dict()[name].flatten().tolist()) in pool for name in fit.taken)


def test_a_run_of_which_nothing_fits_is_refused(source, tmp_path):
    text = (
        r"no parameter of the discriminator there fits the one here, not inner\.stages\.0\.weight \(.* absent there\)"
    )
    with pytest.raises(UserError, match=f"init={source}: {text}; give this run"):
        at_rest(source, tmp_path / "run", "pack=2")
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
