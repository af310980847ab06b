"""Copies are told from new samples, and the grid of nearest images shows what they are copies of."""

import pytest
import torch

from gancli.datasets.base import ImageDataset
from gancli.errors import SettingError
from gancli.metrics.base import Samples
from gancli.metrics.features import Random
from gancli.metrics.memorisation import Memorisation, nearest_images
from gancli.randomness import seeded


def blobs(count, *key):
    """Smooth random images (count, 1, 8, 8)."""
    coarse = torch.rand(count, 1, 3, 3, generator=seeded("blobs", *key))
    return torch.nn.functional.interpolate(coarse, 8, mode="bilinear").mul(255).round().to(torch.uint8)


def split_at(images, count):
    """The first `count` images are to train on, the others held out."""
    rows = torch.arange(len(images))
    return ImageDataset(images, train_indices=rows[:count], holdout_indices=rows[count:])


@pytest.fixture(scope="module")
def dataset():
    return split_at(blobs(600, "data"), 400)  # unequal parts, of which equally many images are compared


@pytest.fixture(scope="module")
def features(dataset):
    return Random(dataset, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def score(dataset, features):
    real = Samples(*dataset.reference("train", 10_000), features=features)

    def call(images, **settings):
        return Memorisation(**settings)(Samples(images, features=features), real, dataset)

    return call


def test_copies_of_training_images(score, dataset):
    # Of the training images only as many are searched as are held out, so these are copied.
    values = score(dataset.reference("train", 200)[0])
    assert values["nearer_to_train"] == 1 and values["closer_than_holdout"] == pytest.approx(1)
    assert values["duplicates"] < 0.05


def test_copies_of_held_out_images(score, dataset):
    values = score(dataset.reference("holdout", 200)[0])
    assert values["nearer_to_train"] == 0
    assert values["closer_than_holdout"] == pytest.approx(0.5), "as far as held-out images, which they are"


def test_new_images_are_as_near_to_either_part(score):
    values = score(blobs(800, "new"))
    assert values["nearer_to_train"] == pytest.approx(0.5, abs=0.08)
    assert values["closer_than_holdout"] == pytest.approx(0.5, abs=0.08)


def test_few_training_images_are_compared_with_as_few_held_out_ones(features):
    few = split_at(blobs(600, "data"), 50)
    real = Samples(*few.reference("train", 50), features=features)
    new, copies = (Samples(i, features=features) for i in (blobs(800, "new"), few.reference("train", 50)[0]))
    assert Memorisation()(new, real, few)["nearer_to_train"] == pytest.approx(0.5, abs=0.1)
    assert Memorisation()(copies, real, few)["nearer_to_train"] == 1


@pytest.mark.parametrize("count", [200, 800, 3000])
def test_new_images_are_not_duplicates_however_many_there_are(score, count):
    assert score(blobs(count, "new"))["duplicates"] < 0.06


def test_images_of_another_distribution_are_far_from_training_images(score):
    noise = torch.randint(0, 256, (100, 1, 8, 8), dtype=torch.uint8, generator=seeded("noise"))
    assert score(noise)["closer_than_holdout"] < 0.05


def test_repeated_samples_are_duplicates(score):
    assert score(blobs(50, "new").repeat(3, 1, 1, 1))["duplicates"] == 1
    some_twice = torch.cat([blobs(60, "new"), blobs(20, "twice"), blobs(20, "twice")])
    assert score(some_twice)["duplicates"] == pytest.approx(0.4, abs=0.05)


def test_duplicates_are_found_though_some_held_out_images_are_duplicates_too(features):
    holdout = torch.cat([blobs(180, "held"), blobs(10, "held"), blobs(10, "held")])
    dataset = split_at(torch.cat([blobs(200, "data"), holdout]), 200)
    real = Samples(dataset.images[:200], features=features)
    same, new = (Samples(i, features=features) for i in (blobs(1, "new").repeat(200, 1, 1, 1), blobs(200, "new")))
    assert Memorisation()(same, real, dataset)["duplicates"] == 1
    assert Memorisation()(new, real, dataset)["duplicates"] < 0.05


def test_ties_count_half(features):
    same = blobs(100, "data")
    twice = split_at(torch.cat([same, same]), 100)
    real = Samples(*twice.reference("train", 100), features=features)
    values = Memorisation()(Samples(blobs(30, "new"), features=features), real, twice)
    assert values["nearer_to_train"] == 0.5


def test_count_limits_the_samples(score):
    images = torch.cat([blobs(60, "new"), blobs(60, "new")])
    assert score(images)["duplicates"] == 1
    assert score(images, count=10)["duplicates"] < 1


def test_a_count_below_3_is_refused():
    with pytest.raises(SettingError, match="count=2: at least 3"):
        Memorisation(count=2)


def test_the_grid_of_nearest_images(dataset, features):
    train, holdout = dataset.reference("train", 400)[0], dataset.reference("holdout", 200)[0]
    samples = Samples(torch.cat([train[5:6], blobs(20, "new")]), features=features)
    real = Samples(train, features=features)
    cells, headings = nearest_images(samples, real, dataset, count=21, near=2)
    assert cells.shape == (21, 5, 1, 8, 8) and cells.dtype == torch.uint8
    assert headings == {0: "sample", 1: "nearest training images", 3: "nearest held-out images"}
    only = nearest_images(samples, real, dataset, count=21, near=2, splits=["train"])
    assert torch.equal(only[0], cells[:, :3]) and only[1] == {0: "sample", 1: "nearest training images"}
    rows = cells.flatten(2)
    assert torch.equal(rows[0, 0], rows[0, 1]), "the copy stands beside its original"
    drawn = nearest_images(samples, real, dataset, count=3, near=2)[0]
    assert torch.equal(drawn, nearest_images(samples, real, dataset, count=3, near=2)[0])
    assert not torch.equal(drawn, cells[:3]), "samples are drawn at random"
    train_set, holdout_set = ({tuple(image.flatten().tolist()) for image in part} for part in (train, holdout))
    for row in rows:
        assert all(tuple(cell.tolist()) in train_set for cell in row[1:3])
        assert all(tuple(cell.tolist()) in holdout_set for cell in row[3:5])


def test_copies_are_found_however_many_training_images_there_are(features):
    many = split_at(torch.cat([blobs(4_000, "data"), blobs(300, "held")]), 4_000)
    real = Samples(*many.reference("train", 500), features=features)
    values = Memorisation(count=200)(Samples(many.images[3_000:3_100], features=features), real, many)
    assert values["closer_than_holdout"] == 1
