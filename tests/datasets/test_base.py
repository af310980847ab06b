"""The contract of a data set: batches are a pure function of (seed, step), however they are sliced."""

import sys

import pytest
import torch

from gancli.datasets.base import ImageDataset, epoch_indices, to_bytes, to_unit
from gancli.datasets.digits import Digits
from gancli.datasets.points import GaussianRing
from gancli.datasets.prefetch import Prefetcher
from gancli.errors import SettingError
from gancli.randomness import seeded

TRAIN, HOLDOUT = 24, 6


def images(flip=False):
    """Image i has the value i everywhere but in its left column, which is 255; its label is i."""
    data = torch.arange(TRAIN + HOLDOUT, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4).clone()
    data[..., 0] = 255
    rows = torch.arange(TRAIN + HOLDOUT)
    split = {"train_indices": rows[HOLDOUT:], "holdout_indices": rows[:HOLDOUT]}
    return ImageDataset(data, rows, **split, num_classes=TRAIN + HOLDOUT, flip=flip)


SETS = {"images": images, "flipped": lambda: images(flip=True), "points": lambda: GaussianRing(std=0.1)}


@pytest.fixture(params=SETS, scope="module")
def make(request):
    return SETS[request.param]


def same(one, other):
    return torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_a_batch_is_a_function_of_seed_and_step(make):
    data = make()
    first = data.batch(3, size=8, seed=1)
    data.batch(4, size=8, seed=1)
    data.batch(3, size=8, seed=2)
    data.holdout(3)
    torch.rand(5)  # changes the global generator
    assert same(first, data.batch(3, size=8, seed=1))
    assert same(first, make().batch(3, size=8, seed=1))
    assert not same(first, data.batch(4, size=8, seed=1))
    assert not same(first, data.batch(3, size=8, seed=2))


def test_the_slices_of_all_ranks_concatenate_to_the_global_batch(make):
    data = make()
    for step in range(4):  # 16 of 24 images: step 1 crosses into the next epoch
        data_all, labels_all = data.batch(step, size=16, seed=5)
        slices = [data.batch(step, size=16, seed=5, rank=rank, world_size=4) for rank in range(4)]
        assert all(len(part[0]) == len(part[1]) == 4 for part in slices)
        assert same((data_all, labels_all), tuple(map(torch.cat, zip(*slices, strict=True))))


def test_batches_have_the_declared_shape_and_labels(make):
    data = make()
    for values, labels in (data.batch(0, size=8, seed=0), data.holdout(5)):
        assert values.dtype == torch.float32 and tuple(values.shape[1:]) == tuple(data.shape)
        assert labels.dtype == torch.int64 and labels.min() >= 0 and labels.max() < data.num_classes
    assert same(data.holdout(5), make().holdout(5))


