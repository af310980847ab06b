"""Density and coverage: precision and recall that outliers do not sway."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, cdist

from gancli.datasets.base import Dataset
from gancli.errors import SettingError
from gancli.metrics.base import Better, Metric, Samples

_ROWS = 1000  # of a distance matrix that are held at once


class DensityCoverage(Metric):
    """How many real balls a generated sample lies in, over k; share of real balls with a generated sample in.

    A real ball reaches to the k-th nearest other real sample, k = `neighbours` (Naeem et al., ICML 2020,
    eq. 5 and 8). Density may pass 1. count: samples of either side at most.
    """

    values: ClassVar[dict[str, Better]] = {"density": "higher", "coverage": "higher"}

    def __init__(self, *, neighbours: int = 5, count: int = 10_000) -> None:
        for name, value in {"neighbours": neighbours, "count": count}.items():
            if value < 1:
                raise SettingError(f"{name}={value}: at least 1")
        self.neighbours, self.count = neighbours, count

    def __call__(self, generated: Samples, real: Samples, dataset: Dataset) -> dict[str, float]:
        fake, true = generated.take(self.count), real.take(self.count)
        k = min(self.neighbours, len(true) - 1)
        inside, covered = 0, 0
        for rows in true.split(_ROWS):
            radius = cdist(rows, true).kthvalue(k + 1, dim=1).values  # the nearest is the sample itself
            hits = cdist(rows, fake) < radius[:, None]
            inside += int(hits.sum())
            covered += int(hits.any(1).sum())
        return {"density": inside / (k * len(fake)), "coverage": covered / len(true)}


def nearest(points: Tensor, among: Tensor, *, count: int = 1, skip: int = 0) -> tuple[Tensor, Tensor]:
    """Distances and indices (N, count) of the nearest of `among` (M, F) to each of `points` (N, F).

    skip: leave out that many of the nearest, such as a point itself.
    """
    from torch import cat

    distances, indices = [], []
    for rows in points.split(_ROWS):
        found = cdist(rows, among).topk(count + skip, dim=1, largest=False)
        distances.append(found.values[:, skip:])
        indices.append(found.indices[:, skip:])
    return cat(distances), cat(indices)
