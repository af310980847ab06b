"""The named data sets of torchvision. It is imported here only, and only when one of them is asked for."""

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


class TorchvisionSet(ImageDataset):
    """A named data set; its test part is the holdout.

    root: folder of torchvision's data sets. download: fetch what is missing there. limit, flip: see `ImageDataset`.
    Raises UserError, ValueError.
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
        more, more_labels = load(name, root=root, download=download, train=False)
        rows = torch.arange(len(images) + len(more))
        super().__init__(
            torch.cat([images, more]),
            torch.cat([labels, more_labels]),
            train=rows[: len(images)],
            held=rows[len(images) :],
            num_classes=int(labels.max()) + 1,
            limit=limit,
            flip=flip,
        )


def load(name: str, *, root: str, download: bool, train: bool) -> tuple[Tensor, Tensor]:
    """uint8 images (N, C, H, W) and int64 labels (N,). Raises UserError that says which files to put where."""
    from torchvision import datasets

    kind, folder = getattr(datasets, name), Path(root).expanduser()
    part: dict[str, Any] = {"split": "train" if train else "test"} if name == "SVHN" else {"train": train}
    try:
        found = kind(folder, download=False, **part)
    except Exception as missing:  # not there, or whatever a parser says of broken files
        reason: Exception = missing
        found = None
        if download:
            try:
                found = kind(folder, download=True, **part)
            except Exception as failed:  # whatever the network, the server or the disk said
                reason = failed
        if found is None:
            how = f"download failed: {reason}" if download else "dataset.download=false"
            raise UserError(
                f"dataset.root={root}: {name} is not there, and {str(how).splitlines()[0]}. Put these files there:\n  "
                + "\n  ".join(files_of(kind, folder))
            ) from None
    images, labels = torch.as_tensor(found.data), getattr(found, "labels", None)
    if images.ndim == 3:
        images = images[:, None]
    elif name != "SVHN":  # which alone keeps channels first
        images = images.permute(0, 3, 1, 2)
    return images.contiguous(), torch.as_tensor(labels if labels is not None else found.targets, dtype=torch.int64)


def files_of(kind: Any, folder: Path) -> list[str]:
    """The files that torchvision's class `kind` looks for under `folder`."""
    folder = folder.absolute()
    if hasattr(kind, "resources"):
        return [f"{folder / kind.__name__ / 'raw' / name.removesuffix('.gz')}" for name, _ in kind.resources]
    if hasattr(kind, "split_list"):
        return [str(folder / kind.split_list[part][1]) for part in ("train", "test")]
    return [f"{folder / kind.filename} (unpacked there, into {kind.base_folder}/)"]
