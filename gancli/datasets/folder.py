"""Images of the user's own, in any folder or zip; and CelebA, which is such a folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from gancli.datasets.base import DatasetInfo, ImageDataset
from gancli.datasets.image_decoding import Decoding, Source, decode_cached
from gancli.errors import SettingError, UserError, require_at_least
from gancli.randomness import seeded

log = logging.getLogger(__name__)
HOLDOUT_FOLDERS = ("test", "val", "valid", "validation")


class Folder(ImageDataset):
    """Images of a folder or zip, however nested, at one size.

    resolution: pixels of a side, or [height, width]. channels: 1 grey, 3 RGB. fit: see `Decoding`. labels: whether
    the top folders are classes. holdout: share held out, unless the top folders are `train` and `test` (or `val`).
    unreadable: skip such files, or fail. limit, flip: see `ImageDataset`. cache: folder for decoded images. Raises
    SettingError, UserError.
    """

    def __init__(
        self,
        *,
        path: str,
        resolution: int | list[int] = 64,
        channels: Literal[1, 3] = 3,
        fit: Literal["crop", "stretch"] = "crop",
        labels: bool = False,
        holdout: float = 0.1,
        unreadable: Literal["skip", "fail"] = "skip",
        limit: int | None = None,
        flip: bool = False,
        cache: str = "~/.cache/gancli",
    ) -> None:
        self.describe(resolution=resolution, holdout=holdout, limit=limit)
        decoding = Decoding(*_height_and_width(resolution), channels=channels, fit=fit)
        source = Source(Path(path).expanduser())
        images, names = decode_cached(source, decoding, root=Path(cache).expanduser(), unreadable=unreadable)
        names = _without_common_folders(names)
        train_indices, holdout_indices, depth = _split(names, holdout)
        if not len(train_indices):
            raise UserError(f"dataset.path={path}: no image is left to train on; it has {len(names)}")
        classes, self.class_names = _classes(names, depth, path) if labels else (None, [])
        super().__init__(
            images,
            classes,
            train_indices=train_indices,
            holdout_indices=holdout_indices,
            num_classes=len(self.class_names),
            limit=limit,
            flip=flip,
        )
        self.resize = str(decoding)

    @classmethod
    def describe(
        cls,
        *,
        resolution: int | list[int] = 64,
        channels: int = 3,
        labels: bool = False,
        holdout: float | None = None,
        limit: int | None = None,
        **settings: Any,
    ) -> DatasetInfo:
        if holdout is not None and not 0 < holdout < 1:
            raise SettingError(f"holdout={holdout}: a share of the images, above 0 and below 1")
        require_at_least(1, limit=limit)
        return DatasetInfo((channels, *_height_and_width(resolution)), None if labels else 0)


class ImagesToMeasure(ImageDataset):
    """Every image of a folder or zip, RGB, none held out: for `gancli evaluate folders=…`.

    resolution: as for `Folder`, or None for the size that all images have. key: the setting that gave `path`, for
    messages. Raises SettingError, UserError.
    """

    def __init__(self, *, path: str, resolution: int | list[int] | None, cache: str, key: str) -> None:
        source = Source(Path(path).expanduser(), key=key)
        size = _height_and_width(resolution) if resolution is not None else source.common_size()
        decoding = Decoding(*size, channels=3, fit="crop")
        images, _ = decode_cached(source, decoding, root=Path(cache).expanduser())
        super().__init__(images, train_indices=torch.arange(len(images)), holdout_indices=torch.arange(0))
        self.resize = "none" if resolution is None else str(decoding)


class CelebA(ImageDataset):
    """CelebA's aligned faces, 178x218 pixels cut to a square (Liu et al., ICCV 2015); unlabelled.

    root: holds celeba/img_align_celeba/ or celeba/img_align_celeba.zip, and celeba/list_eval_partition.txt, whose test
    part is held out; without that list every tenth image is. download: let torchvision fetch them (it needs the
    package gdown). limit, flip: see `ImageDataset`. cache: folder for decoded images. Raises SettingError, UserError.
    """

    def __init__(
        self,
        *,
        root: str = "data",
        download: bool = True,
        resolution: int = 64,
        limit: int | None = None,
        flip: bool = True,
        cache: str = "~/.cache/gancli",
    ) -> None:
        self.describe(resolution=resolution, limit=limit)
        base = Path(root).expanduser() / "celeba"
        decoding = Decoding(*_height_and_width(resolution), channels=3, fit="crop")
        images, names = decode_cached(Source(_find_faces(base, download)), decoding, root=Path(cache).expanduser())
        held_out = torch.arange(len(names)) % 10 == 0
        partition = base / "list_eval_partition.txt"
        if partition.is_file():
            test = {line.split()[0] for line in partition.read_text().splitlines() if line.split()[1:] == ["2"]}
            held_out = torch.tensor([Path(name).name in test for name in names])
        train_indices, holdout_indices = torch.nonzero(~held_out)[:, 0], torch.nonzero(held_out)[:, 0]
        super().__init__(images, train_indices=train_indices, holdout_indices=holdout_indices, limit=limit, flip=flip)
        self.resize = str(decoding)

    @classmethod
    def describe(cls, *, resolution: int = 64, limit: int | None = None, **settings: Any) -> DatasetInfo:
        require_at_least(1, limit=limit)
        return DatasetInfo((3, *_height_and_width(resolution)), 0)


def _find_faces(base: Path, download: bool) -> Path:
    """Returns CelebA's folder or zip of images under `base`, downloaded where that is allowed. Raises UserError."""
    places = [base / "img_align_celeba", base / "img_align_celeba.zip"]
    reason = "dataset.download=false"
    if download and not any(place.exists() for place in places):
        try:
            from torchvision.datasets import CelebA as TorchvisionCelebA

            TorchvisionCelebA(base.parent, split="all", download=True)
        except Exception as failed:  # of the network, the server or the disk
            reason = "download failed: " + (str(failed).splitlines() or [type(failed).__name__])[0]
    for place in places:
        if place.exists():
            return place
    raise UserError(
        f"dataset.root={base.parent}: CelebA is not there, and {reason}. Put these there:\n"
        f"  {places[0].absolute()}/ (or {places[1].name})\n  {(base / 'list_eval_partition.txt').absolute()}"
    )


