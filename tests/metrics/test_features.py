"""Extractors, and what is kept of their answers: by content, whole, and never by running what a file holds."""

import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from gancli.datasets.base import ImageDataset, to_unit
from gancli.datasets.digits import Digits
from gancli.datasets.folder import Pictures
from gancli.device import seeded
from gancli.errors import UserError
from gancli.metrics.base import Samples, digest
from gancli.metrics.features import Auto, Random, Registered

CPU = torch.device("cpu")
RGB = SimpleNamespace(shape=(3, 16, 16), num_classes=0)


def images(count, *key, shape=(3, 16, 16)):
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=seeded("images", *key))


class Counting(Random):
    """Knows how many images it was asked about."""

    seen = 0

    def extract(self, images):
        self.seen += len(images)
        return super().extract(images)


@pytest.fixture
def extractor():
    return Counting(RGB, device=CPU)


def test_random_features_are_the_same_everywhere(extractor):
    torch.manual_seed(5)
    again, other = Random(RGB, device=CPU), Random(RGB, device=CPU, seed=1)
    assert again.hash == extractor.hash != other.hash
    some = images(7)
    assert torch.equal(again(some)["features"], extractor(some)["features"])
    assert not torch.equal(other(some)["features"], extractor(some)["features"])


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16), (3, 28, 28), (1, 5, 9), (3, 64, 64)])
@pytest.mark.parametrize("width", [128, 64])
def test_random_features_of_any_images(shape, width):
    found = Random(SimpleNamespace(shape=shape), device=CPU, width=width)(images(3, shape=shape))
    assert found.keys() == {"features"}
    assert found["features"].shape == (3, width) and found["features"].dtype == torch.float32
    assert found["features"].std(0).min() > 0


def test_the_quarters_of_an_image_are_told_apart(extractor):
    left = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    left[..., :8] = 255
    assert not torch.allclose(extractor(left)["features"], extractor(left.flip(3))["features"])


def test_a_width_without_quarters_is_refused():
    with pytest.raises(ValueError, match="width=30: a multiple of 4"):
        Random(RGB, device=CPU, width=30)


@pytest.mark.parametrize("kind", [Random, Auto])
def test_making_an_extractor_draws_nothing_from_the_global_generator(kind):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    kind(RGB, device=CPU)(images(3))
    assert torch.equal(before, torch.get_rng_state())


def test_many_images_are_taken_in_batches(extractor):
    some = images(260)
    whole = extractor(some)["features"]
    assert whole.shape == (260, 128) and extractor.seen == 260
    torch.testing.assert_close(whole[255:], extractor(some[255:])["features"])


def test_points_are_their_own_features():
    points = torch.randn(5, 2, dtype=torch.float64)
    assert torch.equal(Samples(points).features, points.float())


def test_who_names_no_classes_has_no_logits(extractor):
    with pytest.raises(ValueError, match=r"features=random: .* use metric/features=classifier"):
        _ = Samples(images(2), features=extractor).logits


def test_a_part_of_the_features_is_always_the_same(extractor):
    samples = Samples(images(50), features=extractor)
    part = samples.take(10)
    assert part.shape == (10, 128) and torch.equal(part, samples.take(10))
    assert torch.equal(samples.take(50), samples.features) and torch.equal(samples.take(99), samples.features)
    rows = {tuple(row.tolist()) for row in samples.features}
    assert {tuple(row.tolist()) for row in part} < rows


def kept(folder):
    return sorted(file.name for file in folder.glob("features-*.pt"))


def test_features_are_computed_once(extractor, tmp_path):
    some = images(6)
    samples = Samples(some, features=extractor, cache=tmp_path / "cache")
    first = samples.features
    assert extractor.seen == 6
    assert samples.features is first and extractor.seen == 6
    again = Samples(some.clone(), features=extractor, cache=tmp_path / "cache").features
    assert torch.equal(again, first) and extractor.seen == 6
    assert kept(tmp_path / "cache") == [f"features-{samples.hash}-{extractor.hash}.pt"]


def test_one_pixel_makes_other_features(extractor, tmp_path):
    some = images(6)
    other = some.clone()
    other[3, 1, 2, 2] ^= 1
    found = [Samples(each, features=extractor, cache=tmp_path).features for each in (some, other)]
    assert extractor.seen == 12 and not torch.equal(*found) and len(kept(tmp_path)) == 2
    assert Samples(some).hash != Samples(other).hash


def test_another_extractor_makes_other_features(extractor, tmp_path):
    some = images(6)
    other = Counting(RGB, device=CPU, seed=1)
    found = [Samples(some, features=each, cache=tmp_path).features for each in (extractor, other)]
    assert other.seen == 6 and not torch.equal(*found)


def test_the_hash_is_of_shape_type_and_order_too():
    some = images(4)
    hashes = {digest(x) for x in (some, some.flip(0), some.view(2, 6, 16, 16), some.view(torch.int8), some[:3])}
    assert len(hashes) == 5
    assert digest(some.transpose(2, 3)) == digest(some.transpose(2, 3).contiguous())


