"""The classifier for metrics is accurate, trained once and cached, and leaves the random generators alone."""

import random

import numpy as np
import pytest
import torch

from gancli.datasets.base import ImageDataset
from gancli.datasets.digits import Digits
from gancli.errors import SettingError, UserError
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
def training_steps(monkeypatch):
    """Replaces training by a list of the steps that each training would take."""
    calls = []

    def train(network, images, labels, *, steps):
        calls.append(steps)

    monkeypatch.setattr(classifier, "train", train)
    return calls


def test_the_accuracy_is_high_and_that_on_held_out_images(good, digits):
    assert good.accuracy > 0.95
    images, labels = digits.reference("holdout", 1_000)
    extracted = good(images)
    assert float((extracted["logits"].argmax(1) == labels).float().mean()) == pytest.approx(good.accuracy)
    features = extracted["features"]
    assert features.shape == (180, 128) and features.min() == 0, "the last hidden layer, after ReLU"
    assert torch.equal(good.network[-1](features), extracted["logits"])


def test_a_trained_classifier_is_read_from_the_cache(good, digits, cache, training_steps):
    again = Classifier(digits, device=CPU, cache=str(cache), **FEW)
    assert not training_steps and len(list(cache.glob("*.pt"))) == 1
    assert (again.hash, again.accuracy, again.name) == (good.hash, good.accuracy, "classifier")
    assert good.names_classes and not good.network.training


def test_other_data_or_settings_train_another_classifier(digits, tmp_path, training_steps):
    def trainings(dataset, **settings):
        before = len(training_steps)
        Classifier(dataset, device=CPU, cache=str(tmp_path), **{"images": 256, "width": 8, **settings})
        return len(training_steps) - before

    assert [trainings(digits), trainings(digits)] == [1, 0]
    assert trainings(digits, width=16) == 1 and trainings(digits, images=512) == 1
    changed = Digits()
    changed.images[int(changed.train_indices[0]), 0, 0, 0] ^= 1
    assert trainings(changed) == 1
    changed = Digits()
    first = int(changed.train_indices[0])
    changed.labels[first] = (changed.labels[first] + 1) % 10
    assert trainings(changed) == 1
    assert len(list(tmp_path.glob("*.pt"))) == 5


def test_a_damaged_cache_file_is_trained_and_written_again(digits, tmp_path, training_steps):
    first = Classifier(digits, device=CPU, cache=str(tmp_path), images=256)
    (file,) = tmp_path.glob("*.pt")
    file.write_bytes(file.read_bytes()[:-300])
    again = Classifier(digits, device=CPU, cache=str(tmp_path), images=256)
    assert len(training_steps) == 2 and again.hash == first.hash
    Classifier(digits, device=CPU, cache=str(tmp_path), images=256)
    assert len(training_steps) == 2


def generator_states():
    return [torch.get_rng_state(), torch.from_numpy(np.random.get_state()[1].copy()), random.getstate()]


@pytest.mark.parametrize("cached", [False, True])
def test_building_and_calling_it_leaves_the_random_generators_alone(digits, tmp_path, cached):
    settings = {"images": 256, "width": 8, "cache": str(tmp_path)}
    if cached:
        Classifier(digits, device=CPU, **settings)
    torch.manual_seed(3)
    before = generator_states()
    Classifier(digits, device=CPU, **settings)(digits.images[:5])
    for was, now in zip(before, generator_states(), strict=True):
        assert torch.equal(was, now) if isinstance(was, torch.Tensor) else was == now


def test_its_weights_do_not_depend_on_the_global_random_generators(digits, tmp_path):
    hashes = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        hashes.add(Classifier(digits, device=CPU, cache=str(tmp_path / str(seed)), images=1_280, width=8).hash)
    assert len(hashes) == 1


def test_images_and_epochs_limit_the_training(digits, tmp_path, training_steps):
    for name, settings in {"a": {"images": 1_280}, "b": {"epochs": 2}, "c": {"images": 10}}.items():
        Classifier(digits, device=CPU, cache=str(tmp_path / name), **settings)
    assert training_steps == [10, 2 * 1617 // 128, 0]


def test_images_with_more_channels_are_classified_channel_by_channel(good, digits):
    images = digits.images[:12]
    stacked = images.view(4, 3, 8, 8)
    separate, together = good(images), good(stacked)
    assert together["logits"].shape == (4, 30) and together["features"].shape == (4, 384)
    torch.testing.assert_close(together["logits"].view(12, 10), separate["logits"])
    torch.testing.assert_close(together["features"].view(12, 128), separate["features"])


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28), (3, 9, 40)])
def test_the_network_takes_images_of_any_shape(shape):
    built = network(shape, 7, 16).eval()
    assert built(torch.zeros(2, *shape)).shape == (2, 7)
    assert built[-1].in_features == 16


def test_unlabelled_images_have_no_classifier(tmp_path):
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    data = ImageDataset(images, train_indices=torch.arange(4), holdout_indices=torch.arange(0))
    with pytest.raises(UserError, match="the data set has no labels; use metric/features=random"):
        Classifier(data, device=CPU, cache=str(tmp_path))


@pytest.mark.parametrize("name", ["width", "images", "epochs"])
def test_settings_below_1_are_refused_before_data_is_read(name):
    for call in (Classifier.check_settings, lambda **settings: Classifier(None, device=CPU, **settings)):
        with pytest.raises(SettingError, match=f"{name}=0: at least 1"):
            call(**{name: 0})


def test_training_images_are_shifted_and_keep_their_labels(monkeypatch):
    # Image i is black but for a pixel in the middle, whose brightness tells i.
    images = torch.zeros(200, 1, 16, 16, dtype=torch.uint8)
    images[:, 0, 8, 8] = torch.arange(50, 250)
    labels = torch.arange(200) % 7
    seen = []

    class Recording(torch.nn.Flatten):
        def forward(self, batch):
            brightness, position = super().forward(batch).max(1)
            seen.append([(brightness * 127.5 + 127.5).round().long() - 50, set(position.tolist())])
            return super().forward(batch)

    def loss(logits, targets):
        seen[-1].append(targets)
        return torch.nn.functional.cross_entropy(logits, targets)

    monkeypatch.setattr(classifier, "cross_entropy", loss)
    classifier.train(torch.nn.Sequential(Recording(), torch.nn.Linear(256, 7)), images, labels, steps=50)
    assert all(torch.equal(labels[indices], targets) for indices, _, targets in seen)
    positions = {divmod(position, 16) for _, found, _ in seen for position in found}
    assert len(positions) > 5 and all(abs(row - 8) <= 2 and abs(column - 8) <= 2 for row, column in positions)
    assert {int(index) for indices, _, _ in seen for index in indices} == set(range(200))
