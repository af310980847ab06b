"""Whether samples are copies of training images, or of one another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gancli.datasets.base import Dataset, Split, subset
from gancli.errors import require_at_least
from gancli.metrics.base import Metric, Number, Samples, reference_samples
from gancli.metrics.coverage import nearest
from gancli.metrics.features import Features

_MAX_TRAIN = 100_000  # training images at most among which neighbours are searched
_PARTS: dict[Split, str] = {"train": "training", "holdout": "held-out"}
_DUPLICATE = 0.01  # quantile of the distances between real neighbours below which two samples are duplicates


class Memorisation(Metric):
    """Distances to training and held-out images in feature space.

    closer_than_holdout: the probability that a sample lies closer to the training images, all of them, than a held-out
    image does; 0.5 where samples are as new as held-out images, 1 where each is a copy. nearer_to_train: the share of
    samples that lie nearer to some training image than to any held-out one, among equally many of either; a generator
    that learned the distribution and not the data has 0.5, and so has one that copies images of a set much larger than
    that. duplicates: the share of samples with another sample as near as only 1 % of held-out images have one, among
    equally many of either. count: samples and held-out images at most. Raises SettingError.
    """

    def __init__(self, *, count: int = 5_000) -> None:
        require_at_least(3, count=count)  # for neighbours
        self.count = count

    def numbers(self, features: Features | None) -> dict[str, Number]:
        return {
            "closer_than_holdout": Number("lower", "0.5: as close to training images as new ones; 1: copies"),
            "nearer_to_train": Number("lower", "0.5: as near to training as to new images; 1: copies"),
            "duplicates": Number("lower", "share of samples with a near copy among the samples"),
        }

    def suits(self, dataset: Dataset, features: Features | None) -> bool:
        return features is not None and dataset.size("holdout") > 2

    def __call__(self, generated: Samples, real: Samples, dataset: Dataset) -> dict[str, float]:
        train = reference_samples(dataset, "train", _MAX_TRAIN, like=real).features
        holdout = reference_samples(dataset, "holdout", self.count, like=real).features
        fake = generated.feature_subset(self.count)
        # More images of one part lie closer to any sample, so equally many of either are compared.
        equal_train, equal_holdout = _equally_many(train, holdout)
        to_train, to_holdout = (_distance(fake, part) for part in (equal_train, equal_holdout))
        ties = 0.5 * (to_train == to_holdout).double()
        holdout_to_all_train = _distance(holdout, train).sort().values
        to_all_train = _distance(fake, train)
        closer, not_farther = (
            torch.searchsorted(holdout_to_all_train, to_all_train, right=right).double().mean() / len(holdout)
            for right in (False, True)
        )
        between_real, between_fake = (_distance(part, part, skip=1) for part in _equally_many(holdout, fake))
        return {
            "closer_than_holdout": float(1 - (closer + not_farther) / 2),  # ties count half
            "nearer_to_train": float(((to_train < to_holdout).double() + ties).mean()),
            "duplicates": float((between_fake <= between_real.quantile(_DUPLICATE)).double().mean()),
        }


def _distance(points: Tensor, among: Tensor, *, skip: int = 0) -> Tensor:
    return nearest(points, among, skip=skip)[0][:, 0]


def _equally_many(*parts: Tensor) -> list[Tensor]:
    return [part[subset(len(part), min(map(len, parts)))] for part in parts]


def nearest_images(
    generated: Samples,
    real: Samples,
    dataset: Dataset,
    *,
    count: int = 8,
    near: int = 4,
    splits: Sequence[Split] = ("train", "holdout"),
) -> tuple[Tensor, dict[int, str]]:
    """Returns images for a grid whose rows hold a sample and its nearest real images of each part in `splits`.

    At most `count` samples are shown, drawn at random, always the same ones; each has `near` neighbours of either part,
    the nearest first. real: with the extractor and cache for the real images. Returns uint8 (count, columns, C, H, W)
    and the headings, by the column that they begin at.
    """
    shown = subset(len(generated), count)
    features, columns, headings = generated.features[shown], [generated.data[shown][:, None]], {0: "sample"}
    for split in splits:
        side = reference_samples(dataset, split, _MAX_TRAIN, like=real)
        headings[sum(part.shape[1] for part in columns)] = f"nearest {_PARTS[split]} images"
        columns.append(side.data[nearest(features, side.features, count=min(near, len(side)))[1]])
    return torch.cat(columns, dim=1), headings