def _height_and_width(resolution: int | Sequence[int]) -> tuple[int, int]:
    sides = (resolution, resolution) if isinstance(resolution, int) else tuple(resolution)
    if len(sides) != 2 or min(sides) < 1:
        raise SettingError(f"resolution={resolution}: pixels of a side, or [height,width]")
    return sides[0], sides[1]


def _without_common_folders(names: list[str]) -> list[str]:
    """Returns the names without the folders that all images lie in, such as the one that was zipped."""
    parts = [name.split("/") for name in names]
    while min(map(len, parts)) > 2 and len({part[0] for part in parts}) == 1:
        parts = [part[1:] for part in parts]
    return ["/".join(part) for part in parts]


def _split(names: list[str], holdout: float) -> tuple[Tensor, Tensor, int]:
    """Returns indices to train on and to hold out, and the number of folders above the class folders (0 or 1)."""
    top_folders = {name.split("/")[0] if "/" in name else "" for name in names}
    held_out = top_folders & set(HOLDOUT_FOLDERS)
    if held_out and top_folders == held_out | {"train"}:
        log.info("folders train and %s are taken as the split", ", ".join(sorted(held_out)))
        is_train = torch.tensor([name.startswith("train/") for name in names])
        return torch.nonzero(is_train)[:, 0], torch.nonzero(~is_train)[:, 0], 1
    order = torch.randperm(len(names), generator=seeded("holdout"))
    count = max(1, int(holdout * len(names)))  # measuring the discriminator needs at least one
    return order[count:].sort().values, order[:count].sort().values, 0


def _classes(names: list[str], depth: int, path: str) -> tuple[Tensor, list[str]]:
    """Returns the class (N,) of each image, the rank of its folder at `depth`, and the folders. Raises UserError."""
    folders = [name.split("/")[depth] if name.count("/") > depth else None for name in names]
    if None in folders:
        loose = names[folders.index(None)]
        raise UserError(f"dataset.labels=true: {path} has images outside of class folders, such as {loose}")
    classes = sorted({folder for folder in folders if folder is not None})
    log.info("classes: %s", ", ".join(f"{number} {folder}" for number, folder in enumerate(classes[:20])))
    return torch.tensor([classes.index(str(folder)) for folder in folders]), classes
