"""What a recipe leaves to the budget, and that a value on the command line goes before it."""

import shutil

import pytest
from conftest import TINY

from gancli import budget, config

INFINITE = float("inf")
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
        (["device=cuda", "train.minutes=120", "train.images=3600"], (64, 32, 32)),
        (["device=cpu", "train.minutes=null", "train.images=3600"], (32, 16, 16)),
        (["device=cuda", "train.minutes=120", "dataset.resolution=48", "train.batch_size=7"], (48, 32, 7)),
    ],
)
def test_settings_follow_from_the_minutes_and_the_device(words, values):
    assert chosen(*words) == values


@pytest.mark.parametrize(("gpu", "values"), [(False, (64, 16, 16)), (True, (64, 32, 32))])
def test_device_auto_is_a_gpu_where_there_is_one(monkeypatch, gpu, values):
    monkeypatch.setattr(budget, "_has_gpu", lambda: gpu)
    assert chosen("train.minutes=10") == values


@pytest.mark.parametrize("packed", [False, True])
def test_pictures_that_are_seen_often_are_augmented(tmp_path, monkeypatch, packed):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(50):
        (folder / f"{number}.{'png' if number % 2 else 'JPG'}").touch()
    for hidden in (folder, folder / "__MACOSX"):
        hidden.mkdir(exist_ok=True)
        (hidden / "._0.png").touch()
    (folder / "notes.txt").touch()
    path = shutil.make_archive(str(folder), "zip", folder) if packed else str(folder)

    def kinds(*words):
        budget._pictures.cache_clear()
        where = [f"dataset.path={path}", "device=cpu", "train.minutes=null"]
        return config.compose("train", ["experiment=photos", *where, *words])["augment"]["kinds"]

    few, all_of_them = ["translation"], ["color", "translation", "cutout"]
    assert kinds("train.images=499") == few and kinds("train.images=500") == all_of_them
    assert kinds("train.images=499", "dataset.limit=49") == all_of_them
    assert kinds("train.images=600", "train.minutes=0.1") == few
    assert kinds("train.images=null") == all_of_them
    assert kinds("train.images=500", "dataset.path=nowhere") == few, "it is said later that it is not there"
    assert kinds("train.images=499", "dataset.limit=many") == few, "likewise"
    assert kinds("train.images=499", "augment.kinds=[cutout]") == ["cutout"]


def test_a_run_that_goes_on_keeps_what_was_chosen(cli, monkeypatch):
    words = ["train", *TINY, "augment=by_budget", "hydra.run.dir=run"]
    assert cli(*words).status == 0
    monkeypatch.setattr(budget, "_MANY", 1)  # pictures, which would then be seen often
    again = cli(*words, "resume=auto", "train.images=96")
    assert again.status == 0, again.err
    assert "augment.kinds stays ['translation'], as this run began" in again.err
    refused = cli(*words, "resume=auto", "train.images=96", "augment.kinds=[cutout]")
    assert refused.status == 2 and "augment.kinds: ['translation'] -> ['cutout']" in refused.err


def test_steps_are_large_where_there_are_few():
    for words, rates in ((["train.minutes=20"], (4e-3, 2e-3)), (["train.images=100_000"], (1e-3, 5e-4))):
        players = config.compose("train", [*PHOTOS, "device=cpu", "train.minutes=null", *words])["optimizer"]
        assert tuple(players[player]["lr"]["start"] for player in ("generator", "discriminator")) == rates


def test_runs_are_evaluated_about_four_times():
    def every(*words):
        return config.compose("train", [*PHOTOS, "device=cpu", *words])["evaluation"]["every"]

    assert every("train.minutes=120") == 30_000 and every("train.minutes=10") == 15_000, "it takes time from training"
    assert every("train.minutes=null") == every("train.minutes=600") == 100_000
    assert every("train.minutes=20", "evaluation.every=null") is None


@pytest.mark.parametrize(
    ("minutes", "images", "said"),
    [
        (3, 3_000, "3 minutes of a CPU and 8 pictures"),
        (INFINITE, 3_600, "3,600 images of a CPU and 8 pictures"),
        (INFINITE, INFINITE, "any time of a CPU and 8 pictures"),
    ],
)
def test_the_reason_names_what_ends_the_run(minutes, images, said):
    assert str(budget.Budget(minutes=minutes, images=images, gpu=False, pictures=8)) == said
    guessed = str(budget.Budget(minutes=minutes, images=images, gpu=False, pictures=None))
    assert guessed == said.replace("8 pictures", "10,000 pictures (a guess)")


def test_what_was_chosen_is_said_with_the_reason(cli):
    (said,) = (
        line for line in cli("train", *PHOTOS, "device=cpu", "train.minutes=3").err.splitlines() if "by 3" in line
    )
    assert said.endswith(
        "by 3 minutes of a CPU and 10,000 pictures (a guess): dataset.resolution=32, "
        "network.generator.channels=16, augment.kinds=[translation], optimizer.generator.lr.start=0.004, "
        "optimizer.discriminator.lr.start=0.002, train.batch_size=16, evaluation.every=15000"
    )
    own = [
        "optimizer.generator.lr=1e-3",
        "optimizer.discriminator.lr=1e-3",
        "dataset.resolution=8",
        "network.generator.channels=4",
        "train.batch_size=4",
        "evaluation.every=1000",
        "augment=none",
        "device=cpu",
    ]
    assert "minutes of a CPU" not in cli("train", *PHOTOS, *own).err
    assert (
        "network=dcgan network/generator=fastgan network/discriminator=projected loss=hinge"
        in cli("train", *PHOTOS, *own).err
    )
