"""The named data sets of torchvision, which is imported here only, when one of them is asked for."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from gancli.datasets.base import DatasetInfo, ImageDataset
from gancli.errors import UserError, require_at_least

log = logging.getLogger(__name__)
Name = Literal["MNIST", "FashionMNIST", "KMNIST", "CIFAR10", "CIFAR100", "SVHN"]

_GREY, _RGB = (1, 28, 28), (3, 32, 32)
_INFO = {
    "MNIST": DatasetInfo(_GREY, 10),
    "FashionMNIST": DatasetInfo(_GREY, 10),
    "KMNIST": DatasetInfo(_GREY, 10),
    "CIFAR10": DatasetInfo(_RGB, 10),
    "CIFAR100": DatasetInfo(_RGB, 100),
    "SVHN": DatasetInfo(_RGB, 10),
}
_CLASS_NAMES = {
    "FashionMNIST": [
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ],
    "CIFAR10": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
}


class TorchvisionSet(ImageDataset):
    """A named data set; its test part is held out.

    name: torchvision's. root: folder of torchvision's data sets. download: fetch what is missing there. limit, flip:
    see `ImageDataset`. Raises SettingError, and UserError where files are missing.
    """

    @classmethod
    def describe(cls, *, name: str = "", limit: int | None = None, **settings: Any) -> DatasetInfo | None:
        require_at_least(1, limit=limit)
        return _INFO.get(name)

    def __init__(
        self,
        *,
        name: Name,
        root: str = "data",
        download: bool = True,
        limit: int | None = None,
        flip: bool = False,
    ) -> None:
        images, labels = load(name, root=root, download=download, train=True)
        test_images, test_labels = load(name, root=root, download=download, train=False)
        self.photographs = images.shape[1] == 3  # CIFAR and SVHN; the others are grey drawings of things
        indices = torch.arange(len(images) + len(test_images))
        super().__init__(
            torch.cat([images, test_images]),
            torch.cat([labels, test_labels]),
            train_indices=indices[: len(images)],
            holdout_indices=indices[len(images) :],
            num_classes=int(labels.max()) + 1,
            limit=limit,
            flip=flip,
        )
        self.class_names = _CLASS_NAMES.get(name, ())


def load(name: str, *, root: str, download: bool, train: bool) -> tuple[Tensor, Tensor]:
    """Returns uint8 images (N, C, H, W) and int64 labels (N,) of one part.

    Raises UserError that says which files to put where.
    """
    from torchvision import datasets

    kind, folder = getattr(datasets, name), Path(root).expanduser()
    part: dict[str, Any] = {"split": "train" if train else "test"} if name == "SVHN" else {"train": train}
    try:
        dataset = kind(folder, download=False, **part)
    except Exception as missing:  # files are missing, or broken, for which parsers raise all sorts
        reason: Exception = missing
        dataset = None
        if download:
            try:
                dataset = kind(folder, download=True, **part)
            except Exception as failed:  # of the network, the server or the disk
                reason = failed
        if dataset is None:
            cause = f"download failed: {reason}" if download else "dataset.download=false"
            raise UserError(
                f"dataset.root={root}: {name} is not there, and {cause.splitlines()[0]}. Put these files there:\n  "
                + "\n  ".join(files_of(kind, folder))
            ) from None
    images, labels = torch.as_tensor(dataset.data), getattr(dataset, "labels", None)
    if images.ndim == 3:
        images = images[:, None]
    elif name != "SVHN":  # the only one with channels first
        images = images.permute(0, 3, 1, 2)
    return images.contiguous(), torch.as_tensor(labels if labels is not None else dataset.targets, dtype=torch.int64)


def files_of(kind: Any, folder: Path) -> list[str]:
    """Returns the files that torchvision's class `kind` expects under `folder`."""
    folder = folder.absolute()
    if hasattr(kind, "resources"):
        return [f"{folder / kind.__name__ / 'raw' / name.removesuffix('.gz')}" for name, _ in kind.resources]
    if hasattr(kind, "split_list"):
        return [str(folder / kind.split_list[part][1]) for part in ("train", "test")]
    return [f"{folder / kind.filename} (unpacked there, into {kind.base_folder}/)"]
