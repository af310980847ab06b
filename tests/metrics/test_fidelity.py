"""The standard metrics: the whole way through the command line against torch-fidelity's own command, and by hand."""

import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from gancli.commands import evaluate
from gancli.device import seeded
from gancli.metrics.base import Samples
from gancli.metrics.features import Random
from gancli.metrics.fidelity import FID, KID, FIDPerClass, InceptionScore, PrecisionRecall, frechet

NOTHING = SimpleNamespace(shape=(3, 16, 16), num_classes=0)


def points(count, *key, dims=4):
    return torch.randn(count, dims, generator=seeded("points", *key))


def samples(features, labels=None):
    return Samples(features, labels)


@pytest.fixture
def folders(tmp_path):
    """Two folders of 60 pictures of 16x16: noise around a few colours, the second one less varied."""
    rng = np.random.default_rng(0)
    for name, colours, spread in (("made", 40, 50), ("real", 90, 70)):
        (tmp_path / name).mkdir()
        for number in range(60):
            colour = rng.integers(60, 60 + colours, size=(1, 1, 3))
            picture = (colour + rng.normal(0, spread, size=(16, 16, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(picture).save(tmp_path / name / f"{number:02d}.png")
    return tmp_path / "made", tmp_path / "real"


@pytest.fixture
def theirs(monkeypatch, capsys):
    """`theirs(generated, real, subset_size)`: what torch-fidelity's own command prints, through our extractor."""
    from torch_fidelity import fidelity, registry
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    class Ours(FeatureExtractorBase):
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

    monkeypatch.setitem(registry.FEATURE_EXTRACTORS_REGISTRY, "ours", Ours)

    def call(generated, real, subset_size):
        words = ["--input1", str(generated), "--input2", str(real), "--feature-extractor", "ours", "--json"]
        words += ["--fid", "--kid", "--prc", "--kid-subset-size", str(subset_size)]
        words += ["--cpu", "--silent", "--no-cache", "--save-cpu-ram"]
        monkeypatch.setattr(sys, "argv", ["fidelity", *words])
        capsys.readouterr()
        fidelity.main()
        found = json.loads(capsys.readouterr().out)
        return {
            "fid": found["frechet_inception_distance"],
            "kid": found["kernel_inception_distance_mean"],
            "kid_std": found["kernel_inception_distance_std"],
            "precision": found["precision"],
            "recall": found["recall"],
        }

    return call


def test_the_numbers_are_torch_fidelitys_own(cli, folders, theirs, monkeypatch):
    made, real = folders
    kept = []
    monkeypatch.setattr(evaluate, "table", lambda rows, table=evaluate.table: kept.extend(rows) or table(rows))
    words = ["metric=[fid,kid,precision_recall]", "metric/features=random", "metric.kid.subset_size=30", "device=cpu"]
    result = cli("evaluate", f"folders=[{made},{real}]", *words)
    assert result.status == 0, result.err
    wanted = theirs(made, real, 30)
    assert kept[0]["values"] == pytest.approx(wanted, rel=1e-3)
    assert wanted["fid"] > 1e-2 and wanted["kid"] > 1e-3, "else the comparison says little"
    assert 0 < wanted["precision"] != wanted["recall"] < 1
    names, numbers = (line.split() for line in result.err.splitlines()[-2:])
    assert names == list(wanted)
    assert [float(number) for number in numbers[1:]] == pytest.approx(list(wanted.values()), rel=1e-3)


def test_fid_between_gaussians_in_closed_form():
    # Whitened points have exactly mean 0 and covariance 1, so that the distance is known without sampling error.
    white = points(200, "white", dims=3).double()
    white = (white - white.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(white.T))).T
    means, stds = torch.tensor([3.0, 0.0, -1.0]), torch.tensor([1.0, 2.0, 0.5])
    moved = white * stds + means
    wanted = float(means.square().sum() + (1 - stds).square().sum())
    assert frechet(moved, white) == pytest.approx(wanted, rel=1e-6)
    assert FID()(samples(moved), samples(white), NOTHING)["fid"] == pytest.approx(wanted, rel=1e-5)


def test_kid_is_the_unbiased_estimate_with_the_cubic_kernel():
    x, y = points(20, "x").double(), 0.5 + points(20, "y").double()

    def kernel(a, b):
        return (float(a @ b) / 4 + 1) ** 3

    within = [sum(kernel(a[i], a[j]) for i in range(20) for j in range(20) if i != j) / (20 * 19) for a in (x, y)]
    wanted = sum(within) - 2 * sum(kernel(a, b) for a in x for b in y) / 400
    found = KID(subsets=3, subset_size=1000)(samples(x), samples(y), NOTHING)  # no more than there are
    assert found == {"kid": pytest.approx(wanted, rel=1e-5), "kid_std": pytest.approx(0, abs=1e-6)}


def test_kid_of_subsets_varies_around_it():
    x, y = points(100, "x"), 0.5 + points(90, "y")
    whole = KID(subsets=1)(samples(x[:90]), samples(y), NOTHING)["kid"]
    parts = KID(subsets=50, subset_size=30)(samples(x), samples(y), NOTHING)
    assert parts["kid_std"] > 0
    assert parts["kid"] == pytest.approx(whole, abs=4 * parts["kid_std"] / math.sqrt(50) + 0.2 * whole)


class Says:
    """In place of samples: what a classifier said of them."""

    def __init__(self, logits):
        self.logits = logits


def test_the_inception_score_by_hand():
    sure = 50 * torch.eye(10).repeat(30, 1)
    score = InceptionScore(splits=1)
    wanted = {"inception_score": pytest.approx(10, rel=1e-6), "inception_score_std": 0}
    assert score(Says(sure), None, NOTHING) == wanted  # every class, no doubt
    assert score(Says(sure[:1].expand(40, 10)), None, NOTHING)["inception_score"] == pytest.approx(1)  # one
    assert score(Says(torch.zeros(40, 10)), None, NOTHING)["inception_score"] == pytest.approx(1)  # no idea
    logits = points(60, "logits", dims=5).double()
    p = logits.softmax(1)
    by_hand = math.exp(float((p * (p / p.mean(0)).log()).sum(1).mean()))
    assert score(Says(logits), None, NOTHING)["inception_score"] == pytest.approx(by_hand)


def test_the_inception_score_needs_classes():
    assert not InceptionScore().suits(NOTHING, SimpleNamespace(names_classes=False))
    assert InceptionScore().suits(NOTHING, SimpleNamespace(names_classes=True))
    assert not InceptionScore().suits(NOTHING, None)


def covered(some, manifold, k):
    """Share of `some` within a ball of `manifold`: Kynkäänniemi et al., NeurIPS 2019, eq. 1."""
    gaps = (manifold[:, None].double() - manifold.double()).norm(dim=2)
    radii = gaps.sort(1).values[:, k]  # the first is the point itself
    return float(((some[:, None].double() - manifold.double()).norm(dim=2) <= radii).any(1).double().mean())


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_those_of_the_paper(k):
    fake, real = 0.6 * points(50, "fake"), points(40, "real")
    found = PrecisionRecall(neighbours=k)(samples(fake), samples(real), NOTHING)
    assert found == pytest.approx({"precision": covered(fake, real, k), "recall": covered(real, fake, k)})
    assert found["precision"] > found["recall"] > 0


def test_precision_and_recall_of_at_most_count_samples():
    fake, real = samples(0.6 * points(80, "fake")), samples(points(70, "real"))
    found = PrecisionRecall(count=25)(fake, real, NOTHING)
    assert found["recall"] == pytest.approx(covered(real.take(25), fake.take(25), 3))
    assert found["recall"] != covered(real.features, fake.features, 3)


def test_fid_within_each_class():
    labels = torch.tensor([0, 1, 2] * 30)
    labels[labels == 2] = 0
    labels[0] = 2  # a class with a single sample has no covariance
    fake, real = points(90, "fake"), points(90, "real") + 2 * labels[:, None]
    dataset = SimpleNamespace(num_classes=3)
    found = FIDPerClass()(samples(fake, labels), samples(real, labels), dataset)
    parts = [frechet(fake[labels == label], real[labels == label]) for label in (0, 1)]
    assert found == pytest.approx({"fid_class_mean": sum(parts) / 2, "fid_class_0": parts[0], "fid_class_1": parts[1]})
    assert parts[1] > 2 * parts[0]
    few = samples(fake[:3], torch.tensor([0, 1, 2]))
    assert math.isnan(FIDPerClass()(few, samples(real, labels), dataset)["fid_class_mean"])


def test_whom_fid_per_class_suits():
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
        (PrecisionRecall, "count"),
    ],
)
def test_numbers_below_1_are_refused(kind, name):
    with pytest.raises(ValueError, match=f"{name}=0: at least 1"):
        kind(**{name: 0})