@pytest.mark.parametrize("size", [6, 10])  # 10 does not divide 24: epochs end within batches
def test_each_epoch_has_each_image_once_in_an_order_of_its_own(size):
    data = images()
    seen = torch.cat([data.batch(step, size=size, seed=3)[1] for step in range(12)])
    epochs = seen[: len(seen) // TRAIN * TRAIN].view(-1, TRAIN)
    assert len(epochs) >= 3
    for epoch in epochs:
        assert epoch.sort().values.tolist() == list(range(HOLDOUT, HOLDOUT + TRAIN))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == len(epochs)


def test_epoch_indices_over_several_epochs():
    indices = epoch_indices(5, 3, 14, seed=0)
    assert torch.equal(indices[2:7].sort().values, torch.arange(5))
    assert torch.equal(indices[7:12].sort().values, torch.arange(5))
    assert torch.equal(indices, torch.cat([epoch_indices(5, start, 1, seed=0) for start in range(3, 17)]))
    assert not torch.equal(indices, epoch_indices(5, 3, 14, seed=1))


def is_mirrored(batch):
    left, right = batch[..., 0] == 1, batch[..., -1] == 1
    assert (left ^ right).all()
    return right[:, 0, 0]


def test_flip_mirrors_about_half_of_the_training_images_and_no_label():
    data = images(flip=True)
    share = torch.cat([is_mirrored(data.batch(step, size=16, seed=0)[0]) for step in range(100)]).float().mean()
    assert float(share) == pytest.approx(0.5, abs=0.05)
    plain = images().batch(0, size=16, seed=0)
    flipped = data.batch(0, size=16, seed=0)
    assert torch.equal(plain[1], flipped[1])
    assert not is_mirrored(plain[0]).any()


def test_flip_never_mirrors_the_holdout():
    held_out, labels = images(flip=True).holdout(HOLDOUT)
    assert not is_mirrored(held_out).any()
    assert labels.tolist() == list(range(HOLDOUT))


def test_the_holdout_shows_all_classes_where_the_files_lie_in_order():
    data = torch.zeros(400, 1, 8, 8, dtype=torch.uint8)
    labels, rows = torch.arange(400) // 100, torch.arange(400)
    ordered = ImageDataset(data, labels, num_classes=4, train_indices=rows[:1], holdout_indices=rows)
    assert ordered.holdout(100)[1].bincount().min() > 10


def test_the_holdout_has_at_most_as_many_images_as_there_are():
    assert len(images().holdout(4)[0]) == 4
    assert len(images().holdout(1000)[0]) == HOLDOUT


def test_images_are_scaled_to_minus_1_to_1():
    assert to_unit(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]
    batch, labels = images().batch(0, size=TRAIN, seed=0)
    assert batch.min() >= -1 and batch.max() == 1
    assert torch.allclose(batch[:, 0, 0, 1], labels / 127.5 - 1, atol=1e-6)


def test_the_digits_and_their_split():
    data = Digits()
    assert (len(data), len(data.holdout_indices), data.num_classes, data.shape) == (1617, 180, 10, (1, 8, 8))
    assert sorted([*data.train_indices.tolist(), *data.holdout_indices.tolist()]) == list(range(1797))
    batch, labels = data.batch(0, size=1617, seed=0)
    assert batch.min() == -1 and batch.max() == 1
    assert labels.unique().tolist() == list(range(10)) == data.holdout(180)[1].unique().tolist()
    assert len(data.images.unique()) == 17
    assert torch.equal(data.images, Digits().images)
    assert labels.bincount().min() > 140, "every class is in the training part"


def test_reading_the_digits_does_not_import_sklearn(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    Digits()
    assert "sklearn" not in sys.modules


def test_a_limit_is_always_of_the_same_training_images_and_of_nothing_else():
    images, rows = torch.arange(40, dtype=torch.uint8).view(40, 1, 1, 1), torch.arange(40)

    def limited(limit):
        return ImageDataset(images, rows % 3, train_indices=rows[:30], holdout_indices=rows[30:], limit=limit)

    unlimited, few = limited(None), limited(12)
    seen = {int(value) for step in range(6) for value in to_bytes(few.batch(step, size=6, seed=0)[0])}
    assert len(few) == few.size("train") == len(seen) == 12 and seen < set(range(30)) and seen != set(range(12))
    assert torch.equal(few.reference("train", 99)[0], limited(12).reference("train", 99)[0])
    assert {int(value) for value in few.reference("train", 99)[0]} == seen
    for split in ("train", "holdout"):
        for one, other in zip(few.labelled(split, 99), unlimited.labelled(split, 99), strict=True):
            assert torch.equal(one, other), "a classifier learns from all"
    assert len(limited(99)) == 30
    with pytest.raises(SettingError, match="limit=0: at least 1"):
        limited(0)


@pytest.mark.parametrize("steps", [range(6), [0, 1, 5, 2, 3, 3]], ids=["consecutive", "with jumps"])
def test_prefetching_changes_no_batch(monkeypatch, steps):
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8, generator=seeded("prefetch"))
    options = {"num_classes": 5, "flip": True}
    options |= {"train_indices": torch.arange(40), "holdout_indices": torch.arange(40, 50)}
    plain, prefetching = (ImageDataset(images, torch.arange(50) % 5, **options) for _ in range(2))
    monkeypatch.setattr(prefetching, "resident_bytes", 0)
    for step in steps:
        for rank in range(2):
            batches = (data.batch(step, size=16, seed=3, rank=rank, world_size=2) for data in (plain, prefetching))
            assert same(*batches)
    assert prefetching._prefetchers and not plain._prefetchers


def test_only_consecutive_steps_are_prefetched_and_each_is_read_once():
    images, started = torch.arange(200, dtype=torch.uint8).view(100, 2), []

    def indices(step, rank):
        started.append((step, rank))
        return torch.arange(10 * step, 10 * step + 10) % 100

    prefetcher = Prefetcher(images, indices)
    prefetcher(0, 0)
    assert (started, prefetcher.pending) == ([(0, 0)], {}), "a single batch costs one read"
    prefetcher(1, 0)
    assert set(prefetcher.pending) == {(2, 0), (3, 0), (4, 0)}
    for step in range(2, 6):
        assert torch.equal(prefetcher(step, 0), images[10 * step : 10 * step + 10])
    assert started == [(step, 0) for step in range(9)], "each batch once, in order"
    prefetcher(0, 0)
    assert prefetcher.pending == {}


def test_an_error_in_a_prefetching_thread_is_raised():
    wrong_indices = torch.zeros(3, dtype=torch.float32)
    prefetcher = Prefetcher(torch.zeros(4, 2, dtype=torch.uint8), lambda step, rank: wrong_indices)
    with pytest.raises(TypeError):
        prefetcher(0, 0)
