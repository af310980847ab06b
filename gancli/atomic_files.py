"""Files that are written completely or not at all."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import threading
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


def atomic_write(path: Path, content: bytes | memoryview) -> None:
    """Writes `content` under a temporary name, flushes it to the disk, and renames it to `path`.

    A failed write leaves the previous file unchanged and no temporary file behind. Raises OSError that names `path`.
    """
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
            error.filename = str(path)  # "no space left on device" does not say where
        raise
    if os.name == "posix":  # the rename itself reaches the disk with the directory entry
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # some network file systems cannot fsync a directory
                os.fsync(directory)
        finally:
            os.close(directory)


def read_cached_tensors(path: Path) -> dict[str, Any] | None:
    """Returns what `write_cached_tensors` wrote, or None where the file is missing or cannot be read."""
    import torch  # not with this module, since commands that read files only do without it

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except Exception as error:  # truncated, damaged or of another kind: the cache entry is computed again
        log.warning("%s cannot be read and is computed again: %s", path, str(error).partition("\n")[0])
        return None
    return content if isinstance(content, dict) else None


def write_cached_tensors(path: Path, content: dict[str, Any]) -> None:
    """Writes tensors and plain values atomically. A cache that cannot be written is a warning, not an error."""
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, buffer.getbuffer())
    except OSError as error:
        log.warning("%s cannot be written: %s", path, error)
