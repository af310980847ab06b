"""The standard metrics equal torch-fidelity's own command and sums by hand, and are named for their features."""

import fnmatch
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from gancli.errors import SettingError
from gancli.metrics.base import Samples
from gancli.metrics.coverage import DensityCoverage
from gancli.metrics.features import INCEPTION, Features, Random
from gancli.metrics.fidelity import FID, KID, FIDPerClass, InceptionScore, PrecisionRecall, frechet_distance
from gancli.randomness import seeded

NOTHING = SimpleNamespace(mode_shares=None, shape=(3, 16, 16), num_classes=0)


def points(count, *key, dims=4):
    return torch.randn(count, dims, generator=seeded("points", *key))


class Given(Features):
    """An extractor that returns what it is given, as features and as logits."""

    hash = "0"
    names_classes = True

    def __init__(self, name):
        self.name = name

    def extract(self, data):
        return {"features": data, "logits": data}


def samples(features, labels=None, extractor=INCEPTION):
    return Samples(features, labels, features=Given(extractor))


NAMES = {
    "inception-v3-compat": (
        "fid",
        "fid_class_mean",
        "fid_class_worst",
        "fid_class_*",
        "kid",
        "kid_std",
        "inception_score",
    ),
    "random": ("fd_random", "fd_random_class_mean", "fd_random_class_*", "kd_random", "kd_random_std"),
    "classifier": ("fd_classifier", "fd_classifier_class_mean", "fd_classifier_class_*", "kd_classifier"),
    "dinov2-vit-b-14": ("fd_dinov2", "kd_dinov2"),
    "clip-vit-b-32": ("fd_clip", "kd_clip"),
}


@pytest.mark.parametrize("extractor", NAMES)
def test_numbers_are_named_for_their_features(extractor):
    metrics = (FID(), FIDPerClass(), KID(), InceptionScore())
    names = [name for metric in metrics for name in metric.numbers(Given(extractor))]
    assert set(NAMES[extractor]) <= set(names)
    assert {"fid", "kid", "inception_score"} <= set(names) or not any("fid" in n or "kid" in n for n in names)
    assert "classifier_score" in names or extractor == INCEPTION
    labels = torch.arange(40) % 2
    fake, real = (samples(points(40, side), labels, extractor) for side in ("fake", "real"))
    for metric in metrics:
        patterns = metric.numbers(Given(extractor))
        values = metric(fake, real, SimpleNamespace(num_classes=2))
        assert next(iter(values)) == next(iter(patterns)), "the metric's main number comes first"
        assert all(any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns) for name in values)


