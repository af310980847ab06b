"""Extractors, and the cache of their features: keyed by content, and safe against damaged and malicious files."""

import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from gancli.datasets.base import ImageDataset
from gancli.datasets.folder import ImagesToMeasure
from gancli.errors import FeaturesUnavailable, SettingError, UserError
from gancli.files.digest import digest
from gancli.metrics import features as feature_module
from gancli.metrics.base import Samples
from gancli.metrics.features import Auto, EfficientNet, Random, Registered
from gancli.networks.efficientnet import is_installed
from gancli.randomness import seeded

CPU = torch.device("cpu")
RGB = SimpleNamespace(shape=(3, 16, 16), num_classes=0, photographs=False)
needs_weights = pytest.mark.skipif(not is_installed(0), reason="needs gancli[pretrained]")


def images(count, *key, shape=(3, 16, 16)):
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=seeded("images", *key))


class Counting(Random):
    """Counts the images that it computed features of."""

    seen = 0

    def extract(self, images):
        self.seen += len(images)
        return super().extract(images)


@pytest.fixture
def extractor():
    return Counting(RGB, device=CPU)


def test_random_features_depend_on_the_seed_setting_alone(extractor):
    torch.manual_seed(5)
    again, other = Random(RGB, device=CPU), Random(RGB, device=CPU, seed=1)
    assert again.hash == extractor.hash != other.hash
    batch = images(7)
    assert torch.equal(again(batch)["features"], extractor(batch)["features"])
    assert not torch.equal(other(batch)["features"], extractor(batch)["features"])


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16), (3, 28, 28), (1, 5, 9), (3, 64, 64)])
@pytest.mark.parametrize("width", [128, 64])
def test_random_features_of_images_of_any_shape(shape, width):
    extracted = Random(SimpleNamespace(shape=shape), device=CPU, width=width)(images(3, shape=shape))
    assert extracted.keys() == {"features"}
    features = extracted["features"]
    assert features.shape == (3, width) and features.dtype == torch.float32 and features.std(0).min() > 0


def test_the_quarters_of_an_image_are_told_apart(extractor):
    left = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    left[..., :8] = 255
    assert not torch.allclose(extractor(left)["features"], extractor(left.flip(3))["features"])


def test_wrong_settings_are_refused_before_data_is_read():
    for call in (Random.check_settings, lambda **settings: Random(RGB, device=CPU, **settings)):
        with pytest.raises(SettingError, match="width=30: a multiple of 4"):
            call(width=30)
    with pytest.raises(SettingError, match=r"extractor=vgg: torch-fidelity has .*inception-v3-compat"):
        Registered.check_settings(extractor="vgg", file="vgg.pth", weights=None)


@pytest.mark.parametrize("kind", [Random, Auto])
def test_building_an_extractor_leaves_the_global_generator_alone(kind):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    kind(RGB, device=CPU)(images(3))
    assert torch.equal(before, torch.get_rng_state())


def test_many_images_are_computed_in_batches(extractor):
    many = images(260)
    features = extractor(many)["features"]
    assert features.shape == (260, 128) and extractor.seen == 260
    torch.testing.assert_close(features[255:], extractor(many[255:])["features"])


def test_points_are_their_own_features():
    points = torch.randn(5, 2, dtype=torch.float64)
    assert torch.equal(Samples(points).features, points.float())


def test_an_extractor_without_classes_has_no_logits(extractor):
    with pytest.raises(UserError, match=r"metric/features: random has no classes; use metric/features=classifier"):
        _ = Samples(images(2), features=extractor).logits


def test_a_subset_of_the_features_is_always_the_same(extractor):
    samples = Samples(images(50), features=extractor)
    part = samples.feature_subset(10)
    assert part.shape == (10, 128) and torch.equal(part, samples.feature_subset(10))
    assert all(torch.equal(samples.feature_subset(count), samples.features) for count in (50, 99))
    rows = {tuple(row.tolist()) for row in samples.features}
    assert {tuple(row.tolist()) for row in part} < rows


