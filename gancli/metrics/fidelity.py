"""The standard metrics, from any extractor's features; most are computed by torch-fidelity (Obukhov et al., 2020).

A number is called FID, KID or Inception score only where the features are Inception's, as in publications.
"""

from __future__ import annotations

import logging
import math
from functools import cache

from torch import Tensor, cdist

from gancli.datasets.base import Dataset
from gancli.errors import require_at_least, require_between
from gancli.metrics.base import Metric, Number, Samples
from gancli.metrics.coverage import ROWS, nearest
from gancli.metrics.features import INCEPTION, Features
from gancli.progress import progress

log = logging.getLogger(__name__)


def _name(features: Features | None, in_inception: str, prefix: str) -> str:
    """Returns the name of a number: `in_inception` in Inception's features, else the prefix and the extractor."""
    assert features is not None
    return in_inception if features.name == INCEPTION else f"{prefix}_{features.short_name}"


class FID(Metric):
    """Fréchet distance between Gaussians fitted to the features (Heusel et al., NeurIPS 2017, eq. 6).

    Its number is `fid` in Inception's features, else `fd_random`, `fd_classifier`, `fd_dinov2`, `fd_clip`.
    """

    def numbers(self, features: Features | None) -> dict[str, Number]:
        return {_name(features, "fid", "fd"): Number("lower", "Fréchet distance to the real samples")}

    def __call__(self, generated: Samples, real: Samples, dataset: Dataset) -> dict[str, float]:
        (name,) = self.numbers(generated.extractor)
        _warn_if_singular(name, generated.features, real.features)
        return {name: frechet_distance(generated.features, real.features)}


class FIDPerClass(Metric):
    """Fréchet distance within each class, with mean and largest over classes; for a generator that takes labels.

    Its numbers are `fid_class_mean`, `fid_class_worst`, `fid_class_0`, … in Inception's features, else
    `fd_classifier_class_mean`, …. A class with fewer than two samples of either side has none.
    """

    needs_labels = True

    def numbers(self, features: Features | None) -> dict[str, Number]:
        name = _name(features, "fid", "fd")
        return {
            f"{name}_class_mean": Number("lower", "Fréchet distance within a class, mean over classes"),
            f"{name}_class_worst": Number("lower", "the largest of these, and its class"),
            f"{name}_class_*": Number("lower", "Fréchet distance within one class"),
        }

    def suits(self, dataset: Dataset, features: Features | None) -> bool:
        return features is not None and 0 < dataset.num_classes <= 100

    def __call__(self, generated: Samples, real: Samples, dataset: Dataset) -> dict[str, float]:
        assert generated.labels is not None and real.labels is not None
        name = _name(generated.extractor, "fid", "fd")
        parts = {
            label: [side.features[side.labels == label] for side in (generated, real)]
            for label in range(dataset.num_classes)
        }
        parts = {label: sides for label, sides in parts.items() if min(map(len, sides)) > 1}
        if not parts:
            return {f"{name}_class_mean": math.nan, f"{name}_class_worst": math.nan}
        _warn_if_singular(f"{name}_class_mean", *min(parts.values(), key=lambda sides: min(map(len, sides))))
        classes = progress(parts.items(), title="Fréchet distance within classes", total=len(parts))
        distances = {f"{name}_class_{label}": frechet_distance(*sides) for label, sides in classes}
        mean, worst = sum(distances.values()) / len(distances), max(distances.values())
        return {f"{name}_class_mean": mean, f"{name}_class_worst": worst, **distances}


class KID(Metric):
    """Squared maximum mean discrepancy, cubic kernel, mean over subsets (Bińkowski et al., ICLR 2018, section 3.2).

    Its numbers are `kid` and `kid_std` in Inception's features, else `kd_random` and `kd_random_std`, ….
    subsets, subset_size: their number, and the samples in each (fewer where there are fewer). There is no standard
    deviation over subsets that are all the same. Raises SettingError.
    """

    def __init__(self, *, subsets: int = 100, subset_size: int = 1000) -> None:
        require_between(1, 100_000, subsets=subsets)
        require_at_least(2, subset_size=subset_size)
        self.subsets, self.subset_size = subsets, subset_size

    def numbers(self, features: Features | None) -> dict[str, Number]:
        name = _name(features, "kid", "kd")
        return {
            name: Number("lower", "kernel distance (MMD²) to them; about 0 for real ones"),
            f"{name}_std": Number("lower", "its standard deviation over subsets of samples"),
        }

    def __call__(self, generated: Samples, real: Samples, dataset: Dataset) -> dict[str, float]:
        from torch_fidelity.metric_kid import kid_features_to_metric

        size = min(self.subset_size, len(generated), len(real))
        result = kid_features_to_metric(
            generated.features, real.features, kid_subsets=self.subsets, kid_subset_size=size, verbose=False
        )
        name, name_of_std = self.numbers(generated.extractor)
        values = {name: result["kernel_inception_distance_mean"]}
        if self.subsets > 1 and size < max(len(generated), len(real)):
            values[name_of_std] = result["kernel_inception_distance_std"]
        return values


