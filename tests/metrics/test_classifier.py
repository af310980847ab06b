"""The classifier of the metrics: trained once, found again, right about most digits, and nobody's random numbers."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gancli.datasets.base import ImageDataset
from gancli.datasets.digits import Digits
from gancli.errors import UserError
from gancli.metrics import classifier
from gancli.metrics.classifier import Classifier, network

CPU = torch.device("cpu")
FEW = {"images": 16_000}


@pytest.fixture(scope="module")
def digits():
    return Digits()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("classifiers")


@pytest.fixture(scope="module")
def good(digits, cache):
    return Classifier(digits, device=CPU, cache=str(cache), **FEW)


@pytest.fixture
def untrained(monkeypatch):
    """Training takes no time, and how often it was asked for is counted."""
    calls = []

    def train(made, images, labels, *, steps):
        calls.append(steps)
        return made

    monkeypatch.setattr(classifier, "train", train)
    return calls


def test_it_is_right_about_digits_it_never_saw(good):
    assert good.accuracy > 0.95


def test_its_accuracy_is_that_on_held_out_images(good, digits):
    images, labels = digits.reference("holdout", 1_000)
    found = good(images)
    assert float((found["logits"].argmax(1) == labels).float().mean()) == pytest.approx(good.accuracy)
    assert found["features"].shape == (180, 128) and found["features"].min() == 0, "the last hidden layer, after ReLU"
    assert torch.equal(good.network[-1](found["features"]), found["logits"])


def test_it_is_found_again(good, digits, cache, untrained):
    again = Classifier(digits, device=CPU, cache=str(cache), **FEW)
    assert not untrained and len(list(cache.iterdir())) == 1
    assert (again.hash, again.accuracy, again.name) == (good.hash, good.accuracy, "classifier")
    assert good.names_classes and not good.network.training


def test_other_data_or_settings_make_another(digits, tmp_path, untrained):
    def made(dataset, **settings):
        before = len(untrained)
        Classifier(dataset, device=CPU, cache=str(tmp_path), **{"images": 256, "width": 8, **settings})
        return len(untrained) - before

    assert [made(digits), made(digits)] == [1, 0]
    assert made(digits, width=16) == 1 and made(digits, images=512) == 1
    changed = Digits()
    changed.images[int(changed.train[0]), 0, 0, 0] ^= 1
    assert made(changed) == 1
    changed = Digits()
    changed.labels[int(changed.train[0])] = (changed.labels[int(changed.train[0])] + 1) % 10
    assert made(changed) == 1
    assert len(list(tmp_path.iterdir())) == 5


def test_a_damaged_file_is_made_anew(digits, tmp_path, untrained):
    first = Classifier(digits, device=CPU, cache=str(tmp_path), images=256)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-300])
    again = Classifier(digits, device=CPU, cache=str(tmp_path), images=256)
    assert len(untrained) == 2 and again.hash == first.hash
    Classifier(digits, device=CPU, cache=str(tmp_path), images=256)
    assert len(untrained) == 2


def states():
    return [torch.get_rng_state(), torch.from_numpy(np.random.get_state()[1].copy()), random.getstate()]


@pytest.mark.parametrize("when", ["trained", "found again"])
def test_it_leaves_the_random_generators_alone(digits, tmp_path, when):
    settings = {"images": 256, "width": 8, "cache": str(tmp_path)}
    if when == "found again":
        Classifier(digits, device=CPU, **settings)
    torch.manual_seed(3)
    before = states()
    Classifier(digits, device=CPU, **settings)(digits.images[:5])
    for was, now in zip(before, states(), strict=True):
        assert torch.equal(was, now) if isinstance(was, torch.Tensor) else was == now


def test_it_does_not_depend_on_the_random_generators(digits, tmp_path):
    hashes = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        hashes.add(Classifier(digits, device=CPU, cache=str(tmp_path / str(seed)), images=1_280, width=8).hash)
    assert len(hashes) == 1


def test_length_of_the_training(digits, tmp_path, untrained):
    for name, settings in {"a": {"images": 1_280}, "b": {"epochs": 2}, "c": {"images": 10}}.items():
        Classifier(digits, device=CPU, cache=str(tmp_path / name), **settings)
    assert untrained == [10, 2 * 1617 // 128, 0]


def test_more_channels_are_looked_at_one_by_one(good, digits):
    images = digits.images[:12]
    stacked = images.view(4, 3, 8, 8)
    apart, together = good(images), good(stacked)
    assert together["logits"].shape == (4, 30) and together["features"].shape == (4, 384)
    torch.testing.assert_close(together["logits"].view(12, 10), apart["logits"])
    torch.testing.assert_close(together["features"].view(12, 128), apart["features"])


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28), (3, 9, 40)])
def test_any_images(shape):
    made = network(shape, 7, 16).eval()
    assert made(torch.zeros(2, *shape)).shape == (2, 7)
    assert made[-1].in_features == 16


def test_unlabelled_images_have_no_classifier(tmp_path):
    data = ImageDataset(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), train=torch.arange(4), held=torch.arange(0))
    with pytest.raises(UserError, match="the data set has no labels; use metric/features=random"):
        Classifier(data, device=CPU, cache=str(tmp_path))


@pytest.mark.parametrize("name", ["width", "images", "epochs"])
def test_numbers_below_1_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}=0: at least 1"):
        Classifier(SimpleNamespace(num_classes=0), device=CPU, **{name: 0})


def test_training_images_are_moved_about_and_keep_their_labels(monkeypatch):
    # Image i is dark but for a pixel in the middle, whose brightness is its name.
    images = torch.zeros(200, 1, 16, 16, dtype=torch.uint8)
    images[:, 0, 8, 8] = torch.arange(50, 250)
    labels = torch.arange(200) % 7
    seen = []

    class Looking(torch.nn.Flatten):
        def forward(self, batch):
            brightest, where = super().forward(batch).max(1)
            seen.append([(brightest * 127.5 + 127.5).round().long() - 50, set(where.tolist())])
            return super().forward(batch)

    def loss(logits, wanted):
        seen[-1].append(wanted)
        return torch.nn.functional.cross_entropy(logits, wanted)

    monkeypatch.setattr(classifier, "cross_entropy", loss)
    classifier.train(torch.nn.Sequential(Looking(), torch.nn.Linear(256, 7)), images, labels, steps=50)
    assert all(torch.equal(labels[names], wanted) for names, _, wanted in seen)
    places = {divmod(place, 16) for _, where, _ in seen for place in where}
    assert len(places) > 5 and all(abs(row - 8) <= 2 and abs(column - 8) <= 2 for row, column in places)
    assert {int(name) for names, _, _ in seen for name in names} == set(range(200))
