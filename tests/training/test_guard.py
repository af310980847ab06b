"""Nothing comes of a step that is not finite, whether the host reads its numbers at once or one update later."""

import copy
import json

import pytest
import torch
from comparing import last, same, settings_for, without_time
from fake_cuda_graphs import Graphs, Waits

from gancli.commands.train import assemble
from gancli.errors import Diverged
from gancli.game import PLAYERS
from gancli.training import cuda_graphs, trainer
from gancli.training.guard import Guard
from gancli.training.run_folder import RunFolder


class Stopped(Exception):
    pass


def guard_of(*, delayed):
    def stop(*what):
        raise Stopped(*what)

    return Guard(stop, delayed=delayed)


def numbers(a, b):
    return {"a": torch.tensor(a), "b": torch.tensor(b)}


def test_numbers_are_read_at_once():
    guard = guard_of(delayed=False)
    assert guard.check(numbers(1.0, 0.5), step=3) == ({"a": 1.0, "b": 0.5}, None)
    with pytest.raises(Stopped, match=r"4, 'b', -inf"):
        guard.check(numbers(1.0, float("-inf")), step=4)
    assert guard.read() == {}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_delayed_guard_skips_at_once_and_stops_when_the_numbers_are_read(bad):
    guard = guard_of(delayed=True)
    found, skip = guard.check(numbers(1e38, 0.5), step=3)
    assert found["b"].item() == 0.5 and skip.tolist() == 0.0
    for read in (lambda: guard.check(numbers(1.0, 1.0), step=5), guard.read):
        _, skip = guard.check(numbers(1.0, bad), step=4)
        assert skip.tolist() == 1.0
        with pytest.raises(Stopped, match="4, 'b'"):
            read()
        assert guard.read() == {}, "an update is told of once"


@pytest.fixture
def delayed(monkeypatch):
    monkeypatch.setattr(trainer, "Guard", lambda stop, delayed: Guard(stop, delayed=True))


def bad_batch(monkeypatch, *, at):
    """The first time that step `at` is made, its real samples are not numbers."""
    original, left = trainer.Trainer._batch, [at]

    def batch(self, k):
        samples, labels = original(self, k)
        return (samples * float("nan") if self.step in left and not left.clear() else samples), labels

    monkeypatch.setattr(trainer.Trainer, "_batch", batch)


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def state_of(trainer):
    """All that a step changes, but for the buffers of the players, which a forward pass moves."""
    state = trainer.state_dict()
    weights = [list(trainer.game.network(player).parameters()) for player in PLAYERS]
    return copy.deepcopy([weights, state["optimizers"], state["ema"], trainer.images])


WORDS = {
    "default": [],
    "alternating": ["update=alternating", "update.discriminator_steps=2"],
    "other optimizers": ["optimizer@optimizer.generator=sgd", "optimizer@optimizer.discriminator=optimistic_adam"],
    "micro-batches": ["train.accumulate=2"],
}


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("words", WORDS.values(), ids=list(WORDS))
def test_a_bad_step_leaves_every_bit(tmp_path, monkeypatch, delayed, words, graphs):
    run = assemble(settings_for("train.images=1600", *words), folder=RunFolder(tmp_path))
    if graphs:
        cuda_graphs.apply(run, Graphs())
    assert_a_bad_step_leaves_every_bit(run, monkeypatch)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible")
@pytest.mark.parametrize("graphs", ["false", "true"])
@pytest.mark.parametrize("words", WORDS.values(), ids=list(WORDS))
def test_a_bad_step_leaves_every_bit_on_a_gpu(tmp_path, monkeypatch, words, graphs):
    words = ["train.images=1600", "device=cuda", f"device.cuda_graph={graphs}", *words]
    run = assemble(settings_for(*words), folder=RunFolder(tmp_path))
    assert run.guard.delayed
    assert_a_bad_step_leaves_every_bit(run, monkeypatch)


def assert_a_bad_step_leaves_every_bit(run, monkeypatch):
    bad_batch(monkeypatch, at=6)
    for _ in range(6):
        run.train_step()
    before, images = state_of(run), run.images
    message = rf"the discriminator's loss became nan at step 6 \(after {images} images"
    with pytest.raises(Diverged, match=message) as told:
        for _ in range(2):
            run.train_step()
    assert same(before, state_of(run)) and told.value.good_images == images


UNSEEN = ["log.every=1600", "log.pictures=1600", "log.picture_minutes=null"]


@pytest.mark.parametrize(
    ("words", "updates", "graphs"),
    [
        (["penalty=[r1,r2]", "augment=diffaugment", "conditional=true", "dataset.flip=true"], 1, False),
        (["update=alternating", "penalty=[wgan_gp]", "augment=ada", "augment.interval=1"], 2, True),
    ],
)
def test_the_host_reads_nothing_of_a_step_but_the_guards_numbers(
    tmp_path, monkeypatch, delayed, words, updates, graphs
):
    run, calls = assemble(settings_for("train.images=1600", *UNSEEN, *words), folder=RunFolder(tmp_path)), []
    if graphs:
        cuda_graphs.apply(run, Graphs())
    run.logger.open(run.position)
    for _ in range(4):
        run.logger.log_step(run.position, run.train_step())
    for name in ("cpu", "item", "numpy", "tolist"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda *args, f=original, **words: calls.append(f.__name__) or f(*args))
    with Waits() as waits:
        for _ in range(3):
            run.logger.log_step(run.position, run.train_step())
    assert (waits.names, calls) == ([], ["tolist"] * updates * 3)


@pytest.mark.parametrize("words", [*WORDS.values(), ["conditional=true", "penalty=[r1,r2]", "penalty.r1.interval=2"]])
def test_a_delayed_guard_changes_no_run(train, monkeypatch, words):
    plain = train(*words, folder="plain")
    monkeypatch.setattr(trainer, "Guard", lambda stop, delayed: Guard(stop, delayed=True))
    folder = train(*words)
    states = [without_time(last(each)) for each in (plain, folder)]
    for state in states:
        state["logging"] = {}
    assert same(*states)
    ours, theirs = map(rows_of, (plain, folder))
    assert [row["loss/generator"] for row in ours] == [row["loss/generator"] for row in theirs]


@pytest.mark.parametrize("saved_every", [16, 48])
@pytest.mark.parametrize("logged_every", [16, 1000])
def test_nothing_bad_is_saved_or_logged(train, monkeypatch, delayed, saved_every, logged_every):
    rolled_back = ["health.action=rollback", "health.lower_lr=1", "checkpoint.keep=99", "log.pictures=1000"]
    rolled_back += [f"checkpoint.every={saved_every}", f"log.every={logged_every}"]
    plain = train(*rolled_back, folder="plain", images=128)
    bad_batch(monkeypatch, at=4)
    folder = train(*rolled_back, images=128)
    files = [sorted(file.name for file in each.glob("checkpoints/*")) for each in (plain, folder)]
    assert files[0] == files[1]
    for name in files[0]:
        states = [torch.load(each / "checkpoints" / name, weights_only=True) for each in (plain, folder)]
        for key in ("generator", "discriminator", "ema", "optimizers", "step"):
            assert same(*(state[key] for state in states)), (name, key)
    assert last(folder)["rollbacks"] == 1
    seen = [row["images"] for row in rows_of(folder)]
    assert seen == sorted(set(seen))
    assert "NaN" not in (folder / "metrics.jsonl").read_text()
