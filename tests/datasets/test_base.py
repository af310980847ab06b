"""The contract of a data set: batches are a pure function of (seed, step), however they are sliced."""

import sys

import pytest
import torch

from gancli.datasets.base import ImageDataset, epoch_indices, to_bytes, to_unit
from gancli.datasets.digits import Digits
from gancli.datasets.points import GaussianRing
from gancli.datasets.prefetch import Prefetcher
from gancli.device import seeded

ROWS, HELD = 24, 6


def images(flip=False):
    """Row i is i everywhere but in its left column, which is 255; its label is i."""
    data = torch.arange(ROWS + HELD, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4).clone()
    data[..., 0] = 255
    rows = torch.arange(ROWS + HELD)
    return ImageDataset(data, rows, train=rows[HELD:], held=rows[:HELD], num_classes=ROWS + HELD, flip=flip)


SETS = {"images": images, "flipped": lambda: images(flip=True), "points": lambda: GaussianRing(std=0.1)}


@pytest.fixture(params=SETS, scope="module")
def make(request):
    return SETS[request.param]


def same(one, other):
    return torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_batch_is_a_function_of_seed_and_step(make):
    data = make()
    first = data.batch(3, size=8, seed=1)
    data.batch(4, size=8, seed=1)
    data.batch(3, size=8, seed=2)
    data.holdout(3)
    torch.rand(5)  # the global generator plays no part
    assert same(first, data.batch(3, size=8, seed=1))
    assert same(first, make().batch(3, size=8, seed=1))
    assert not same(first, data.batch(4, size=8, seed=1))
    assert not same(first, data.batch(3, size=8, seed=2))


def test_slices_of_ranks_concatenate_to_the_global_batch(make):
    data = make()
    for step in range(4):  # 16 of 24 rows: steps 1 and 4 cross into another epoch
        data_all, labels_all = data.batch(step, size=16, seed=5)
        slices = [data.batch(step, size=16, seed=5, rank=rank, world_size=4) for rank in range(4)]
        assert all(len(part[0]) == len(part[1]) == 4 for part in slices)
        assert same((data_all, labels_all), tuple(map(torch.cat, zip(*slices, strict=True))))


def test_shapes_and_types(make):
    data = make()
    for values, labels in (data.batch(0, size=8, seed=0), data.holdout(5)):
        assert values.dtype == torch.float32 and tuple(values.shape[1:]) == tuple(data.shape)
        assert labels.dtype == torch.int64 and labels.min() >= 0 and labels.max() < data.num_classes
    assert same(data.holdout(5), make().holdout(5))


