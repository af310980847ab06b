"""Density and coverage: precision and recall that are robust to outliers."""

from __future__ import annotations

from torch import Tensor, cat, cdist

from gancli.datasets.base import Dataset
from gancli.errors import require_at_least
from gancli.metrics.base import Better, Metric, Samples
from gancli.metrics.features import Features

_ROWS = 1000  # of a distance matrix in memory at once


class DensityCoverage(Metric):
    """Density: the mean number of real balls around a generated sample, over k. Coverage: the share of real balls
    that contain a generated sample.

    A ball around a real sample reaches to its k-th nearest other real sample, k = `neighbours` (Naeem et al., ICML
    2020, eq. 5 and 8). Density may exceed 1. count: samples of either side at most. Raises SettingError.
    """

    def __init__(self, *, neighbours: int = 5, count: int = 10_000) -> None:
        require_at_least(1, neighbours=neighbours, count=count)
        self.neighbours, self.count = neighbours, count

    def names(self, features: Features | None) -> dict[str, Better]:
        return {"density": "higher", "coverage": "higher"}

    def __call__(self, generated: Samples, real: Samples, dataset: Dataset) -> dict[str, float]:
        fake, true = generated.feature_subset(self.count), real.feature_subset(self.count)
        k = min(self.neighbours, len(true) - 1)
        radii = nearest(true, true, count=k, skip=1)[0][:, -1:]
        inside, covered = 0, 0
        for rows, radius in zip(true.split(_ROWS), radii.split(_ROWS), strict=True):
            hits = cdist(rows, fake) < radius
            inside += int(hits.sum())
            covered += int(hits.any(1).sum())
        return {"density": inside / (k * len(fake)), "coverage": covered / len(true)}


def nearest(points: Tensor, among: Tensor, *, count: int = 1, skip: int = 0) -> tuple[Tensor, Tensor]:
    """Returns distances and indices, (N, count) each, of the nearest of `among` (M, F) to each of `points` (N, F).

    skip: number of the very nearest to leave out, such as 1 for the point itself.
    """
    distances, indices = [], []
    for rows in points.split(_ROWS):
        closest = cdist(rows, among).topk(count + skip, dim=1, largest=False)
        distances.append(closest.values[:, skip:])
        indices.append(closest.indices[:, skip:])
    return cat(distances), cat(indices)
