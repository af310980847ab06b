"""The standard metrics, computed by torch-fidelity (Obukhov et al., 2020) from any extractor's features.

A number is called FID, KID or Inception score only where the features are Inception's, as in publications.
"""

from __future__ import annotations

import math

from torch import Tensor

from gancli.datasets.base import Dataset
from gancli.errors import require_at_least
from gancli.metrics.base import Better, Metric, Samples
from gancli.metrics.features import INCEPTION, Features


def _name(features: Features | None, in_inception: str, prefix: str) -> str:
    """Returns the name of a number: `in_inception` in Inception's features, else the prefix and the extractor."""
    assert features is not None
    return in_inception if features.name == INCEPTION else f"{prefix}_{features.short_name}"


class FID(Metric):
    """Fréchet distance between Gaussians fitted to the features (Heusel et al., NeurIPS 2017, eq. 6).

    Its number is `fid` in Inception's features, else `fd_random`, `fd_classifier`, `fd_dinov2`, `fd_clip`.
    """

    def names(self, features: Features | None) -> dict[str, Better]:
        return {_name(features, "fid", "fd"): "lower"}

    def __call__(self, generated: Samples, real: Samples, dataset: Dataset) -> dict[str, float]:
        (name,) = self.names(generated.extractor)
        return {name: frechet_distance(generated.features, real.features)}


class FIDPerClass(Metric):
    """Fréchet distance within each class, and the mean over classes; for a generator that takes labels.

    Its numbers are `fid_class_mean`, `fid_class_0`, … in Inception's features, else `fd_classifier_class_mean`, ….
    """

    needs_labels = True

    def names(self, features: Features | None) -> dict[str, Better]:
        name = _name(features, "fid", "fd")
        return {f"{name}_class_mean": "lower", f"{name}_class_*": "lower"}

    def suits(self, dataset: Dataset, features: Features | None) -> bool:
        return features is not None and 0 < dataset.num_classes <= 100

    def __call__(self, generated: Samples, real: Samples, dataset: Dataset) -> dict[str, float]:
        assert generated.labels is not None and real.labels is not None
        name = _name(generated.extractor, "fid", "fd")
        distances = {}
        for label in range(dataset.num_classes):
            parts = [side.features[side.labels == label] for side in (generated, real)]
            if min(map(len, parts)) > 1:
                distances[f"{name}_class_{label}"] = frechet_distance(*parts)
        mean = sum(distances.values()) / len(distances) if distances else math.nan
        return {f"{name}_class_mean": mean, **distances}


class KID(Metric):
    """Squared maximum mean discrepancy, cubic kernel, mean over subsets (Bińkowski et al., ICLR 2018, section 3.2).

    Its numbers are `kid` and `kid_std` in Inception's features, else `kd_random` and `kd_random_std`, ….
    subsets, subset_size: their number, and the samples in each (fewer where there are fewer). Raises SettingError.
    """

    def __init__(self, *, subsets: int = 100, subset_size: int = 1000) -> None:
        require_at_least(1, subsets=subsets)
        require_at_least(2, subset_size=subset_size)
        self.subsets, self.subset_size = subsets, subset_size

    def names(self, features: Features | None) -> dict[str, Better]:
        name = _name(features, "kid", "kd")
        return {name: "lower", f"{name}_std": "lower"}

    def __call__(self, generated: Samples, real: Samples, dataset: Dataset) -> dict[str, float]:
        from torch_fidelity.metric_kid import kid_features_to_metric

        size = min(self.subset_size, len(generated), len(real))
        result = kid_features_to_metric(
            generated.features, real.features, kid_subsets=self.subsets, kid_subset_size=size, verbose=False
        )
        mean, std = result["kernel_inception_distance_mean"], result["kernel_inception_distance_std"]
        return dict(zip(self.names(generated.extractor), (mean, std), strict=True))


class InceptionScore(Metric):
    """exp E KL(p(y|x) || p(y)) with the extractor's classes (Salimans et al., NeurIPS 2016, section 4).

    Its numbers are `inception_score` and `inception_score_std` with Inception's classes, else `classifier_score` and
    `classifier_score_std`. splits: parts of the samples over which the mean and the standard deviation are taken
    (fewer where there are fewer samples). Raises SettingError.
    """

    def __init__(self, *, splits: int = 10) -> None:
        require_at_least(1, splits=splits)
        self.splits = splits

    def names(self, features: Features | None) -> dict[str, Better]:
        assert features is not None
        name = "inception_score" if features.name == INCEPTION else "classifier_score"
        return {name: "higher", f"{name}_std": "lower"}

    def suits(self, dataset: Dataset, features: Features | None) -> bool:
        return features is not None and features.names_classes

    def __call__(self, generated: Samples, real: Samples, dataset: Dataset) -> dict[str, float]:
        from torch_fidelity.metric_isc import isc_features_to_metric

        logits = generated.logits
        result = isc_features_to_metric(logits, splits=min(self.splits, len(logits)))
        mean, std = result["inception_score_mean"], result["inception_score_std"]
        return dict(zip(self.names(generated.extractor), (mean, std), strict=True))


class PrecisionRecall(Metric):
    """Precision: the share of generated samples within the real manifold. Recall: the share of real samples within
    the generated manifold.

    A manifold is a union of balls that reach to the `neighbours`-th neighbour (Kynkäänniemi et al., NeurIPS 2019,
    eq. 1; fewer where there are fewer samples). count: samples of either side at most; the cost grows with its
    square. Raises SettingError.
    """

    def __init__(self, *, neighbours: int = 3, count: int = 10_000) -> None:
        require_at_least(1, neighbours=neighbours, count=count)
        self.neighbours, self.count = neighbours, count

    def names(self, features: Features | None) -> dict[str, Better]:
        return {"precision": "higher", "recall": "higher"}

    def __call__(self, generated: Samples, real: Samples, dataset: Dataset) -> dict[str, float]:
        from torch_fidelity.metric_prc import prc_features_to_metric

        sides = generated.feature_subset(self.count), real.feature_subset(self.count)
        k = min(self.neighbours, *(len(side) - 1 for side in sides))
        result = prc_features_to_metric(*sides, prc_neighborhood=k, save_cpu_ram=True, verbose=False)
        return {"precision": result["precision"], "recall": result["recall"]}


def frechet_distance(generated: Tensor, real: Tensor) -> float:
    """Returns the Fréchet distance between Gaussians fitted to features (N, F) and (M, F)."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    sides = [fid_features_to_statistics(features) for features in (generated, real)]
    return float(fid_statistics_to_metric(*sides, verbose=False)["frechet_inception_distance"])
