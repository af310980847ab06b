"""What a recipe leaves to the budget, and that a value on the command line goes before it."""

import pytest

from gancli import budget, config

PHOTOS = ["experiment=photos", "dataset.path=nowhere"]


def chosen(*words):
    settings = config.compose("train", [*PHOTOS, *words])
    sides = settings["dataset"]["resolution"], settings["network"]["generator"]["channels"]
    return (*sides, settings["train"]["batch_size"])


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["device=cpu", "train.minutes=4.9"], (32, 16, 16)),
        (["device=cpu", "train.minutes=10"], (64, 16, 16)),
        (["device=cpu", "train.minutes=null"], (64, 16, 16)),
        (["device=cuda", "train.minutes=10"], (64, 32, 32)),
        (["device=cuda", "train.minutes=120"], (128, 32, 32)),
        (["device=cuda", "train.minutes=120", "dataset.resolution=48", "train.batch_size=7"], (48, 32, 7)),
    ],
)
def test_settings_follow_from_the_minutes_and_the_device(words, values):
    assert chosen(*words) == values


@pytest.mark.parametrize(("gpu", "values"), [(False, (64, 16, 16)), (True, (64, 32, 32))])
def test_device_auto_is_a_gpu_where_there_is_one(monkeypatch, gpu, values):
    monkeypatch.setattr(budget, "_has_gpu", lambda: gpu)
    assert chosen("train.minutes=10") == values


def test_what_was_chosen_is_said_with_the_reason(cli):
    (said,) = (
        line for line in cli("train", *PHOTOS, "device=cpu", "train.minutes=3").err.splitlines() if "by 3" in line
    )
    assert said.endswith(
        "by 3 minutes of a CPU: dataset.resolution=32, network.generator.channels=16, train.batch_size=16"
    )
    own = ["dataset.resolution=8", "network.generator.channels=4", "train.batch_size=4", "device=cpu"]
    assert "minutes of a CPU" not in cli("train", *PHOTOS, *own).err
    assert (
        "network=dcgan network/generator=fastgan network/discriminator=projected loss=hinge"
        in cli("train", *PHOTOS, *own).err
    )