def cached(folder):
    return sorted(file.name for file in folder.glob("features-*.pt"))


def test_features_are_computed_once(extractor, tmp_path):
    data = images(6)
    samples = Samples(data, features=extractor, cache=tmp_path / "cache")
    first = samples.features
    assert extractor.seen == 6
    assert samples.features is first and extractor.seen == 6
    again = Samples(data.clone(), features=extractor, cache=tmp_path / "cache").features
    assert torch.equal(again, first) and extractor.seen == 6
    assert cached(tmp_path / "cache") == [f"features-{samples.hash}-{extractor.hash}.pt"]


def test_one_changed_pixel_or_another_extractor_means_other_features(extractor, tmp_path):
    data, other_extractor = images(6), Counting(RGB, device=CPU, seed=1)
    changed = data.clone()
    changed[3, 1, 2, 2] ^= 1
    pairs = ((data, extractor), (changed, extractor), (data, other_extractor))
    first, *others = (Samples(x, features=features, cache=tmp_path).features for x, features in pairs)
    assert (extractor.seen, other_extractor.seen, len(cached(tmp_path))) == (12, 6, 3)
    assert not any(torch.equal(first, other) for other in others)
    assert Samples(data).hash != Samples(changed).hash


def test_the_hash_depends_on_content_shape_type_and_order():
    x = images(4)
    assert len({digest(y) for y in (x, x.flip(0), x.view(2, 6, 16, 16), x.view(torch.int8), x[:3])}) == 5
    assert digest(x.transpose(2, 3)) == digest(x.transpose(2, 3).contiguous())


def write(folder, data):
    folder.mkdir()
    for number, image in enumerate(data):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
    return str(folder)


def images_in(path, tmp_path, resolution=None):
    return ImagesToMeasure(path=path, resolution=resolution, cache=str(tmp_path / "cache"), key="folders")


def test_features_of_a_folder_are_found_again_by_its_content(extractor, tmp_path):
    def samples(path):
        return Samples(*images_in(path, tmp_path).reference("train", 100), features=extractor, cache=tmp_path / "kept")

    data = images(6)
    here, elsewhere = (samples(write(tmp_path / name, data)) for name in ("here", "elsewhere"))
    assert len(here.features) == len(elsewhere.features) == extractor.seen == 6 and here.hash == elsewhere.hash
    data[0, 0, 0, 0] ^= 1
    Image.fromarray(data[0].permute(1, 2, 0).numpy()).save(tmp_path / "here" / "0.png")
    changed = samples(str(tmp_path / "here"))
    assert len(changed.features) == 6 and extractor.seen == 12 and changed.hash != here.hash
    assert len(cached(tmp_path / "kept")) == 2


class Malicious:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


