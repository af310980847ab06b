"""Which metrics apply to which data, what samples are compared with, and the protocol of the numbers."""

import copy
import math
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gancli import config
from gancli.datasets.base import to_unit
from gancli.datasets.digits import Digits
from gancli.datasets.points import Distribution1d, GaussianRing, SwissRoll
from gancli.distributions import Normal
from gancli.errors import UserError
from gancli.files.digest import digest
from gancli.metrics.base import Samples
from gancli.metrics.features import Random
from gancli.metrics.fidelity import FID, KID, FIDPerClass, PrecisionRecall
from gancli.metrics.suite import MetricSuite, build_suite

CPU = torch.device("cpu")
ALL = ["modes", "line", "fid", "kid", "precision_recall", "density_coverage", "memorisation", "inception_score"]


@pytest.fixture(scope="module")
def digits():
    return Digits()


@pytest.fixture(scope="module")
def random(digits):
    return Random(digits, device=CPU)


def built(dataset, names, *, features="random", **options):
    settings = config.compose("evaluate", [f"metric=[{','.join(names)}]", f"metric/features={features}"])
    return build_suite(settings["metric"], dataset, device=CPU, **{"labelled": False, "cache": None, **options})


def test_only_metrics_that_are_defined_for_the_data_are_kept(digits):
    assert list(built(digits, [*ALL, "fid_per_class"]).metrics) == ALL[2:-1]
    assert list(built(digits, [*ALL, "fid_per_class"], labelled=True).metrics) == [*ALL[2:-1], "fid_per_class"]
    assert list(built(GaussianRing(), ALL).metrics) == ["modes"]
    assert list(built(Distribution1d(distribution=Normal()), ALL).metrics) == ["line"]
    assert built(SwissRoll(), ALL) is None


def test_extractors_are_built_for_images_only(digits):
    # Inception lacks its weights here.
    assert built(GaussianRing(), ["modes", "fid"], features="inception").features is None
    with pytest.raises(UserError, match=r"metric\.features\.weights"):
        built(digits, ["modes", "fid"], features="inception")


def test_the_first_number_of_the_first_metric_ranks_checkpoints(digits):
    assert built(digits, ["fid", "precision_recall"]).ranking == ("fd_random", "lower")
    assert built(digits, ["precision_recall", "fid"]).ranking == ("precision", "higher")
    assert built(digits, ["line", "kid", "fid"]).ranking == ("kd_random", "lower"), "in the order that was asked for"
    assert built(GaussianRing(), ["modes"]).ranking == ("reverse_kl", "lower")


def test_the_names_of_all_numbers(digits):
    names = built(digits, ["fid", "kid", "fid_per_class"], labelled=True).names
    classes = [f"fd_random_class_{which}" for which in ("mean", "worst", "*")]
    assert names == ["fd_random", "kd_random", "kd_random_std", *classes]
    assert built(GaussianRing(), ["modes"]).names == ["reverse_kl", "modes", "modes_held", "high_quality"]


def test_the_numbers_are_those_of_all_metrics(digits, random):
    suite = MetricSuite({"fid": FID(), "kid": KID(subsets=2)}, digits, features=random, reference_count=100)
    samples = Samples(digits.reference("holdout", 80)[0], features=random)
    expected = FID()(samples, suite.real, digits) | KID(subsets=2)(samples, suite.real, digits)
    assert suite(samples) == pytest.approx(expected)
    assert set(expected) == {"fd_random", "kd_random", "kd_random_std"}


def test_the_numbers_of_a_metric_that_fails_are_nan(digits, random, monkeypatch):
    def fail(*_):
        raise np.linalg.LinAlgError("singular")

    monkeypatch.setattr(FIDPerClass, "__call__", fail)
    metrics = {"fid_per_class": FIDPerClass(), "precision_recall": PrecisionRecall()}
    suite = MetricSuite(metrics, digits, features=random, reference_count=50)
    values = suite(Samples(digits.reference("holdout", 40)[0], features=random))
    failed = ["fd_random_class_mean", "fd_random_class_worst"]
    assert set(values) == {*failed, "precision", "recall"}, "no pattern is a number"
    assert [name for name, value in values.items() if math.isnan(value)] == failed


