"""Density and coverage: precision and recall that are robust to outliers."""

from __future__ import annotations

from torch import Tensor, arange, cat, cdist

from gancli.datasets.base import Dataset
from gancli.errors import require_at_least
from gancli.metrics.base import Metric, Number, Samples
from gancli.metrics.features import Features
from gancli.progress import progress

ROWS = 1000  # of a distance matrix in memory at once


class DensityCoverage(Metric):
    """Density: the mean number of real balls around a generated sample, over k. Coverage: the share of real balls
    that contain a generated sample.

    A ball around a real sample reaches to its k-th nearest other real sample, k = `neighbours` (Naeem et al., ICML
    2020, eq. 5 and 8). Density may exceed 1. count: samples of either side at most. Raises SettingError.
    """

    def __init__(self, *, neighbours: int = 5, count: int = 10_000) -> None:
        require_at_least(1, neighbours=neighbours, count=count)
        self.neighbours, self.count = neighbours, count

    def numbers(self, features: Features | None) -> dict[str, Number]:
        return {
            "density": Number("higher", "quality, robust to outliers; about 1 for real ones"),
            "coverage": Number("higher", "share of real samples with a sample nearby: variety"),
        }

    def __call__(self, generated: Samples, real: Samples, dataset: Dataset) -> dict[str, float]:
        fake, true = generated.feature_subset(self.count), real.feature_subset(self.count)
        k = min(self.neighbours, len(true) - 1)
        radii = nearest(true, true, count=k, skip=1)[0][:, -1:]
        inside, covered = 0, 0
        for rows in progress(arange(len(true)).split(ROWS), title="density and coverage", total=len(true), size=len):
            hits = cdist(true[rows], fake) < radii[rows]
            inside += int(hits.sum())
            covered += int(hits.any(1).sum())
        return {"density": inside / (k * len(fake)), "coverage": covered / len(true)}


def nearest(points: Tensor, among: Tensor, *, count: int = 1, skip: int = 0) -> tuple[Tensor, Tensor]:
    """Returns distances and indices, (N, count) each, of the nearest of `among` (M, F) to each of `points` (N, F).

    skip: number of the very nearest to leave out, such as 1 for the point itself.
    """
    distances, indices = [], []
    for rows in progress(points.split(ROWS), title="nearest neighbours", total=len(points), size=len):
        closest = cdist(rows, among).topk(count + skip, dim=1, largest=False)
        distances.append(closest.values[:, skip:])
        indices.append(closest.indices[:, skip:])
    return cat(distances), cat(indices)
