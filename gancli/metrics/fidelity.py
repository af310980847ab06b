"""The field's standard metrics, computed by torch-fidelity (Obukhov et al.) from any extractor's features."""

from __future__ import annotations

import math
from typing import ClassVar

import torch

from gancli.datasets.base import Dataset
from gancli.errors import SettingError
from gancli.metrics.base import Better, Metric, Samples
from gancli.metrics.features import Features


class FID(Metric):
    """Fréchet distance between Gaussians fitted to the features (Heusel et al., NeurIPS 2017, eq. 6)."""

    values: ClassVar[dict[str, Better]] = {"fid": "lower"}

    def __call__(self, generated: Samples, real: Samples, dataset: Dataset) -> dict[str, float]:
        return {"fid": frechet(generated.features, real.features)}


class FIDPerClass(Metric):
    """FID within each class, and the mean of them; for runs that were trained with labels."""

    values: ClassVar[dict[str, Better]] = {"fid_class_mean": "lower"}
    also: ClassVar[tuple[str, ...]] = ("fid_class_*",)
    needs_labels = True

    def suits(self, dataset: Dataset, features: Features | None) -> bool:
        return features is not None and 0 < dataset.num_classes <= 100

    def __call__(self, generated: Samples, real: Samples, dataset: Dataset) -> dict[str, float]:
        assert generated.labels is not None and real.labels is not None
        found = {}
        for label in range(dataset.num_classes):
            parts = [side.features[side.labels == label] for side in (generated, real)]
            if min(map(len, parts)) > 1:
                found[f"fid_class_{label}"] = frechet(*parts)
        return {"fid_class_mean": sum(found.values()) / len(found) if found else math.nan, **found}


class KID(Metric):
    """Squared maximum mean discrepancy, cubic kernel, mean over subsets (Bińkowski et al., ICLR 2018, section 3.2).

    subsets, subset_size: how many, and samples in each (fewer where there are fewer samples).
    """

    values: ClassVar[dict[str, Better]] = {"kid": "lower"}

    def __init__(self, *, subsets: int = 100, subset_size: int = 1000) -> None:
        _at_least_one(subsets=subsets)
        if subset_size < 2:
            raise SettingError(f"subset_size={subset_size}: at least 2")
        self.subsets, self.subset_size = subsets, subset_size

    def __call__(self, generated: Samples, real: Samples, dataset: Dataset) -> dict[str, float]:
        from torch_fidelity.metric_kid import kid_features_to_metric

        size = min(self.subset_size, len(generated), len(real))
        found = kid_features_to_metric(
            generated.features, real.features, kid_subsets=self.subsets, kid_subset_size=size, verbose=False
        )
        mean, std = found["kernel_inception_distance_mean"], found["kernel_inception_distance_std"]
        return {"kid": mean, "kid_std": std}


class InceptionScore(Metric):
    """exp E KL(p(y|x) || p(y)), with the classes of the extractor (Salimans et al., NeurIPS 2016, section 4).

    splits: parts that it is the mean of (fewer where there are fewer samples).
    """

    values: ClassVar[dict[str, Better]] = {"inception_score": "higher"}

    def __init__(self, *, splits: int = 10) -> None:
        _at_least_one(splits=splits)
        self.splits = splits

    def suits(self, dataset: Dataset, features: Features | None) -> bool:
        return features is not None and features.names_classes

    def __call__(self, generated: Samples, real: Samples, dataset: Dataset) -> dict[str, float]:
        from torch_fidelity.metric_isc import isc_features_to_metric

        logits = generated.logits
        found = isc_features_to_metric(logits, splits=min(self.splits, len(logits)))
        return {
            "inception_score": found["inception_score_mean"],
            "inception_score_std": found["inception_score_std"],
        }


class PrecisionRecall(Metric):
    """Share of generated samples within the real manifold, and of real ones within the generated.

    A manifold is a union of balls up to the `neighbours`-th neighbour (Kynkäänniemi et al., NeurIPS 2019,
    eq. 1; fewer where there are fewer samples). count: samples of either side at most; the cost is its square.
    """

    values: ClassVar[dict[str, Better]] = {"precision": "higher", "recall": "higher"}

    def __init__(self, *, neighbours: int = 3, count: int = 10_000) -> None:
        _at_least_one(neighbours=neighbours, count=count)
        self.neighbours, self.count = neighbours, count

    def __call__(self, generated: Samples, real: Samples, dataset: Dataset) -> dict[str, float]:
        from torch_fidelity.metric_prc import prc_features_to_metric

        sides = generated.take(self.count), real.take(self.count)
        k = min(self.neighbours, *(len(side) - 1 for side in sides))
        found = prc_features_to_metric(*sides, prc_neighborhood=k, save_cpu_ram=True, verbose=False)
        return {"precision": found["precision"], "recall": found["recall"]}


def frechet(generated: torch.Tensor, real: torch.Tensor) -> float:
    """FID between features (N, F) and (M, F)."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    sides = [fid_features_to_statistics(features) for features in (generated, real)]
    return float(fid_statistics_to_metric(*sides, verbose=False)["frechet_inception_distance"])


def _at_least_one(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise SettingError(f"{name}={value}: at least 1")
