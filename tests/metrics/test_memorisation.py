"""Copies are told from new samples, and the sheet of neighbours shows where they come from."""

import pytest
import torch

from gancli.datasets.base import ImageDataset
from gancli.device import seeded
from gancli.metrics.base import Samples
from gancli.metrics.features import Random
from gancli.metrics.memorisation import Memorisation, neighbours


def blobs(count, *key):
    """Smooth random images (count, 1, 8, 8)."""
    coarse = torch.rand(count, 1, 3, 3, generator=seeded("blobs", *key))
    return torch.nn.functional.interpolate(coarse, 8, mode="bilinear").mul(255).round().to(torch.uint8)


@pytest.fixture(scope="module")
def dataset():
    rows = torch.arange(600)
    return ImageDataset(
        blobs(600, "data"), train=rows[:400], held=rows[400:]
    )  # unequal parts: equally many are compared


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
    # As many training images are looked at as are held out, so copies are made of those.
    found = score(dataset.reference("train", 200)[0])
    assert found["nearer_to_train"] == 1 and found["closer_than_holdout"] == pytest.approx(1)
    assert found["duplicates"] < 0.05


def test_copies_of_held_out_images(score, dataset):
    found = score(dataset.reference("holdout", 200)[0])
    assert found["nearer_to_train"] == 0
    assert found["closer_than_holdout"] == pytest.approx(0.5, abs=0.02), "they are as far as held-out ones: they are"


def test_new_images_are_as_near_to_either_part(score):
    found = score(blobs(800, "new"))
    assert found["nearer_to_train"] == pytest.approx(0.5, abs=0.08)
    assert found["closer_than_holdout"] == pytest.approx(0.5, abs=0.08)


def test_few_training_images_meet_as_few_held_out_ones(features):
    rows = torch.arange(600)
    few = ImageDataset(blobs(600, "data"), train=rows[:50], held=rows[50:])
    real = Samples(*few.reference("train", 50), features=features)
    new, copies = (Samples(i, features=features) for i in (blobs(800, "new"), few.reference("train", 50)[0]))
    assert Memorisation()(new, real, few)["nearer_to_train"] == pytest.approx(0.5, abs=0.1)
    assert Memorisation()(copies, real, few)["nearer_to_train"] == 1


@pytest.mark.parametrize("count", [200, 800, 3000])
def test_new_images_are_no_duplicates_however_many(score, count):
    assert score(blobs(count, "new"))["duplicates"] < 0.06


def test_images_from_elsewhere_are_far_from_training_images(score):
    noise = torch.randint(0, 256, (100, 1, 8, 8), dtype=torch.uint8, generator=seeded("noise"))
    assert score(noise)["closer_than_holdout"] < 0.05


def test_repeated_samples_are_duplicates(score):
    assert score(blobs(50, "new").repeat(3, 1, 1, 1))["duplicates"] == 1
    assert score(torch.cat([blobs(60, "new"), blobs(20, "twice"), blobs(20, "twice")]))["duplicates"] == pytest.approx(
        0.4, abs=0.05
    )


def test_duplicates_beside_held_out_ones_that_are(features):
    held = torch.cat([blobs(180, "held"), blobs(10, "held"), blobs(10, "held")])
    some = ImageDataset(torch.cat([blobs(200, "data"), held]), train=torch.arange(200), held=200 + torch.arange(200))
    real = Samples(some.images[:200], features=features)
    assert (
        Memorisation()(Samples(blobs(1, "new").repeat(200, 1, 1, 1), features=features), real, some)["duplicates"] == 1
    )
    assert Memorisation()(Samples(blobs(200, "new"), features=features), real, some)["duplicates"] < 0.05


def test_ties_count_half(features):
    same = blobs(100, "data")
    rows = torch.arange(100)
    twice = ImageDataset(torch.cat([same, same]), train=rows, held=rows + 100)
    real = Samples(*twice.reference("train", 100), features=features)
    found = Memorisation()(Samples(blobs(30, "new"), features=features), real, twice)
    assert found["nearer_to_train"] == 0.5


def test_count_limits_the_samples(score):
    images = torch.cat([blobs(60, "new"), blobs(60, "new")])
    assert score(images)["duplicates"] == 1
    assert score(images, count=10)["duplicates"] < 1


def test_neighbours_are_counted_from_3():
    with pytest.raises(ValueError, match="count=2: at least 3"):
        Memorisation(count=2)


def test_the_sheet_of_neighbours(dataset, features):
    train, held = dataset.reference("train", 400)[0], dataset.reference("holdout", 200)[0]
    samples = torch.cat([blobs(20, "new"), train[5:6], train[17:18]])
    real = Samples(train, features=features)
    cells, columns = neighbours(Samples(samples, features=features), real, dataset, count=3, near=2)
    assert columns == 5 and cells.shape == (15, 1, 8, 8) and cells.dtype == torch.uint8
    rows = cells.view(3, 5, 64)
    copies = {tuple(train[index].flatten().tolist()) for index in (5, 17)}
    assert {tuple(row[0].tolist()) for row in rows[:2]} == copies, "the nearest to a training image come first"
    for row in rows[:2]:
        assert torch.equal(row[0], row[1])
    known = [{tuple(image.flatten().tolist()) for image in part} for part in (train, held)]
    for row in rows:
        assert all(tuple(cell.tolist()) in known[0] for cell in row[1:3]), "then training images"
        assert all(tuple(cell.tolist()) in known[1] for cell in row[3:5]), "then held-out ones"


def test_copies_are_seen_however_many_training_images_there_are(features):
    many = ImageDataset(
        torch.cat([blobs(4_000, "data"), blobs(300, "held")]), train=torch.arange(4_000), held=4_000 + torch.arange(300)
    )
    real = Samples(*many.reference("train", 500), features=features)
    found = Memorisation(count=200)(Samples(many.images[3_000:3_100], features=features), real, many)
    assert found["closer_than_holdout"] == 1