@pytest.fixture
def folders(tmp_path):
    """Two folders of 60 images of 16x16: noise around random colours, the second one more varied."""
    rng = np.random.default_rng(0)
    for name, colours, spread in (("generated", 40, 50), ("real", 90, 70)):
        (tmp_path / name).mkdir()
        for number in range(60):
            colour = rng.integers(60, 60 + colours, size=(1, 1, 3))
            image = (colour + rng.normal(0, spread, size=(16, 16, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(image).save(tmp_path / name / f"{number:02d}.png")
    return tmp_path / "generated", tmp_path / "real"


@pytest.fixture
def torch_fidelity(monkeypatch, capsys):
    """`torch_fidelity(generated, real, subset_size)`: what its own command prints, with the random extractor."""
    from torch_fidelity import fidelity, registry
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    class RandomExtractor(FeatureExtractorBase):
        def __init__(self, name, features_list, **_):
            super().__init__(name, features_list)
            self.extractor = Random(NOTHING, device=torch.device("cpu"))

        @staticmethod
        def get_provided_features_list():
            return ("features",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "features"

        def forward(self, batch):
            return (self.extractor.extract(batch)["features"],)

    monkeypatch.setitem(registry.FEATURE_EXTRACTORS_REGISTRY, "random", RandomExtractor)

    def call(generated, real, subset_size):
        words = ["--input1", str(generated), "--input2", str(real), "--feature-extractor", "random", "--json"]
        words += ["--fid", "--kid", "--prc", "--kid-subset-size", str(subset_size)]
        words += ["--cpu", "--silent", "--no-cache", "--save-cpu-ram"]
        monkeypatch.setattr(sys, "argv", ["fidelity", *words])
        capsys.readouterr()
        fidelity.main()
        printed = json.loads(capsys.readouterr().out)
        return {
            "fd_random": printed["frechet_inception_distance"],
            "kd_random": printed["kernel_inception_distance_mean"],
            "kd_random_std": printed["kernel_inception_distance_std"],
            "precision": printed["precision"],
            "recall": printed["recall"],
        }

    return call


def test_the_numbers_equal_those_of_torch_fidelitys_own_command(cli, folders, torch_fidelity):
    generated, real = folders
    words = ["metric=[fid,kid,precision_recall]", "metric.kid.subset_size=30", "device=cpu", "out=row.json"]
    result = cli("evaluate", f"folders=[{generated},{real}]", *words)
    assert result.status == 0, result.err
    expected = torch_fidelity(generated, real, 30)
    assert json.loads(Path("row.json").read_text())["values"] == pytest.approx(expected, rel=1e-3)
    assert expected["fd_random"] > 1e-2 and expected["kd_random"] > 1e-3, "otherwise the comparison proves little"
    assert 0 < expected["precision"] != expected["recall"] < 1
    names, numbers = result.out.splitlines()[:2]
    assert [name for name in names.split() if name.isascii()] == [name for name in expected if name != "kd_random_std"]
    printed = [float(number) for number in numbers.split()[1:] if number != "±"]
    assert printed == pytest.approx(list(expected.values()), rel=2e-2)


def test_the_frechet_distance_between_gaussians_in_closed_form():
    # Whitened points have exactly mean 0 and covariance 1, so the distance is known without sampling error.
    white = points(200, "white", dims=3).double()
    white = (white - white.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(white.T))).T
    means, stds = torch.tensor([3.0, 0.0, -1.0]), torch.tensor([1.0, 2.0, 0.5])
    moved = white * stds + means
    expected = float(means.square().sum() + (1 - stds).square().sum())
    assert frechet_distance(moved, white) == pytest.approx(expected, rel=1e-6)
    assert FID()(samples(moved), samples(white), NOTHING) == {"fid": pytest.approx(expected, rel=1e-5)}


def test_kid_is_the_unbiased_estimate_with_the_cubic_kernel():
    x, y = points(20, "x").double(), 0.5 + points(20, "y").double()

    def kernel(a, b):
        return (float(a @ b) / 4 + 1) ** 3

    within = [sum(kernel(a[i], a[j]) for i in range(20) for j in range(20) if i != j) / (20 * 19) for a in (x, y)]
    expected = sum(within) - 2 * sum(kernel(a, b) for a in x for b in y) / 400
    values = KID(subsets=3, subset_size=1000)(samples(x), samples(y), NOTHING)  # subsets of all 20 samples
    assert values == {"kid": pytest.approx(expected, rel=1e-5)}, "subsets that are all the same have no spread"


def test_kid_of_subsets_varies_around_that_of_all_samples():
    x, y = points(100, "x"), 0.5 + points(90, "y")
    full = KID(subsets=1)(samples(x[:90]), samples(y), NOTHING)["kid"]
    assert set(KID(subsets=1, subset_size=30)(samples(x), samples(y), NOTHING)) == {"kid"}, "one subset has no spread"
    parts = KID(subsets=50, subset_size=30)(samples(x), samples(y), NOTHING)
    assert parts["kid_std"] > 0
    assert parts["kid"] == pytest.approx(full, abs=4 * parts["kid_std"] / math.sqrt(50) + 0.2 * full)


def test_the_inception_score_by_hand():
    def score(logits):
        return InceptionScore(splits=1)(samples(logits), None, NOTHING)

    certain = 50 * torch.eye(10).repeat(30, 1)
    assert score(certain) == {"inception_score": pytest.approx(10, rel=1e-6)}, "one part has no spread"
    assert set(InceptionScore(splits=2)(samples(certain), None, NOTHING)) == {"inception_score", "inception_score_std"}
    assert score(certain[:1].expand(40, 10))["inception_score"] == pytest.approx(1), "a single class"
    assert score(torch.zeros(40, 10))["inception_score"] == pytest.approx(1), "no certainty"
    logits = points(60, "logits", dims=5)
    p = logits.double().softmax(1)
    by_hand = math.exp(float((p * (p / p.mean(0)).log()).sum(1).mean()))
    assert score(logits)["inception_score"] == pytest.approx(by_hand)


def test_the_inception_score_needs_an_extractor_with_classes():
    assert not InceptionScore().suits(NOTHING, SimpleNamespace(names_classes=False))
    assert InceptionScore().suits(NOTHING, SimpleNamespace(names_classes=True))
    stacked = SimpleNamespace(mode_shares=torch.full((1000,), 0.001))
    assert not InceptionScore().suits(stacked, SimpleNamespace(names_classes=True)), "three digits are no class"
    assert not InceptionScore().suits(NOTHING, None)


def covered(points, manifold, k):
    """The share of `points` within a ball of `manifold`: Kynkäänniemi et al., NeurIPS 2019, eq. 1."""
    gaps = (manifold[:, None].double() - manifold.double()).norm(dim=2)
    radii = gaps.sort(1).values[:, k]  # the first is the point itself
    return float(((points[:, None].double() - manifold.double()).norm(dim=2) <= radii).any(1).double().mean())


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_equal_the_papers_formula(k):
    fake, real = 0.6 * points(50, "fake"), points(40, "real")
    values = PrecisionRecall(neighbours=k)(samples(fake), samples(real), NOTHING)
    assert values == pytest.approx({"precision": covered(fake, real, k), "recall": covered(real, fake, k)})
    assert values["precision"] > values["recall"] > 0


def test_precision_and_recall_of_at_most_count_samples():
    fake, real = samples(0.6 * points(80, "fake")), samples(points(70, "real"))
    recall = PrecisionRecall(count=25)(fake, real, NOTHING)["recall"]
    assert recall == pytest.approx(covered(real.feature_subset(25), fake.feature_subset(25), 3))
    assert recall != covered(real.features, fake.features, 3)


def test_fid_within_each_class():
    labels = torch.tensor([0, 1, 2] * 30)
    labels[labels == 2] = 0
    labels[0] = 2  # a class with a single sample has no covariance
    fake, real = points(90, "fake"), points(90, "real") + 2 * labels[:, None]
    dataset = SimpleNamespace(num_classes=3)
    values = FIDPerClass()(samples(fake, labels), samples(real, labels), dataset)
    parts = [frechet_distance(fake[labels == label], real[labels == label]) for label in (0, 1)]
    over_classes = {"fid_class_mean": sum(parts) / 2, "fid_class_worst": parts[1]}
    assert values == pytest.approx(over_classes | {"fid_class_0": parts[0], "fid_class_1": parts[1]})
    assert parts[1] > 2 * parts[0]
    few = samples(fake[:3], torch.tensor([0, 1, 2]))
    assert all(map(math.isnan, FIDPerClass()(few, samples(real, labels), dataset).values()))


def test_a_singular_covariance_is_a_warning_once(caplog):
    many, as_many_as_features = samples(points(8, "many", dims=7)), samples(points(7, "few", dims=7))
    FID()(many, many, NOTHING)
    assert not caplog.records
    for _ in range(2):
        FID()(many, as_many_as_features, NOTHING)
    assert [record.message[:46] for record in caplog.records] == ["fid: 7 samples are no more than the 7 features"]
    labels = torch.tensor([0, 1] * 4)
    FIDPerClass()(samples(many.features, labels), samples(many.features, labels), SimpleNamespace(num_classes=2))
    assert caplog.records[1].message.startswith("fid_class_mean: 4 samples are no more than the 7 features")


def test_fid_per_class_needs_images_of_at_most_100_classes():
    features = SimpleNamespace(names_classes=False)
    assert FIDPerClass().suits(SimpleNamespace(num_classes=10), features)
    assert not FIDPerClass().suits(SimpleNamespace(num_classes=0), features)
    assert not FIDPerClass().suits(SimpleNamespace(num_classes=1000), features)
    assert not FIDPerClass().suits(SimpleNamespace(num_classes=10), None)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (KID, "subsets"),
        (InceptionScore, "splits"),
        (PrecisionRecall, "neighbours"),
    ],
)
def test_settings_below_1_are_refused(kind, name):
    with pytest.raises(SettingError, match=f"{name}=0: (at least|from) 1"):
        kind(**{name: 0})


@pytest.mark.parametrize("kind", [PrecisionRecall, DensityCoverage])
def test_a_single_sample_has_no_neighbour(kind):
    with pytest.raises(SettingError, match="count=1: at least 2"):
        kind(count=1)