@pytest.mark.parametrize("split", ["train", "holdout"])
def test_real_samples_are_those_of_the_chosen_part(digits, random, split):
    suite = MetricSuite({"fid": FID()}, digits, features=random, reference=split, reference_count=100)
    assert torch.equal(suite.real.data, digits.reference(split, 100)[0]) and len(suite.real.labels) == 100
    indices = digits.train_indices if split == "train" else digits.holdout_indices
    part = {tuple(image.flatten().tolist()) for image in digits.images[indices]}
    assert {tuple(image.flatten().tolist()) for image in suite.real.data} <= part


def test_features_of_real_samples_are_cached_and_those_of_generated_ones_are_not(digits, random, tmp_path):
    suite = MetricSuite({"fid": FID()}, digits, features=random, reference_count=50, cache=tmp_path)
    images, labels = digits.reference("holdout", 40)
    assert suite(suite.samples([to_unit(images)], labels))["fd_random"] > 0
    assert [file.name for file in tmp_path.glob("*.pt")] == [f"features-{suite.real.hash}-{random.hash}.pt"]


def test_samples_are_rounded_as_they_would_be_saved(digits, random):
    suite = MetricSuite({"fid": FID()}, digits, features=random, reference_count=10)
    images, labels = digits.reference("train", 20)
    samples = suite.samples(to_unit(images).split(7), labels)
    assert samples.data.dtype == torch.uint8
    assert torch.equal(samples.data, images) and torch.equal(samples.labels, labels)
    outside = suite.samples([torch.tensor([-9.0, 9.0, float("nan"), 0.004]).expand(4, 1, 8, 4)], None)
    assert outside.data[0, 0, 0].tolist() == [0, 255, 128, 128] and outside.labels is None


def test_points_are_measured_as_they_are():
    points = torch.randn(7, 2)
    samples = built(GaussianRing(), ["modes"]).samples(points.split(3), None)
    assert torch.equal(samples.data, points) and samples.extractor is None


def test_the_protocol_of_images(digits, random):
    suite = MetricSuite({"fid": FID()}, digits, features=random, reference="holdout", reference_count=50)
    assert suite.protocol() == {
        "metrics": {"fid": {}},
        "reference": "holdout",
        "reference_count": 50,
        "reference_hash": suite.real.hash,
        "reference_labels_hash": digest(suite.real.labels),
        "torch_fidelity": metadata.version("torch-fidelity"),
        "features": "random",
        "features_hash": random.hash,
        "features_accuracy": None,
        "resize": "none",
        "shared_pretraining": None,
    }
    all_of_them = MetricSuite({"fid": FID()}, digits, features=random, reference_count=9_999)
    assert all_of_them.protocol()["reference_count"] == 1617


def test_features_of_the_discriminators_own_pretraining_are_told(digits, random, caplog):
    def shared(of_features, of_discriminator):
        features = copy.copy(random)
        caplog.clear()
        features.pretrained_on = of_features
        against = SimpleNamespace(pretrained_on=of_discriminator)
        suite = MetricSuite({"fid": FID()}, digits, features=features, reference_count=50, discriminator=against)
        assert suite.protocol()["shared_pretraining"] == suite.shared_pretraining
        assert bool(suite.shared_pretraining) == ("were both pretrained on" in caplog.text)
        return suite.shared_pretraining

    assert shared("ImageNet", "ImageNet") == "ImageNet"
    assert shared("ImageNet", None) is shared(None, "ImageNet") is shared(None, None) is None


def test_the_protocol_of_points():
    def protocol(**settings):
        return built(GaussianRing(**settings), ["modes"], reference_count=77).protocol()

    assert (protocol()["reference"], protocol()["reference_count"]) == ("train", 77)
    assert protocol()["reference_hash"] == protocol()["reference_hash"] != protocol(std=0.02)["reference_hash"]


def test_the_reference_of_a_distribution_is_a_fixed_draw():
    ring = GaussianRing()
    data, labels = ring.reference("train", 40)
    again, _ = GaussianRing().reference("train", 40)
    assert torch.equal(data, again) and data.shape == (40, 2) and data.dtype == torch.float32
    assert torch.equal(ring.modes_of(data, None)[0], labels)
    assert not torch.equal(data, ring.reference("holdout", 40)[0])
    assert len(ring.reference("train", 10**9)[0]) == ring.most_drawn
    assert SwissRoll().reference("train", 3)[1] is None