def write(folder, pictures):
    folder.mkdir()
    for number, picture in enumerate(pictures):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
    return str(folder)


def pictures(path, tmp_path, **settings):
    return Pictures(path=path, resolution=None, cache=str(tmp_path / "cache"), key="folders", **settings)


def test_folders_are_known_by_what_is_in_them(extractor, tmp_path):
    some = images(6)
    changed = some.clone()
    changed[0, 0, 0, 0] ^= 1
    hashes = []
    for name, content in (("here", some), ("elsewhere", some), ("changed", changed)):
        data = pictures(write(tmp_path / name, content), tmp_path)
        samples = Samples(*data.reference("train", 100), features=extractor, cache=tmp_path / "kept")
        assert len(samples.features) == 6
        hashes.append(samples.hash)
    assert hashes[0] == hashes[1] != hashes[2]
    assert len(kept(tmp_path / "kept")) == 2 and extractor.seen == 12


def test_a_picture_that_changes_in_its_place_is_noticed(tmp_path):
    some = images(4)
    path = write(tmp_path / "in", some)
    before = Samples(*pictures(path, tmp_path).reference("train", 100)).hash
    some[0, 0, 0, 0] ^= 1
    Image.fromarray(some[0].permute(1, 2, 0).numpy()).save(tmp_path / "in" / "0.png")
    assert Samples(*pictures(path, tmp_path).reference("train", 100)).hash != before


class Malicious:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


DAMAGE = {
    "cut short": lambda file: file.write_bytes(file.read_bytes()[:-200]),
    "empty": lambda file: file.write_bytes(b""),
    "no file of torch's": lambda file: file.write_bytes(b"rubbish"),
    "something else": lambda file: torch.save([1, 2], file),
    "a pickle that runs": lambda file: file.write_bytes(pickle.dumps(Malicious())),
    "a file that runs": lambda file: torch.save({"features": Malicious()}, file),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_file_is_made_anew(extractor, tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    some = images(6)
    good = Samples(some, features=extractor, cache=tmp_path).features
    (name,) = kept(tmp_path)
    DAMAGE[how](tmp_path / name)
    assert torch.equal(Samples(some, features=extractor, cache=tmp_path).features, good) and extractor.seen == 12
    assert torch.equal(Samples(some, features=extractor, cache=tmp_path).features, good) and extractor.seen == 12
    assert not Path("executed").exists()


def test_auto_takes_the_random_network_without_labels():
    auto = Auto(RGB, device=CPU)
    assert (auto.name, auto.accuracy, auto.names_classes) == ("random", None, False)
    assert auto.hash == Random(RGB, device=CPU).hash
    assert torch.equal(auto(images(3))["features"], Random(RGB, device=CPU)(images(3))["features"])


def test_auto_takes_the_classifier_with_labels(monkeypatch, tmp_path):
    from gancli.metrics import classifier

    monkeypatch.setattr(classifier, "train", lambda network, *_, **how: network)
    auto = Auto(Digits(), device=CPU, cache=str(tmp_path))
    assert auto.name == "classifier" and auto.accuracy is not None and auto.names_classes
    found = auto(images(3, shape=(1, 8, 8)))
    assert found["logits"].shape == (3, 10) and len(list(tmp_path.iterdir())) == 1


@pytest.fixture
def registered(monkeypatch):
    """A tiny extractor in torch-fidelity's registry: mean colours and, beside them, 'logits'; weights are a scale."""
    from torch_fidelity import registry
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    class Tiny(FeatureExtractorBase):
        def __init__(self, name, features_list, feature_extractor_weights_path=None, **_):
            super().__init__(name, features_list)
            self.linear = torch.nn.Linear(3, 5, bias=False)
            if feature_extractor_weights_path is not None:  # as torch-fidelity's own do
                self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=False))

        @staticmethod
        def get_provided_features_list():
            return ("means", "logits")

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "logits" if metric == "isc" else "means"

        def forward(self, batch):
            assert batch.dtype == torch.uint8 and batch.shape[1] == 3
            means = batch.float().mean((2, 3))
            values = {"means": means, "logits": self.linear(means)}
            return tuple(values[name] for name in self.features_list)

    monkeypatch.setitem(registry.FEATURE_EXTRACTORS_REGISTRY, "tiny", Tiny)
    return lambda weights, shape=(3, 16, 16): Registered(
        SimpleNamespace(shape=shape), device=CPU, extractor="tiny", file="tiny.pth", weights=weights
    )


def test_an_extractor_of_torch_fidelitys_registry(registered, tmp_path):
    weight = torch.arange(15.0).view(5, 3)
    torch.save({"linear.weight": weight}, tmp_path / "w.pth")
    extractor = registered(str(tmp_path / "w.pth"))
    some = images(4)
    found, means = extractor(some), some.float().mean((2, 3))
    torch.testing.assert_close(found["features"], means)
    torch.testing.assert_close(found["logits"], means @ weight.T)
    assert extractor.name == "tiny" and extractor.names_classes and "torch-fidelity" in extractor.resize
    torch.save({"linear.weight": weight + 1}, tmp_path / "v.pth")
    assert registered(str(tmp_path / "v.pth")).hash != extractor.hash


