"""Checkpoints: the only place that writes or reads them.

A file holds tensors and plain values only and is read with `weights_only=True`, so reading one never runs code. Its
name is the number of images seen, so names sort by progress.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from gancli.datasets.base import Dataset
from gancli.distributed.process_group import ProcessGroup
from gancli.errors import InvalidTensorFile, UserError, require_at_least, require_minutes
from gancli.files import tensor_files
from gancli.overrides import typed
from gancli.training.position import Position

log = logging.getLogger(__name__)
_NAME = re.compile(r"images-(\d{12})\.pt")
FORMAT = 2
OUTLINE = {  # what every checkpoint holds (see `tensor_files`)
    "format": int,
    "images": int,
    "step": int,
    "shape": list[int],  # of a sample
    "samples": int,  # of the data set
    "num_classes": int,  # that the generator takes
    "seconds": float,  # of training
    "generator": dict[str, Tensor],
    "discriminator": dict[str, Tensor],
    "ema": dict[str, Tensor],
}
_OPTIMIZER = {"state": dict[int, dict[str, Any]], "param_groups": list[dict[str, Any]]}
_HEALTH = {"accuracy": float, "norms": list[float], "last": dict[str, float], "most": dict[str, float]}
RESUME_OUTLINE = {  # and what a run needs besides, to go on; its parts check their own values when they load
    "threads": int,  # that the sums of a step were divided among
    "rollbacks": int,
    "lr_factor": float,
    "optimizers": {"generator": _OPTIMIZER, "discriminator": _OPTIMIZER},
    "augment": dict[str, Tensor],
    "logging": {"sums": dict[str, tuple[float, float]], "latest": dict[str, float]},
    "evaluation": {
        "scale": list[Any],
        "seconds": float,
        "first": float | None,
        "best": float | None,
        "best_images": int,
        "healthy_images": int,
        "health": _HEALTH,
    },
    "random": {
        "noise": Tensor,
        "torch": Tensor,
        "cuda": list[Tensor],
        "python": tuple[int, tuple[int, ...], float | None],
        "numpy": tuple[str, list[int], int, int, float],
    },
}
_LARGEST_SIDE = 2**16  # pixels
_LARGEST = {"num_classes": 2**20, "threads": 1024}


class Checkpoints:
    """The checkpoints of one run.

    folder: made at the first `save`. every: images between two checkpoints. minutes: longest time between two, also;
    the first comes after one minute; None for checkpoints by images only. The training loop also saves at the end and
    on a signal. keep: how many of the newest stay. best.pt, which evaluations choose, stays besides.
    Raises SettingError.
    """

    def __init__(self, folder: Path, *, every: int = 50_000, minutes: float | None = 5.0, keep: int = 3) -> None:
        require_at_least(1, every=every, keep=keep)
        require_minutes(minutes=minutes)
        self.folder, self.every, self.minutes, self.keep = Path(folder), every, minutes, keep

    def due(self, position: Position) -> bool:
        """Whether the step that led to `position` calls for a checkpoint."""
        return position.passed(self.every) or position.passed_time(self.minutes, first=60.0)

    def path(self, images: int) -> Path:
        """Returns the file of the checkpoint after `images` images."""
        return self.folder / f"images-{images:012d}.pt"

    def files(self) -> list[Path]:
        """Returns the checkpoints that are there, oldest first, without best.pt."""
        return sorted(file for file in self.folder.glob("images-*.pt") if _NAME.fullmatch(file.name))

    def save(self, state: dict[str, Any], *, images: int, healthy_images: int | None = None) -> Path:
        """Writes a new checkpoint atomically, then deletes the oldest ones past `keep`.

        healthy_images: the newest checkpoint after at most so many images stays too, for a rollback.
        Raises OSError, with everything saved before still in place.
        """
        self._write(self.path(images), state, images=images)
        others = [file for file in self.files() if file != self.path(images)]  # a damaged one may be newer
        good = [file for file in others if healthy_images is not None and file.name <= self.path(healthy_images).name][
            -1:
        ]
        for old in others[: max(0, len(others) + 1 - self.keep)]:
            if old not in good:
                old.unlink(missing_ok=True)
        return self.path(images)

    def save_best(self, state: dict[str, Any], *, images: int) -> None:
        """Replaces best.pt atomically. Raises OSError."""
        self._write(self.folder / "best.pt", state, images=images)

    def _write(self, path: Path, state: dict[str, Any], *, images: int) -> None:
        tensor_files.write(path, {"format": FORMAT, "images": images, **state})

    def delete_after(self, images: int) -> None:
        """Deletes the checkpoints of later steps: a run that was rolled back must not resume from them."""
        for file in self.files():
            if file.name > self.path(images).name:
                file.unlink(missing_ok=True)

    def newest(self, *, up_to: int | None = None) -> dict[str, Any] | None:
        """Returns the newest readable state, or None; damaged files are skipped with a warning.

        up_to: only checkpoints after at most so many images.
        """
        for file in reversed(self.files()):
            if up_to is not None and file.name > self.path(up_to).name:
                continue
            try:
                return read(file)
            except InvalidTensorFile as error:
                log.warning("%s is skipped: %s", file, error)
        return None

    def newest_on_all_processes(
        self, process_group: ProcessGroup, *, up_to: int | None = None
    ) -> dict[str, Any] | None:
        """Like `newest`: the main process chooses, and the others read that very file. Raises UserError."""
        found = None

        def choose() -> int | None:
            nonlocal found
            found = self.newest(up_to=up_to)
            return None if found is None else int(found["images"])

        images = process_group.broadcast_from_main(choose)
        return found if images is None or process_group.is_main_process else self.pick(images)[1]

    def pick(self, which: str | int) -> tuple[Path, dict[str, Any]]:
        """Returns the file and state of the checkpoint "last", "best", or by its number of images. Raises UserError."""
        files = self.files()
        if which == "last":
            state = self.newest()
            if state is None:
                go_on = typed("resume", self.folder.parent)
                raise UserError(f"{self.folder}: no readable checkpoint here; train further with {go_on}")
            return self.path(state["images"]), state
        file = self.folder / "best.pt" if which == "best" else self.folder / _file_name(which)
        if not file.exists():
            known = ", ".join(str(int(file.stem.split("-")[1])) for file in files) or "none"
            why = "no evaluation chose a best one" if which == "best" else "no such file"
            raise UserError(f"checkpoint={which}: {why} in {self.folder}; say last or a number of images of: {known}")
        try:
            return file, read(file)
        except InvalidTensorFile as error:
            raise UserError(f"checkpoint={which}: {file} {error}") from None


def _file_name(which: str | int) -> str:
    digits = str(which).replace("_", "")
    if not digits.isdecimal():
        raise UserError(f"checkpoint={which}: say last, best or a number of images")
    return f"images-{int(digits):012d}.pt"


def read(file: Path) -> dict[str, Any]:
    """Returns the state in one checkpoint file, on the CPU. Raises InvalidTensorFile."""
    try:
        state = tensor_files.read(file, {"format": int})
    except FileNotFoundError:
        raise InvalidTensorFile("does not exist") from None
    if state["format"] != FORMAT:
        raise InvalidTensorFile(f"has checkpoint format {state['format']}; this version reads format {FORMAT}")
    problem = tensor_files.misfit(state, OUTLINE) or _out_of_range(state)
    if problem is not None:
        raise InvalidTensorFile(f"does not hold the state of a run: {problem}")
    named = _NAME.fullmatch(file.name)
    if named is not None and int(named[1]) != state["images"]:
        raise InvalidTensorFile(f"is the checkpoint after {state['images']:,} images under another name")
    return state


def check_resumable(state: Mapping[str, Any]) -> None:
    """Raises ValueError for the state of a checkpoint that a run cannot go on from, such as one of gancli 0.2.0."""
    problem = tensor_files.misfit(state, RESUME_OUTLINE) or _first_beyond(state, threads=1, rollbacks=0, lr_factor=0)
    if problem is not None:
        raise ValueError(problem)


def change_of_data(state: Mapping[str, Any], dataset: Dataset) -> str | None:
    """Returns how `dataset` differs from the one that the checkpoint's run was trained on, or None where it does not.

    Files of the user's own are compared by their contents, wherever they lie.
    """
    before, now = state["samples"], len(dataset)
    content_hash = state.get("content_hash")  # which older checkpoints lack
    if before != now:
        return f"the data set had {before} samples, and has {now} now"
    if content_hash is not None and content_hash != dataset.content_hash:
        return f"the data set has other images than it had, though as many to train on, {now}"
    return None


def _first_beyond(state: Mapping[str, Any], **lowest: float) -> str | None:
    """Returns the first of the named numbers that is below its lowest value, or too large for any run."""
    beyond = (name for name, least in lowest.items() if not least <= state[name] <= _LARGEST.get(name, 2**63))
    return next((f"{name}={state[name]}" for name in beyond), None)


def _out_of_range(state: Mapping[str, Any]) -> str | None:
    """Returns which of the values, whose types are right, no run can have, or None."""
    shape = state["shape"]
    if len(shape) not in (1, 3) or not all(1 <= size <= _LARGEST_SIDE for size in shape):
        return f"shape={shape}"
    for network in ("generator", "discriminator", "ema"):
        weights = tensor_files.non_finite(state[network])
        if weights is not None:
            return f"{network}.{weights} is not finite, as after a divergence"
    return _first_beyond(state, images=0, step=0, samples=1, num_classes=0, seconds=0)
