"""Files and folders that are written completely or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def atomic_write(path: Path, content: bytes | memoryview) -> None:
    """Writes `content` under a temporary name, flushes it to the disk, and renames it to `path`.

    A failed write leaves the previous file unchanged and no temporary file behind. Raises OSError that names `path`.
    """
    temporary = _temporary_name(path)
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            error.filename = str(path)  # "no space left on device" does not say where
        raise
    if os.name == "posix":  # the rename itself reaches the disk with the directory entry
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # some network file systems cannot fsync a directory
                os.fsync(directory)
        finally:
            os.close(directory)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside `path` and lets it take the place of `path`, with all that is in it, at the end.

    After an error `path` is as before. A killed process leaves the old folder or the new one, and a temporary folder,
    which the next call deletes. Raises OSError.
    """
    sweep(path.parent, name=glob.escape(path.name))
    temporary = _temporary_name(path)
    temporary.mkdir()
    try:
        yield temporary
        _replace_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # after an exchange it holds what was in `path`


def sweep(folder: Path, *, name: str = "*") -> None:
    """Deletes the temporary files and folders in `folder` that killed processes left. name: a pattern of what for."""
    for left in folder.glob(f".{name}.*.tmp"):
        if not _is_in_use(left):
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink(missing_ok=True)


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")


def _is_in_use(temporary: Path) -> bool:
    """Whether the process that made a temporary name is alive; also where it cannot be told."""
    found = re.search(r"\.(\d+)-\d+\.tmp$", temporary.name)
    if found is None or os.name != "posix":
        return True
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return int(found[1]) != os.getpid()


def _replace_folder(new: Path, path: Path) -> None:
    """Renames `new` to `path`; a folder that was there has the name of `new` afterwards, or is gone if it was empty."""
    try:
        os.rename(new, path)
    except OSError:
        if not path.is_dir():
            raise
        if not _exchange(new, path):  # this file system can only do it in two steps
            aside = new.with_suffix(".old.tmp")
            os.rename(path, aside)
            os.rename(new, path)
            os.rename(aside, new)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two names in one step, by Linux's renameat2(2); returns whether that was possible."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(renameat2(here, os.fsencode(one.absolute()), here, os.fsencode(other.absolute()), exchange) == 0)