def test_grey_images_become_rgb(registered, tmp_path):
    torch.save({"linear.weight": torch.ones(5, 3)}, tmp_path / "w.pth")
    some = images(4, shape=(1, 16, 16))
    found = registered(str(tmp_path / "w.pth"), (1, 16, 16))(some)["features"]
    torch.testing.assert_close(found, some.float().mean((2, 3)).expand(-1, 3))


def test_without_weights_the_file_and_the_place_are_named(registered, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(UserError, match=f"put tiny.pth into {tmp_path}/hub/checkpoints"):
        registered(None)
    with pytest.raises(UserError, match=r"metric\.features\.weights=/nowhere/w\.pth: .* put tiny\.pth into /nowhere"):
        registered("/nowhere/w.pth")


def test_weights_in_torch_hubs_folder_are_found(registered, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.save({"linear.weight": torch.ones(5, 3)}, tmp_path / "checkpoints" / "tiny.pth")
    assert registered(None).name == "tiny"


def with_entry(file, name):
    """A file of torch's that would run code, with one more entry in its archive."""
    torch.save({"linear.weight": Malicious()}, file)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(f"{file.stem}/{name}", b"")


WEIGHTS = {
    "a pickle": lambda file: file.write_bytes(pickle.dumps(Malicious())),
    "a file of torch's": lambda file: torch.save({"linear.weight": Malicious()}, file),
    "what looks like a TorchScript": lambda file: with_entry(file, "constants.pkl"),
    "what does not even look like one": lambda file: with_entry(file, "deep/constants.pkl"),
}


@pytest.mark.filterwarnings("ignore:'torch.load' received a zip file", "ignore:.torch.jit.load. is deprecated")
@pytest.mark.parametrize("how", WEIGHTS)
def test_weights_that_would_run_code_are_refused(registered, tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    WEIGHTS[how](tmp_path / "w.pth")
    with pytest.raises((UserError, RuntimeError)):
        registered(str(tmp_path / "w.pth"))
    assert not Path("executed").exists()


def test_unknown_extractors_and_odd_channels(registered):
    with pytest.raises(ValueError, match=r"extractor=vgg: torch-fidelity knows .*inception-v3-compat"):
        Registered(RGB, device=CPU, extractor="vgg")
    with pytest.raises(ValueError, match="takes grey or RGB images, not 4 channels"):
        registered(None, (4, 16, 16))


def test_every_picture_of_a_folder_is_measured_as_it_is(tmp_path):
    some = images(5)
    data = pictures(write(tmp_path / "in", some), tmp_path)
    assert data.shape == (3, 16, 16) and (data.size("train"), data.size("holdout")) == (5, 0)
    found, labels = data.reference("train", 100)
    assert labels is None and torch.equal(found, some)
    batch = data.batch(0, size=5, seed=0)[0]
    assert sorted(batch.sum((1, 2, 3)).tolist()) == pytest.approx(sorted(to_unit(some).sum((1, 2, 3)).tolist()))


def test_pictures_of_one_size_or_of_the_size_given(tmp_path):
    path = write(tmp_path / "in", images(3))
    Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(tmp_path / "in" / "large.png")
    with pytest.raises(UserError, match=r"folders=.*in: .* no size in common \(16x16, 24x20\); give resolution="):
        pictures(path, tmp_path)
    data = Pictures(path=path, resolution=[10, 12], cache=str(tmp_path / "cache"), key="folders")
    assert data.shape == (3, 10, 12) and len(data) == 4


def test_a_reference_is_always_the_same_and_never_flipped():
    some = images(30, shape=(1, 8, 8))
    rows = torch.arange(30)
    data = ImageDataset(some, rows % 3, train=rows[5:], held=rows[:5], num_classes=3, flip=True)
    assert (data.size("train"), data.size("holdout")) == (25, 5)
    assert torch.equal(data.reference("holdout", 100)[0], some[:5])
    part, labels = data.reference("train", 10)
    assert len(part) == 10 and torch.equal(part, data.reference("train", 10)[0])
    where = [int((some == image).flatten(1).all(1).nonzero()[0]) for image in part]
    assert len(set(where)) == 10 and min(where) >= 5 and labels.tolist() == [row % 3 for row in where]
    assert not torch.equal(part, some[5:15]), "drawn: neighbours in a file may have something in common"
    images_, labels = data.labelled("train", 99)
    assert torch.equal(images_, some[5:]) and torch.equal(labels, rows[5:] % 3)
    with pytest.raises(ValueError, match="no labels"):
        ImageDataset(some, train=rows, held=rows[:0]).labelled("train", 99)
