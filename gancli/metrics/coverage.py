"""Density and coverage: precision and recall that are robust to outliers."""

from __future__ import annotations

import logging
from functools import cache
from hashlib import blake2b

from torch import Tensor, arange, cat, cdist

from gancli.datasets.base import Dataset, subset
from gancli.errors import require_at_least
from gancli.metrics.base import Metric, Number, Samples
from gancli.metrics.features import Features
from gancli.progress import progress

log = logging.getLogger(__name__)
ROWS = 1000  # of a distance matrix in memory at once


class DensityCoverage(Metric):
    """Density: the mean number of real balls around a generated sample, over k. Coverage: the share of real balls
    that contain a generated sample.

    A ball around a real sample reaches to its k-th nearest other real sample, k = `neighbours` (Naeem et al., ICML
    2020, eq. 5 and 8). Copies of a real sample count once, or its ball would have no inside. Density may exceed 1.
    count: samples of either side at most. Raises SettingError, and ArithmeticError for real samples that are all equal.
    """

    def __init__(self, *, neighbours: int = 5, count: int = 10_000) -> None:
        require_at_least(1, neighbours=neighbours)
        require_at_least(2, count=count)
        self.neighbours, self.count = neighbours, count

    def numbers(self, features: Features | None) -> dict[str, Number]:
        return {
            "density": Number("higher", "quality, robust to outliers; about 1 for real ones"),
            "coverage": Number("higher", "share of real samples with a sample nearby: variety"),
        }

    def __call__(self, generated: Samples, real: Samples, dataset: Dataset) -> dict[str, float]:
        fake, true = generated.feature_subset(self.count), real.features[_first_of_each(real, self.count)]
        k = min(self.neighbours, len(true) - 1)
        if not k:
            raise ArithmeticError("all real samples are equal")
        radii = nearest(true, true, count=k, skip=1)[0][:, -1:]
        inside, covered = 0, 0
        for rows in progress(arange(len(true)).split(ROWS), title="density and coverage", total=len(true), size=len):
            hits = cdist(true[rows], fake) < radii[rows]
            inside += int(hits.sum())
            covered += int(hits.any(1).sum())
        return {"density": inside / (k * len(fake)), "coverage": covered / len(true)}


def _first_of_each(samples: Samples, count: int) -> list[int]:
    """Returns the rows of `feature_subset(count)` without those that hold the same as an earlier one."""
    rows = subset(len(samples), count).tolist()
    first: dict[bytes, int] = {}
    for row in rows:
        first.setdefault(blake2b(samples.data[row].numpy().tobytes(), digest_size=16).digest(), row)
    if len(first) < len(rows):
        _tell_of_copies(len(rows) - len(first), len(rows))
    return list(first.values())


@cache  # once, however often the same samples are measured
def _tell_of_copies(copies: int, count: int) -> None:
    log.info(
        "density, coverage: %s of %s real samples are copies of others, which count once", f"{copies:,}", f"{count:,}"
    )


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
