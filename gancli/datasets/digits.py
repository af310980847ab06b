"""The embedded data set: scikit-learn's handwritten digits."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gancli.datasets.base import DatasetInfo, ImageDataset
from gancli.errors import UserError, require_at_least
from gancli.randomness import seeded


class Digits(ImageDataset):
    """1,797 digits of 8x8 pixels in 17 shades, ten classes (Alpaydin & Kaynak, UCI, 1998).

    Every tenth of them, in a fixed random order, is held out. limit, flip: see `ImageDataset`. Raises SettingError,
    and UserError where scikit-learn's file is missing.
    """

    @classmethod
    def describe(cls, *, limit: int | None = None, **settings: Any) -> DatasetInfo:
        require_at_least(1, limit=limit)
        return DatasetInfo((1, 8, 8), 10)

    def __init__(self, *, limit: int | None = None, flip: bool = False) -> None:
        spec = find_spec("sklearn")  # found but not imported, which would take seconds
        file = Path(spec.origin if spec and spec.origin else "").parent / "datasets" / "data" / "digits.csv.gz"
        if not file.is_file():
            raise UserError(f"dataset=digits: {file} is missing; pip install scikit-learn brings it")
        table = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.int64))
        table = table[torch.randperm(len(table), generator=seeded("digits"))]
        rows = torch.arange(len(table))
        super().__init__(
            (table[:, :64] * 255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8),
            table[:, 64].clone(),
            train_indices=rows[rows % 10 != 0],
            holdout_indices=rows[rows % 10 == 0],
            num_classes=10,
            limit=limit,
            flip=flip,
        )
