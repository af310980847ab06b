"""Checkpoints: the only place that writes or reads them.

A file holds tensors and plain values only and is read with `weights_only=True`, so reading one never
runs code. Its name is the number of images seen, so names sort by progress.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pickle
import re
import threading
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gancli.errors import UserError

if TYPE_CHECKING:
    from gancli.distributed import Team

log = logging.getLogger(__name__)
_NAME = re.compile(r"images-(\d{12})\.pt")
FORMAT = 1


class Unreadable(Exception):
    """The file is cut short, damaged, or holds more than tensors and plain values."""


class Checkpoints:
    """The checkpoints of one run.

    folder: made at the first `save`. every: images between two, also written at the end and on a signal.
    keep: how many of the newest stay. The file best.pt, which evaluations choose, stays besides.
    """

    def __init__(self, folder: Path, *, every: int = 50_000, keep: int = 3) -> None:
        if every < 1:
            raise ValueError(f"every={every}: a number of images, at least 1")
        if keep < 1:
            raise ValueError(f"keep={keep}: at least the newest checkpoint must stay")
        self.folder, self.every, self.keep = Path(folder), every, keep

    def path(self, images: int) -> Path:
        """Where the checkpoint after `images` images is."""
        return self.folder / f"images-{images:012d}.pt"

    def files(self) -> list[Path]:
        """Oldest first."""
        return sorted(file for file in self.folder.glob("images-*.pt") if _NAME.fullmatch(file.name))

    def save(self, state: dict[str, Any], *, images: int, healthy: int | None = None) -> Path:
        """Writes a new file whole or not at all, then lets go of those past `keep`.

        healthy: the newest of those after at most so many images stays too, to go back to.
        Raises OSError, with everything saved before still in place.
        """
        self._write(self.path(images), state, images=images)
        others = [file for file in self.files() if file != self.path(images)]  # a damaged one may be newer
        back = [file for file in others if healthy is not None and file.name <= self.path(healthy).name][-1:]
        for old in others[: max(0, len(others) + 1 - self.keep)]:
            if old not in back:
                old.unlink(missing_ok=True)
        return self.path(images)

    def save_best(self, state: dict[str, Any], *, images: int) -> None:
        """Writes best.pt anew, whole or not at all. Raises OSError."""
        self._write(self.folder / "best.pt", state, images=images)

    def _write(self, path: Path, state: dict[str, Any], *, images: int) -> None:
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, "images": images, **state}, buffer)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, buffer.getbuffer())

    def forget_after(self, images: int) -> None:
        """Deletes checkpoints of later steps: a run that went back must not resume from them."""
        for file in self.files():
            if file.name > self.path(images).name:
                file.unlink(missing_ok=True)

    def newest(self, *, up_to: int | None = None) -> dict[str, Any] | None:
        """The newest state that can be read, or None; damaged ones are passed over with a warning.

        up_to: of those after at most so many images.
        """
        for file in reversed(self.files()):
            if up_to is not None and file.name > self.path(up_to).name:
                continue
            try:
                return read(file)
            except Unreadable as error:
                log.warning("%s is passed over: %s", file, error)
        return None

    def newest_for(self, team: Team, *, up_to: int | None = None) -> dict[str, Any] | None:
        """The same for all processes: the first one chooses, the others read that very file. Raises UserError."""
        found = None

        def look() -> int | None:
            nonlocal found
            found = self.newest(up_to=up_to)
            return None if found is None else int(found["images"])

        images = team.said(look)
        return found if images is None or team.first else self.pick(images)[1]

    def pick(self, which: str | int) -> tuple[Path, dict[str, Any]]:
        """The checkpoint called "last", "best" or by its number of images. Raises UserError."""
        files = self.files()
        if which == "last":
            state = self.newest()
            if state is None:
                raise UserError(
                    f"{self.folder}: no readable checkpoint here; train further with resume={self.folder.parent}"
                )
            return self.path(state["images"]), state
        file = self.folder / "best.pt" if which == "best" else self.folder / _named(which)
        if not file.exists():
            there = ", ".join(str(int(file.stem.split("-")[1])) for file in files) or "none"
            why = "nothing chose a best one" if which == "best" else "not"
            raise UserError(f"checkpoint={which}: {why} in {self.folder}; say last or a number of images of: {there}")
        try:
            return file, read(file)
        except Unreadable as error:
            raise UserError(f"checkpoint={which}: {file} {error}") from None


def _named(which: str | int) -> str:
    digits = str(which).replace("_", "")
    if not digits.isdecimal():
        raise UserError(f"checkpoint={which}: say last, best or a number of images")
    return f"images-{int(digits):012d}.pt"


def read(file: Path) -> dict[str, Any]:
    """One checkpoint's state, on the CPU. Raises Unreadable."""
    try:
        with zipfile.ZipFile(file) as archive:  # torch does not look at the check sums, so we do
            damaged = archive.testzip() or next((e.filename for e in archive.infolist() if e.external_attr), None)
        if damaged is not None:
            raise Unreadable(f"is damaged in {damaged}")
        state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise Unreadable(
            "holds more than tensors and plain values, and is refused: reading it could run code"
        ) from None
    except (OSError, zipfile.BadZipFile, RuntimeError, EOFError, KeyError, ValueError, zlib.error) as error:
        raise Unreadable(f"is cut short or damaged ({str(error).splitlines()[0] if str(error) else 'empty'})") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise Unreadable("is not a checkpoint of this version")
    return state


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Writes under a temporary name, flushes to the disk, renames. Leaves nothing behind on failure."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            error.filename = str(path)  # a full disk does not say where it is
        raise
    if os.name == "posix":  # the rename itself reaches the disk with its folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # some network file systems know no such thing
                os.fsync(folder)
        finally:
            os.close(folder)