class InceptionScore(Metric):
    """exp E KL(p(y|x) || p(y)) with the extractor's classes (Salimans et al., NeurIPS 2016, section 4).

    Its numbers are `inception_score` and `inception_score_std` with Inception's classes, else `classifier_score` and
    `classifier_score_std`. splits: parts of the samples over which the mean and the standard deviation are taken
    (fewer where there are fewer samples); one part has no standard deviation. Raises SettingError.
    """

    def __init__(self, *, splits: int = 10) -> None:
        require_at_least(1, splits=splits)
        self.splits = splits

    def numbers(self, features: Features | None) -> dict[str, Number]:
        assert features is not None
        name = "inception_score" if features.name == INCEPTION else "classifier_score"
        return {
            name: Number("higher", "confidence and variety of the predicted classes"),
            f"{name}_std": Number("lower", "its standard deviation over parts of the samples"),
        }

    def suits(self, dataset: Dataset, features: Features | None) -> bool:
        combined = dataset.mode_shares is not None  # each class is a combination of those that the extractor names
        return features is not None and features.names_classes and not combined

    def __call__(self, generated: Samples, real: Samples, dataset: Dataset) -> dict[str, float]:
        from torch_fidelity.metric_isc import isc_features_to_metric

        logits = generated.logits
        result = isc_features_to_metric(logits, splits=min(self.splits, len(logits)))
        name, name_of_std = self.numbers(generated.extractor)
        values = {name: result["inception_score_mean"]}
        if min(self.splits, len(logits)) > 1:
            values[name_of_std] = result["inception_score_std"]
        return values


class PrecisionRecall(Metric):
    """Precision: the share of generated samples within the real manifold. Recall: the share of real samples within
    the generated manifold.

    A manifold is a union of balls that reach to the `neighbours`-th neighbour (Kynkäänniemi et al., NeurIPS 2019,
    eq. 1; fewer where there are fewer samples). count: samples of either side at most; the cost grows with its
    square. Raises SettingError.
    """

    def __init__(self, *, neighbours: int = 3, count: int = 10_000) -> None:
        require_at_least(1, neighbours=neighbours)
        require_at_least(2, count=count)
        self.neighbours, self.count = neighbours, count

    def numbers(self, features: Features | None) -> dict[str, Number]:
        return {
            "precision": Number("higher", "share of samples that lie among real ones: quality"),
            "recall": Number("higher", "share of real samples that lie among samples: variety"),
        }

    def __call__(self, generated: Samples, real: Samples, dataset: Dataset) -> dict[str, float]:
        fake, true = generated.feature_subset(self.count), real.feature_subset(self.count)
        k = min(self.neighbours, len(fake) - 1, len(true) - 1)
        return {"precision": _share_inside(fake, true, k), "recall": _share_inside(true, fake, k)}


def _share_inside(points: Tensor, manifold: Tensor, k: int) -> float:
    """Returns the share of `points` (N, F) in a ball around one of `manifold` (M, F) that reaches to its k-th other."""
    radii = nearest(manifold, manifold, count=k, skip=1)[0][:, -1]
    batches = progress(points.split(ROWS), title="precision and recall", total=len(points), size=len)
    return sum(int((cdist(rows, manifold) <= radii).any(1).sum()) for rows in batches) / len(points)


def frechet_distance(generated: Tensor, real: Tensor) -> float:
    """Returns the Fréchet distance between Gaussians fitted to features (N, F) and (M, F)."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    sides = [fid_features_to_statistics(features) for features in (generated, real)]
    return float(fid_statistics_to_metric(*sides, verbose=False)["frechet_inception_distance"])


@cache  # one warning, however often the same thing is measured
def _warn(name: str, count: int, width: int) -> None:
    log.warning(
        "%s: %s samples are no more than the %s features, so their covariance is singular; "
        "measure more samples, or by metric=[kid]",
        *(name, f"{count:,}", f"{width:,}"),
    )


def _warn_if_singular(name: str, *sides: Tensor) -> None:
    count, width = min(map(len, sides)), sides[0].shape[1]
    if count <= width:
        _warn(name, count, width)
