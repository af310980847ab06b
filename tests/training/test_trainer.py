"""The loop: exact resume, golden losses, the guard, both limits."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from comparing import last, same, settings_for, without_time
from conftest import TINY

from gancli.commands.train import assemble
from gancli.device import Runtime
from gancli.distributed.signals import Signals
from gancli.errors import Diverged
from gancli.training import checkpoint
from gancli.training.run_folder import RunFolder

SETTINGS = [
    [],
    ["update=alternating", "update.discriminator_steps=2", "penalty=[wgan_gp]", "loss=wasserstein"],
    ["conditional=true", "dataset.flip=true", "penalty=[r1,r2]", "penalty.r1.interval=3"],
    ["pack=3", "augment=diffaugment"],  # of 16 samples, so the last pack is filled up
]


@pytest.mark.parametrize("overrides", SETTINGS, ids=["default", "alternating", "conditional", "packed"])
def test_a_run_in_pieces_equals_a_run_at_once(train, overrides):
    whole = train(*overrides, folder="whole", images=320)
    for images in (64, 160, 320):
        pieces = train(*overrides, "resume=auto", folder="pieces", images=images)
    assert last(whole)["images"] == last(pieces)["images"] == 320
    assert same(without_time(last(whole)), without_time(last(pieces)))
    rows = [json.loads(line) for line in (pieces / "metrics.jsonl").read_text().splitlines()]
    seen = [row["images"] for row in rows]
    assert seen == sorted(set(seen)), "each row of scalars once"


def test_the_comparison_above_can_fail(train):
    a, b = train(folder="a"), train("seed=1", folder="b")
    assert not same(without_time(last(a)), without_time(last(b)))


def test_logging_changes_nothing(train):
    seldom = train(folder="seldom", images=160)
    often = train("log.every=1", "log.pictures=16", "log.samples=9", "checkpoint.every=16", folder="often", images=160)
    assert same(without_time(last(seldom)), without_time(last(often)))


def test_a_damaged_newest_checkpoint_is_skipped(train, cli):
    whole = train("checkpoint.every=32", folder="whole", images=96)
    folder = train("checkpoint.every=32", folder="run", images=64)
    newest = checkpoint.Checkpoints(folder / "checkpoints").files()[-1]
    newest.write_bytes(newest.read_bytes()[:-500])
    result = cli("train", *TINY, "checkpoint.every=32", "hydra.run.dir=run", "resume=auto", "train.images=96")
    assert result.status == 0
    assert "is skipped" in result.err and "resumed after 32 images" in result.err
    assert same(without_time(last(whole)), without_time(last(folder)))


def test_only_the_newest_checkpoints_stay(train):
    folder = train("checkpoint.every=16", "checkpoint.keep=2", images=96)
    assert [p.stem for p in checkpoint.Checkpoints(folder / "checkpoints").files()] == [
        "images-000000000080",
        "images-000000000096",
    ]


def losses_of(trainer, steps=3):
    rows = []
    for _ in range(steps):
        record = trainer.train_step()
        rows.append((record["loss/discriminator"], record["loss/generator"]))
    return rows


@pytest.mark.parametrize("update", ["simultaneous", "alternating"])
@pytest.mark.parametrize("loss", ["nonsaturating", "relativistic"])
def test_golden_losses(tmp_path, update, loss):
    trainer = assemble(settings_for(f"update={update}", f"loss={loss}"), folder=RunFolder(tmp_path))
    golden = json.loads((Path(__file__).parent / "golden_losses.json").read_text())[f"{update} {loss}"]
    assert losses_of(trainer) == [pytest.approx(row, rel=2e-3) for row in golden]


def test_world_size_does_not_change_the_samples(tmp_path):
    trainer = assemble(settings_for(), folder=RunFolder(tmp_path))
    whole, _ = trainer.dataset.batch(5, size=16, seed=0)
    parts = [trainer.dataset.batch(5, size=16, seed=0, rank=rank, world_size=4)[0] for rank in range(4)]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("player", ["generator", "discriminator"])
def test_a_gradient_that_is_not_finite_stops_before_the_update(tmp_path, player):
    trainer = assemble(settings_for(), folder=RunFolder(tmp_path))
    network = trainer.game.network(player)
    next(network.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    before = {key: value.clone() for key, value in network.named_parameters()}
    with pytest.raises(
        Diverged, match=rf"the {player}'s gradient became (nan|inf) at step 0 .*\n.*\n  try, in a new run: lower"
    ):
        trainer.train_step()
    assert all(torch.equal(before[key], value) for key, value in network.named_parameters())


def test_a_diverging_run_ends_with_status_1_and_keeps_its_checkpoint(cli):
    result = cli(
        *("train", *TINY, "hydra.run.dir=run", "train.images=6400", "checkpoint.every=16"),
        *("optimizer@optimizer.generator=sgd", "optimizer@optimizer.discriminator=sgd"),
        *("loss=least_squares", "penalty=none", "optimizer.discriminator.lr=1e4"),
    )
    assert result.status == 1
    assert "the update was not made" in result.err and "Traceback" not in result.err
    assert "last good checkpoint: " in result.err
    files = checkpoint.Checkpoints(Path("run/checkpoints")).files()
    for value in checkpoint.read(files[0])["generator"].values():
        assert torch.isfinite(value).all()


def test_minutes_end_a_run(train):
    folder = train("train.images=null", "train.minutes=0.02")
    state = last(folder)
    assert 1.2 <= state["seconds"] < 10 and state["images"] > 0


def test_pictures_and_checkpoints_come_by_time_too(train, monkeypatch):
    seconds = iter([5.0, 9.0, 11.0, 31.0, 62.0, 63.0, 125.0, 430.0, 450.0])
    poll = Signals.poll
    monkeypatch.setattr(Signals, "poll", lambda self, group, _: poll(self, group, next(seconds)))
    folder = train("log.pictures=1000", "checkpoint.minutes=4", "checkpoint.keep=9", images=9 * 16)
    assert [int(file.stem[7:]) // 16 for file in sorted(folder.glob("samples/*.png"))] == [0, 3, 4, 5, 7, 8, 9]
    assert [int(file.stem[7:]) // 16 for file in sorted(folder.glob("checkpoints/images-*.pt"))] == [5, 7, 8, 9]


def test_threads_stay_the_same_where_a_run_goes_on(train, monkeypatch):
    used = torch.get_num_threads()
    try:
        train("device.threads=auto")
        monkeypatch.setattr(Runtime, "choose_threads", lambda self, operations: torch.set_num_threads(2))
        train("device.threads=auto", "resume=auto", images=96)
        assert torch.get_num_threads() == 1, "as before, whatever the step would need"
    finally:
        torch.set_num_threads(used)


def test_schedules_follow_the_run(tmp_path):
    trainer = assemble(
        settings_for("+schedule@optimizer.generator.lr=linear", "optimizer.generator.lr.start=1.0"),
        folder=RunFolder(tmp_path),
    )
    rates = []
    for _ in range(4):
        trainer.train_step()
        rates.append(trainer.optimizers["generator"].lr)
    assert rates == pytest.approx([1.0, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends(cli, monkeypatch, number):
    from gancli.training.trainer import Trainer

    original = Trainer.train_step

    def step(self):
        if self.step == 2:
            os.kill(os.getpid(), number)
        return original(self)

    monkeypatch.setattr(Trainer, "train_step", step)
    result = cli("train", *TINY, "hydra.run.dir=run", "train.images=640")
    assert result.status == 128 + number
    assert last(Path("run"))["images"] == 48
    assert "stopped by SIG" in result.err and "gancli train resume=" in result.err


def test_resume_by_folder_takes_the_settings_of_the_run(train, cli):
    whole = train("loss=hinge", "seed=3", folder="whole", images=128)
    folder = train("loss=hinge", "seed=3", folder="run", images=64)
    result = cli("train", f"resume={folder}", "train.images=128")
    assert result.status == 0, result.err
    assert same(without_time(last(whole)), without_time(last(folder)))
    assert RunFolder(folder).settings(trust=[])["seed"] == 3


def test_a_packed_discriminator_takes_several_samples(train, cli):
    weights = last(train("pack=3"))["discriminator"]
    assert next(value for name, value in weights.items() if name.endswith("stages.0.weight")).shape[1] == 3
    assert cli("sample", "run=run", "out=a.png").status == 0