DAMAGE = {
    "cut short": lambda file: file.write_bytes(file.read_bytes()[:-200]),
    "empty": lambda file: file.write_bytes(b""),
    "not a file of torch": lambda file: file.write_bytes(b"rubbish"),
    "other content": lambda file: torch.save([1, 2], file),
    "a pickle that runs code": lambda file: file.write_bytes(pickle.dumps(Malicious())),
    "a file of torch that runs code": lambda file: torch.save({"features": Malicious()}, file),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_cache_file_is_computed_and_written_again(extractor, tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    data = images(6)
    good = Samples(data, features=extractor, cache=tmp_path).features
    (name,) = cached(tmp_path)
    DAMAGE[how](tmp_path / name)
    for _ in range(2):  # the second time from the cache
        assert torch.equal(Samples(data, features=extractor, cache=tmp_path).features, good) and extractor.seen == 12
    assert not Path("executed").exists()


def test_auto_takes_the_random_network_where_no_photographs_are():
    auto = Auto(RGB, device=CPU)
    assert (auto.name, auto.short_name, auto.accuracy, auto.names_classes) == ("random", "random", None, False)
    assert auto.hash == Random(RGB, device=CPU).hash
    assert torch.equal(auto(images(3))["features"], Random(RGB, device=CPU)(images(3))["features"])


@needs_weights
def test_auto_takes_pretrained_features_of_photographs(monkeypatch):
    photographs = ImageDataset(images(4), train_indices=torch.arange(3), holdout_indices=torch.tensor([3]))
    photographs.photographs = True
    monkeypatch.setattr(feature_module, "is_installed", is_installed)
    auto = Auto(photographs, device=CPU)
    assert (auto.short_name, auto.pretrained_on, auto.resize) == (
        "efficientnet",
        "ImageNet",
        "bilinear, antialiased, to 128x128",
    )
    monkeypatch.setattr(feature_module, "is_installed", lambda variant: False)
    assert Auto(photographs, device=CPU).name == "random"


@needs_weights
def test_pretrained_features_of_grey_images_and_of_sizes_that_are_not_square():
    grey = images(2)[:, :1, :, :8].contiguous()
    data = ImageDataset(grey, train_indices=torch.arange(2), holdout_indices=torch.arange(0))
    network = EfficientNet(data, device=CPU, side=32)
    assert network.sides == (64, 32) and network(grey)["features"].shape == (2, 1280)
    torch.testing.assert_close(network(grey)["features"], network(grey.expand(-1, 3, -1, -1))["features"])
    assert network.hash == EfficientNet(data, device=CPU, side=32).hash != EfficientNet(data, device=CPU, side=64).hash
    with pytest.raises(SettingError, match="metric/features=efficientnet: takes grey or RGB images, not 2 channels"):
        two = ImageDataset(images(2)[:, :2], train_indices=torch.arange(2), holdout_indices=torch.arange(0))
        EfficientNet(two, device=CPU)
    with pytest.raises(SettingError, match="side=16: from 32 to 1,024"):
        EfficientNet.check_settings(side=16)


@pytest.fixture
def registered(monkeypatch):
    """Registers a tiny extractor with torch-fidelity: mean colours as features, a linear layer of them as logits."""
    from torch_fidelity import registry
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    class Tiny(FeatureExtractorBase):
        def __init__(self, name, features_list, feature_extractor_weights_path=None, **_):
            super().__init__(name, features_list)
            self.linear = torch.nn.Linear(3, 5, bias=False)
            if feature_extractor_weights_path is not None:  # unpickled, as torch-fidelity's own extractors do
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
    batch = images(4)
    extracted, means = extractor(batch), batch.float().mean((2, 3))
    torch.testing.assert_close(extracted["features"], means)
    torch.testing.assert_close(extracted["logits"], means @ weight.T)
    assert extractor.name == "tiny" and extractor.names_classes and "torch-fidelity" in extractor.resize
    torch.save({"linear.weight": weight + 1}, tmp_path / "v.pth")
    assert registered(str(tmp_path / "v.pth")).hash != extractor.hash


def test_grey_images_become_rgb(registered, tmp_path):
    torch.save({"linear.weight": torch.ones(5, 3)}, tmp_path / "w.pth")
    batch = images(4, shape=(1, 16, 16))
    features = registered(str(tmp_path / "w.pth"), (1, 16, 16))(batch)["features"]
    torch.testing.assert_close(features, batch.float().mean((2, 3)).expand(-1, 3))


def test_an_error_for_missing_weights_tells_the_file_and_the_folder(registered, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(FeaturesUnavailable, match=f"put tiny.pth into {tmp_path}/hub/checkpoints"):
        registered(None)
    with pytest.raises(FeaturesUnavailable, match=r"features\.weights=/nowhere/w\.pth: .* put tiny\.pth into /nowhere"):
        registered("/nowhere/w.pth")


def test_weights_in_torch_hubs_folder_are_found(registered, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.save({"linear.weight": torch.ones(5, 3)}, tmp_path / "checkpoints" / "tiny.pth")
    assert registered(None).name == "tiny"


def with_entry(file, name):
    """Writes a file of torch that would run code, with one more entry in its archive."""
    torch.save({"linear.weight": Malicious()}, file)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(f"{file.stem}/{name}", b"")


def with_archive_behind(file):
    """Writes a pickle that runs code, behind which there is what torch would take for a TorchScript."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/constants.pkl", b"")
    file.write_bytes(pickle.dumps(Malicious()) + file.read_bytes())


WEIGHTS = {
    "a pickle with an archive behind it": with_archive_behind,
    "a pickle": lambda file: file.write_bytes(pickle.dumps(Malicious())),
    "a file of torch": lambda file: torch.save({"linear.weight": Malicious()}, file),
    "what torch takes for a TorchScript": lambda file: with_entry(file, "constants.pkl"),
    "what has the entry of a TorchScript in another folder": lambda file: with_entry(file, "deep/constants.pkl"),
}


@pytest.mark.filterwarnings("ignore:'torch.load' received a zip file", "ignore:.torch.jit.load. is deprecated")
@pytest.mark.parametrize("how", WEIGHTS)
def test_weights_that_would_run_code_are_refused(registered, tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    WEIGHTS[how](tmp_path / "w.pth")
    with pytest.raises(FeaturesUnavailable, match=r"metric\.features\.weights=.*w\.pth: (holds more|is truncated)"):
        registered(str(tmp_path / "w.pth"))
    assert not Path("executed").exists()


def test_images_of_four_channels_are_refused(registered):
    with pytest.raises(SettingError, match="takes grey or RGB images, not 4 channels"):
        registered(None, (4, 16, 16))


def test_every_image_of_a_folder_is_measured_as_it_is(tmp_path):
    written = images(5)
    data = images_in(write(tmp_path / "in", written), tmp_path)
    assert data.shape == (3, 16, 16) and (data.size("train"), data.size("holdout")) == (5, 0)
    read, labels = data.reference("train", 100)
    assert labels is None and torch.equal(read, written)


def test_images_of_different_sizes_need_a_resolution(tmp_path):
    path = write(tmp_path / "in", images(3))
    Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(tmp_path / "in" / "large.png")
    with pytest.raises(UserError, match=r"folders=.*in: .* no size in common \(16x16, 24x20\); give resolution="):
        images_in(path, tmp_path)
    data = images_in(path, tmp_path, resolution=[10, 12])
    assert data.shape == (3, 10, 12) and len(data) == 4


def test_a_reference_is_always_the_same_and_never_flipped():
    stored, rows = images(30, shape=(1, 8, 8)), torch.arange(30)
    split = {"train_indices": rows[5:], "holdout_indices": rows[:5]}
    data = ImageDataset(stored, rows % 3, **split, num_classes=3, flip=True)
    assert (data.size("train"), data.size("holdout")) == (25, 5)
    assert torch.equal(data.reference("holdout", 100)[0], stored[:5])
    part, labels = data.reference("train", 10)
    assert len(part) == 10 and torch.equal(part, data.reference("train", 10)[0])
    found = [int((stored == image).flatten(1).all(1).nonzero()[0]) for image in part]
    assert len(set(found)) == 10 and min(found) >= 5 and labels.tolist() == [row % 3 for row in found]
    assert not torch.equal(part, stored[5:15]), "drawn, since neighbours in a file may have something in common"
    learned, labels = data.labelled("train", 99)
    assert torch.equal(learned, stored[5:]) and torch.equal(labels, rows[5:] % 3)
    with pytest.raises(ValueError, match="no labels"):
        ImageDataset(stored, **split).labelled("train", 99)


def test_short_names_of_extractors():
    def short(name):
        extractor = Random(RGB, device=CPU)
        extractor.name = name
        return extractor.short_name

    names = ["inception-v3-compat", "dinov2-vit-b-14", "clip-vit-b-32", "clip-vit-l-14"]
    assert [short(name) for name in names] == ["inception", "dinov2", "clip", "clip_vit_l_14"]