@pytest.mark.parametrize("size", [6, 10])  # 10 does not divide 24: epochs end inside of batches
def test_each_row_once_an_epoch(size):
    data = images()
    seen = torch.cat([data.batch(step, size=size, seed=3)[1] for step in range(12)])
    epochs = seen[: len(seen) // ROWS * ROWS].view(-1, ROWS)
    assert len(epochs) >= 3
    for epoch in epochs:
        assert epoch.sort().values.tolist() == list(range(HELD, HELD + ROWS))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == len(epochs)


def test_epoch_indices_longer_than_epochs():
    row = epoch_indices(5, 3, 14, seed=0)
    assert torch.equal(row[2:7].sort().values, torch.arange(5))
    assert torch.equal(row[7:12].sort().values, torch.arange(5))
    assert torch.equal(row, torch.cat([epoch_indices(5, start, 1, seed=0) for start in range(3, 17)]))
    assert not torch.equal(row, epoch_indices(5, 3, 14, seed=1))


def mirrored(batch):
    left, right = batch[..., 0] == 1, batch[..., -1] == 1
    assert (left ^ right).all()
    return right[:, 0, 0]


def test_flip_mirrors_about_half():
    data = images(flip=True)
    share = torch.cat([mirrored(data.batch(step, size=16, seed=0)[0]) for step in range(100)]).float().mean()
    assert float(share) == pytest.approx(0.5, abs=0.05)
    plain = images().batch(0, size=16, seed=0)
    turned = data.batch(0, size=16, seed=0)
    assert torch.equal(plain[1], turned[1])
    assert not mirrored(plain[0]).any()


def test_flip_never_mirrors_the_holdout():
    held, labels = images(flip=True).holdout(HELD)
    assert not mirrored(held).any()
    assert labels.tolist() == list(range(HELD))


def test_holdout_has_what_there_is():
    assert len(images().holdout(4)[0]) == 4
    assert len(images().holdout(1000)[0]) == HELD


def test_unit_range():
    assert to_unit(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]
    batch, _ = images().batch(0, size=ROWS, seed=0)
    assert batch.min() >= -1 and batch.max() == 1
    rows = images().batch(0, size=ROWS, seed=0)
    assert torch.allclose(rows[0][:, 0, 0, 1], rows[1] / 127.5 - 1, atol=1e-6)


def test_digits():
    data = Digits()
    assert (len(data), len(data.held), data.num_classes, data.shape) == (1617, 180, 10, (1, 8, 8))
    assert sorted([*data.train.tolist(), *data.held.tolist()]) == list(range(1797))
    batch, labels = data.batch(0, size=1617, seed=0)
    assert batch.min() == -1 and batch.max() == 1
    assert labels.unique().tolist() == list(range(10)) == data.holdout(180)[1].unique().tolist()
    assert len(data.images.unique()) == 17
    assert torch.equal(data.images, Digits().images)
    assert labels.bincount().min() > 140  # mixed well


def test_digits_do_not_import_sklearn(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    Digits()
    assert "sklearn" not in sys.modules


def test_a_limit_takes_always_the_same_images_away_from_training_alone():
    images, labels = torch.arange(40, dtype=torch.uint8).view(40, 1, 1, 1), torch.arange(40) % 3
    rows = torch.arange(40)
    whole, few = (ImageDataset(images, labels, train=rows[:30], held=rows[30:], limit=limit) for limit in (None, 12))
    seen = {int(value) for step in range(6) for value in to_bytes(few.batch(step, size=6, seed=0)[0])}
    assert len(few) == few.size("train") == len(seen) == 12 and seen < set(range(30)) and seen != set(range(12))
    again = ImageDataset(images, labels, train=rows[:30], held=rows[30:], limit=12)
    assert torch.equal(few.reference("train", 99)[0], again.reference("train", 99)[0])
    assert {int(value) for value in few.reference("train", 99)[0]} == seen
    for part in ("train", "holdout"):
        for mine, all_ in zip(few.labelled(part, 99), whole.labelled(part, 99), strict=True):
            assert torch.equal(mine, all_), "a classifier learns from all"
    assert len(ImageDataset(images, train=rows[:30], held=rows[30:], limit=99)) == 30


@pytest.mark.parametrize("order", [range(6), [0, 1, 5, 2, 3, 3]], ids=["in turn", "to and fro"])
def test_reading_ahead_changes_nothing(monkeypatch, order):
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8, generator=seeded("ahead"))
    parts = {"train": torch.arange(40), "held": torch.arange(40, 50)}
    at_once, ahead = (ImageDataset(images, torch.arange(50) % 5, num_classes=5, flip=True, **parts) for _ in range(2))
    monkeypatch.setattr(ahead, "resident_bytes", 0)
    for step in order:
        for rank in range(2):
            one, other = (some.batch(step, size=16, seed=3, rank=rank, world_size=2) for some in (at_once, ahead))
            assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    assert ahead._prefetchers and not at_once._prefetchers


def test_the_next_steps_are_read_once_each_and_only_for_who_goes_on():
    images, began = torch.arange(200, dtype=torch.uint8).view(100, 2), []

    def rows(step, part):
        began.append((step, part))
        return torch.arange(10 * step, 10 * step + 10) % 100

    ahead = Prefetcher(images, rows)
    ahead(0, 0)
    assert (began, ahead.waiting) == ([(0, 0)], {}), "a single look costs one batch"
    ahead(1, 0)
    assert set(ahead.waiting) == {(2, 0), (3, 0), (4, 0)}
    for step in range(2, 6):
        assert torch.equal(ahead(step, 0), images[10 * step : 10 * step + 10])
    assert began == [(step, 0) for step in range(9)], "each batch once, in order"
    ahead(0, 0)
    assert ahead.waiting == {}


def test_reading_ahead_passes_errors_on():
    ahead = Prefetcher(torch.zeros(4, 2, dtype=torch.uint8), lambda step, part: torch.zeros(3, dtype=torch.float32))
    with pytest.raises(TypeError):
        ahead(0, 0)
