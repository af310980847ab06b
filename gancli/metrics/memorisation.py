"""Whether samples are copies: of training images, or of one another."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from gancli.datasets.base import Dataset, Split, subset
from gancli.errors import SettingError
from gancli.metrics.base import Better, Metric, Samples
from gancli.metrics.coverage import nearest
from gancli.metrics.features import Features

_SEARCHED = 100_000  # training images at most among which neighbours are looked for
_DUPLICATE = 0.01  # quantile of the distances between real neighbours below which two samples are one


class Memorisation(Metric):
    """Distances to training and held-out images in feature space.

    closer_than_holdout: the chance that a sample lies closer to the training images, all of them, than a held-out
    image does; 0.5 where samples are as new as those, 1 where each is a copy. nearer_to_train: share of samples
    that lie nearer to some training image than to any held-out one, among as many of either; a generator that
    learned the distribution, not the data, has 0.5, and so has one that copies images of a set much larger than that.
    duplicates: share of samples with another sample as near as only 1 % of held-out images have one,
    among as many of either.
    count: samples and held-out images at most.
    """

    values: ClassVar[dict[str, Better]] = {
        "closer_than_holdout": "lower",
        "nearer_to_train": "lower",
        "duplicates": "lower",
    }

    def __init__(self, *, count: int = 5_000) -> None:
        if count < 3:
            raise SettingError(f"count={count}: at least 3, for neighbours")
        self.count = count

    def suits(self, dataset: Dataset, features: Features | None) -> bool:
        return features is not None and dataset.size("holdout") > 2

    def __call__(self, generated: Samples, real: Samples, dataset: Dataset) -> dict[str, float]:
        whole, held = self._side("train", real, dataset), self._side("holdout", real, dataset)
        fake, even = generated.take(self.count), min(len(whole), len(held))
        to_train, to_held = (nearest(fake, some[subset(len(some), even)])[0][:, 0] for some in (whole, held))
        to_whole = nearest(fake, whole)[0][:, 0]
        fresh = nearest(held, whole)[0][:, 0].sort().values
        alike = min(len(fake), len(held))  # the more there are, the closer together they lie
        among = (some[subset(len(some), alike)] for some in (held, fake))
        between, twins = (nearest(some, some, skip=1)[0][:, 0] for some in among)
        ties = 0.5 * (to_train == to_held).double()
        return {
            "closer_than_holdout": float(1 - torch.searchsorted(fresh, to_whole).double().mean() / len(fresh)),
            "nearer_to_train": float(((to_train < to_held).double() + ties).mean()),
            "duplicates": float((twins <= between.quantile(_DUPLICATE)).double().mean()),
        }

    def _side(self, part: Split, real: Samples, dataset: Dataset) -> Tensor:
        """Features of images of one part: held-out ones at most `count`, training images nearly all."""
        count = _SEARCHED if part == "train" else self.count
        data, labels = dataset.reference(part, count)
        return Samples(data, labels, features=real.extractor, cache=real.cache).features


def neighbours(
    generated: Samples, real: Samples, dataset: Dataset, *, count: int = 8, near: int = 4
) -> tuple[Tensor, int]:
    """uint8 images row by row: a sample, its `near` nearest training images, its `near` nearest held-out ones.

    The samples shown are those that lie closest to a training image. Returns (count * columns, C, H, W)
    and the number of columns.
    """
    parts: tuple[Split, ...] = ("train", "holdout")
    sides = [Samples(*dataset.reference(part, _SEARCHED), features=real.extractor, cache=real.cache) for part in parts]
    rows = subset(len(generated), 2_000)
    fake = generated.features[rows]
    found = [nearest(fake, side.features, count=min(near, len(side))) for side in sides]
    order = found[0][0][:, 0].argsort()[:count]
    cells = []
    for row in order.tolist():
        cells.append(generated.data[rows[row]][None])
        cells += [side.data[indices[row]] for side, (_, indices) in zip(sides, found, strict=True)]
    return torch.cat(cells), 1 + sum(indices.shape[1] for _, indices in found)
