"""Images of the user's own, in any folder or zip; and CelebA, which is such a folder."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from gancli.datasets.base import DatasetInfo, ImageDataset
from gancli.datasets.cache import common_size, decode_cached
from gancli.datasets.decoding import Decoding
from gancli.datasets.files import find_images, without_common_folders
from gancli.datasets.unreadable import listed
from gancli.errors import SettingError, UserError, printable, require_at_least, require_memory, require_positive
from gancli.files.user_paths import cache_folder, expand
from gancli.randomness import seeded

log = logging.getLogger(__name__)
TRAIN_FOLDERS = ("train", "training")  # in any case
NAMED_CLASSES = 20  # in the log; run.json holds all of them
HOLDOUT_FOLDERS = ("test", "testing", "val", "valid", "validation")


class Folder(ImageDataset):
    """Images of a folder or zip, however nested, at one size.

    resolution: pixels of a side, or [height, width]. channels: 1 grey, 3 RGB. fit, white: see `Decoding`. labels:
    whether the top folders are classes. holdout: share held out, unless the top folders are `train` and `test` (or
    `val`). unreadable: skip such files, or fail. limit, flip: see `ImageDataset`. cache: folder for decoded images,
    None for the user's. Raises SettingError, UserError.
    """

    photographs = True

    def __init__(
        self,
        *,
        path: str,
        resolution: int | list[int] = 64,
        channels: Literal[1, 3] = 3,
        fit: Literal["crop", "stretch"] = "crop",
        white: float | None = None,
        labels: bool = False,
        holdout: float = 0.1,
        unreadable: Literal["skip", "fail"] = "skip",
        limit: int | None = None,
        flip: bool = False,
        cache: str | None = None,
    ) -> None:
        self.describe(path=path, resolution=resolution, holdout=holdout, limit=limit, white=white)
        decoding = Decoding(*_height_and_width(resolution), channels=channels, fit=fit, white=white)
        files = find_images(expand(path, key="dataset.path"))
        decoded = decode_cached(files, decoding, root=cache_folder(cache, key="dataset.cache"), unreadable=unreadable)
        names, common = without_common_folders(decoded.names)
        train_indices, holdout_indices, depth = _split(names, holdout)
        if not len(train_indices):
            few = "at least 2 are needed, one to train on and one to hold out (dataset.holdout)"
            raise UserError(f"{files.setting}: no image is left to train on; it has {len(names)}, and {few}")
        classes, self.class_names = _classes(names, depth, files.setting) if labels else (None, [])
        super().__init__(
            decoded.images,
            classes,
            train_indices=train_indices,
            holdout_indices=holdout_indices,
            num_classes=len(self.class_names),
            limit=limit,
            flip=flip,
        )
        self.resize, self.content_hash = str(decoding), decoded.content_hash
        if classes is not None:
            trained = {self.class_names[label] for label in classes[self.train_indices].unique().tolist()}
            below = [folder.removeprefix(common) for folder in files.folders if f"{folder}/".startswith(common)]
            known = {folder.split("/")[depth] for folder in below if folder.count("/") >= depth and folder}
            _warn_of_empty_classes(files.setting, known - trained)

    @classmethod
    def describe(
        cls,
        *,
        resolution: int | list[int] = 64,
        channels: int = 3,
        labels: bool = False,
        holdout: float | None = None,
        limit: int | None = None,
        white: float | None = None,
        path: str | None = None,
        **settings: Any,
    ) -> DatasetInfo:
        if path == "":
            raise SettingError("path='': a folder or a zip")
        if holdout is not None and not 0 < holdout < 1:
            raise SettingError(f"holdout={holdout}: a share of the images, above 0 and below 1")
        require_at_least(1, limit=limit)
        require_positive(white=white)
        return DatasetInfo((channels, *_height_and_width(resolution)), None if labels else 0)


class ImagesToMeasure(ImageDataset):
    """Every image of a folder or zip, RGB, none held out: for `gancli evaluate folders=…`.

    resolution: as for `Folder`, or None for the size that all images have. key: the setting that gave `path`, for
    messages. Raises SettingError, UserError.
    """

    photographs = True

    def __init__(self, *, path: str, resolution: int | list[int] | None, cache: str | None, key: str) -> None:
        files = find_images(expand(path, key=key), key=key)
        size = _height_and_width(resolution) if resolution is not None else common_size(files)
        decoding = Decoding(*size, channels=3, fit="crop")
        images = decode_cached(files, decoding, root=cache_folder(cache, key="cache")).images
        super().__init__(images, train_indices=torch.arange(len(images)), holdout_indices=torch.arange(0))
        self.resize = "none" if resolution is None else str(decoding)


class CelebA(ImageDataset):
    """CelebA's aligned faces, 178x218 pixels cut to a square (Liu et al., ICCV 2015); unlabelled.

    root: holds celeba/img_align_celeba/ or celeba/img_align_celeba.zip, and celeba/list_eval_partition.txt, whose test
    part is held out; without that list every tenth image is. download: let torchvision fetch them (it needs the
    package gdown). limit, flip: see `ImageDataset`. cache: folder for decoded images, None for the user's. Raises
    SettingError, UserError.
    """

    photographs = True

    def __init__(
        self,
        *,
        root: str = "data",
        download: bool = True,
        resolution: int = 64,
        limit: int | None = None,
        flip: bool = True,
        cache: str | None = None,
    ) -> None:
        self.describe(resolution=resolution, limit=limit)
        base = expand(root, key="dataset.root") / "celeba"
        decoding = Decoding(*_height_and_width(resolution), channels=3, fit="crop")
        files = find_images(_find_faces(base, download), key="dataset.root")
        images, names, self.content_hash = decode_cached(files, decoding, root=cache_folder(cache, key="dataset.cache"))
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
    require_memory(3 * sides[0] * sides[1], resolution=max(sides))  # of one image
    return sides[0], sides[1]


def _split(names: list[str], holdout: float) -> tuple[Tensor, Tensor, int]:
    """Returns indices to train on and to hold out, and the number of folders above the class folders (0 or 1)."""
    tops = [name.split("/")[0] if "/" in name else "" for name in names]
    train = {top for top in tops if top.lower() in TRAIN_FOLDERS}
    held_out = {top for top in tops if top.lower() in HOLDOUT_FOLDERS}
    others = set(tops) - train - held_out
    if train and held_out and not others:
        log.info("folders %s are taken as the split", listed([*sorted(train), *sorted(held_out)]))
        is_train = torch.tensor([top in train for top in tops])
        return torch.nonzero(is_train)[:, 0], torch.nonzero(~is_train)[:, 0], 1
    if train and held_out:
        beside = listed([top or "images in no folder" for top in sorted(others)], 3)
        split = listed(sorted(train | held_out))
        log.warning("folders %s are not taken as the split, since beside them there are %s", split, beside)
    order = torch.randperm(len(names), generator=seeded("holdout"))
    count = max(1, int(holdout * len(names)))  # measuring the discriminator needs at least one
    return order[count:].sort().values, order[:count].sort().values, 0


def _classes(names: list[str], depth: int, setting: str) -> tuple[Tensor, list[str]]:
    """Returns the class (N,) of each image, the rank of its folder at `depth`, and the folders. Raises UserError."""
    folders = [name.split("/")[depth] if name.count("/") > depth else "" for name in names]
    if "" in folders:
        loose = printable(names[folders.index("")])
        raise UserError(f"dataset.labels=true: {setting} has images outside of class folders, such as {loose}")
    classes = sorted(set(folders), key=natural_order)
    log.info("classes: %s", listed([f"{number} {folder}" for number, folder in enumerate(classes)], NAMED_CLASSES))
    label_of = {folder: label for label, folder in enumerate(classes)}
    return torch.tensor([label_of[folder] for folder in folders]), classes


def natural_order(name: str) -> list[tuple[int, str]]:
    """Returns a key by which names are sorted as people do: 2 before 10."""
    parts = [part.lstrip("0") if part.isdecimal() else part for part in re.split(r"([0-9]+)", name)]
    return [(len(part) if number % 2 else -1, part) for number, part in enumerate(parts)] + [(-2, name)]


def _warn_of_empty_classes(setting: str, names: set[str]) -> None:
    if names:
        shown = listed(sorted(names, key=natural_order))
        log.warning("%s: class folders without an image to train on: %s", setting, shown)
