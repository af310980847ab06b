"""Which metrics fit which data, what samples are measured against, and the protocol of a number."""

from importlib import metadata

import pytest
import torch
from test_configs import composed

from gancli import __version__
from gancli.datasets.base import to_unit
from gancli.datasets.digits import Digits
from gancli.datasets.points import Distribution1d, GaussianRing, SwissRoll
from gancli.distributions import Normal
from gancli.errors import UserError
from gancli.metrics import evaluator as evaluators
from gancli.metrics.base import Samples, digest
from gancli.metrics.features import Random
from gancli.metrics.fidelity import FID, KID, PrecisionRecall
from gancli.metrics.suite import Evaluator
from gancli.training.run_folder import commit

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits():
    return Digits()


@pytest.fixture(scope="module")
def random(digits):
    return Random(digits, device=CPU)


def assembled(dataset, names, *, features="random", **how):
    settings = composed(f"metric=[{','.join(names)}]", f"metric/features={features}", name="evaluate")
    return evaluators.assemble(settings["metric"], dataset, device=CPU, **{"labelled": False, "cache": None, **how})


ALL = ["modes", "line", "fid", "kid", "precision_recall", "density_coverage", "memorisation", "inception_score"]


def test_only_what_means_something_is_measured(digits):
    assert list(assembled(digits, [*ALL, "fid_per_class"]).metrics) == ALL[2:-1]
    assert list(assembled(digits, [*ALL, "fid_per_class"], labelled=True).metrics) == [*ALL[2:-1], "fid_per_class"]
    assert list(assembled(GaussianRing(), ALL).metrics) == ["modes"]
    assert list(assembled(Distribution1d(distribution=Normal()), ALL).metrics) == ["line"]
    assert assembled(SwissRoll(), ALL) is None


def test_extractors_are_not_made_for_points():
    # inception would ask for its weights
    assert assembled(GaussianRing(), ["modes", "fid"], features="inception").features is None
    with pytest.raises(UserError, match=r"metric\.features\.weights"):
        assembled(Digits(), ["modes", "fid"], features="inception")


def test_the_first_number_of_the_first_metric_judges(digits, random):
    def best(*metrics):
        names = [type(metric).__name__ for metric in metrics]
        return Evaluator(dict(zip(names, metrics, strict=True)), digits, features=random, reference_count=10).best

    assert best(FID(), PrecisionRecall()) == ("fid", "lower")
    assert best(PrecisionRecall(), FID()) == ("precision", "higher")
    assert assembled(digits, ["line", "kid", "fid"]).best == ("kid", "lower"), "in the order they were asked for"


def test_every_metric_says_its_part(digits, random):
    made = Evaluator({"fid": FID(), "kid": KID(subsets=2)}, digits, features=random, reference_count=100)
    samples = Samples(digits.reference("holdout", 80)[0], features=random)
    wanted = FID()(samples, made.real, digits) | KID(subsets=2)(samples, made.real, digits)
    assert made(samples) == pytest.approx(wanted) and set(wanted) == {"fid", "kid", "kid_std"}


@pytest.mark.parametrize("part", ["train", "holdout"])
def test_real_samples_are_those_of_the_part_asked_for(digits, random, part):
    made = Evaluator({"fid": FID()}, digits, features=random, reference=part, reference_count=100)
    assert torch.equal(made.real.data, digits.reference(part, 100)[0]) and len(made.real.labels) == 100
    known = {tuple(image.flatten().tolist()) for image in digits.images[digits._rows(part)]}
    assert {tuple(image.flatten().tolist()) for image in made.real.data} <= known


def test_real_features_are_kept_and_generated_ones_are_not(digits, random, tmp_path):
    made = Evaluator({"fid": FID()}, digits, features=random, reference_count=50, cache=tmp_path)
    images, labels = digits.reference("holdout", 40)
    assert made(made.samples([to_unit(images)], labels))["fid"] > 0
    assert [file.name for file in tmp_path.iterdir()] == [f"features-{made.real.hash}-{random.hash}.pt"]


def test_samples_are_measured_as_they_would_be_saved(digits, random):
    made = Evaluator({"fid": FID()}, digits, features=random, reference_count=10)
    images, labels = digits.reference("train", 20)
    again = made.samples(to_unit(images).split(7), labels)
    assert again.data.dtype == torch.uint8 and torch.equal(again.data, images) and torch.equal(again.labels, labels)
    wild = made.samples([torch.tensor([-9.0, 9.0, float("nan"), 0.004]).expand(4, 1, 8, 4)], None)
    assert wild.data[0, 0, 0].tolist() == [0, 255, 128, 128] and wild.labels is None


def test_points_are_measured_as_they_are():
    made = assembled(GaussianRing(), ["modes"])
    points = torch.randn(7, 2)
    samples = made.samples(points.split(3), None)
    assert torch.equal(samples.data, points) and samples.extractor is None


def test_the_protocol_of_images(digits, random):
    made = Evaluator({"fid": FID()}, digits, features=random, reference="holdout", reference_count=50)
    assert made.protocol() == {
        "metrics": {"fid": {}},
        "reference": "holdout",
        "reference_count": 50,
        "reference_hash": made.real.hash,
        "reference_labels_hash": digest(made.real.labels),
        "torch_fidelity": metadata.version("torch-fidelity"),
        "gancli": __version__,
        "git_commit": commit(),
        "features": "random",
        "features_hash": random.hash,
        "features_accuracy": None,
        "resize": "none",
    }
    assert (
        Evaluator({"fid": FID()}, digits, features=random, reference_count=9_999).protocol()["reference_count"] == 1617
    )


def test_the_protocol_of_points():
    made = assembled(GaussianRing(), ["modes"], reference_count=77)
    assert {key: made.protocol()[key] for key in ("reference", "reference_count")} == {
        "reference": "train",
        "reference_count": 77,
    }
    assert made.protocol()["reference_hash"] == assembled(GaussianRing(), ["modes"], reference_count=77).real.hash
    assert (
        made.protocol()["reference_hash"] != assembled(GaussianRing(std=0.02), ["modes"], reference_count=77).real.hash
    )


def test_a_law_is_measured_against_fixed_draws():
    ring = GaussianRing()
    data, labels = ring.reference("train", 40)
    again, _ = GaussianRing().reference("train", 40)
    assert torch.equal(data, again) and data.shape == (40, 2) and data.dtype == torch.float32
    assert torch.equal(ring.modes_of(Samples(data))[0], labels)
    assert not torch.equal(data, ring.reference("holdout", 40)[0])
    assert len(ring.reference("train", 10**9)[0]) == ring.most_drawn
    assert SwissRoll().reference("train", 3)[1] is None
