"""Paths of the user: `~` at the beginning of a path, and the folder of what gancli can compute again."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from pathlib import Path

from gancli.errors import SettingError, UserError

log = logging.getLogger(__name__)
_TAG = "CACHEDIR.TAG"
_TAG_CONTENT = (  # the first line is the standard's, the second says that this one is gancli's
    b"Signature: 8a477f597d28d172789f06886806bc55\n# Made by gancli, which computes again what is missing here.\n"
)
_substitutes = dict[Path, Path]()  # of this process: cache folder that cannot be written -> temporary folder


def expand(path: str | int | Path, *, key: str | None = None) -> Path:
    """Returns the path with its `~` or `~user` replaced by that home folder.

    key: of the setting, for the message. Raises SettingError where there is no such home.
    """
    try:
        return Path(str(path)).expanduser()
    except RuntimeError:
        setting = f"{path}" if key is None else f"{key}={path}"
        raise SettingError(f"{setting}: no such home folder is known here; write the path in full") from None


def cache_folder(setting: str | int | None, *, key: str) -> Path:
    """Returns the folder for what can be computed again: `setting`, or where it is None, a default.

    The default is $XDG_CACHE_HOME/gancli, else ~/.cache/gancli, else, where that cannot be written, a temporary folder
    of this user; a warning then says so once and names `key`, that of the setting. A folder that was set is returned
    as it is: also one that can only be read is of use. Raises UserError.
    """
    if setting is not None:
        try:
            return expand(setting, key=key)
        except SettingError as error:
            raise UserError(str(error)) from None  # `key` is complete
    wanted = _default_cache()
    if wanted in _substitutes:
        return _substitutes[wanted]
    reason = _why_not_writable(wanted) if wanted.is_absolute() else "there is no home folder"
    if reason is None:
        return wanted
    where = f"{wanted} cannot be used for the cache ({reason})"
    try:
        folder = _temporary_folder()
    except OSError as error:
        raise UserError(f"{key}=null: {where}, nor can a temporary folder ({error.strerror}); set {key}") from None
    log.warning("%s, and %s is used instead; set %s, or XDG_CACHE_HOME for all caches", where, folder, key)
    return _substitutes.setdefault(wanted, folder)


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG Base Directory Specification: a relative path there is to be ignored.
    return Path(base if os.path.isabs(base) else os.path.expanduser("~/.cache")) / "gancli"


def _why_not_writable(folder: Path) -> str | None:
    """Makes the folder and writes a file there that has no name; returns what prevents that."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(bytes(4096))  # a full disk has names for files, but no block
    except OSError as error:
        return error.strerror or str(error)
    return None


def _temporary_folder() -> Path:
    """Returns the same folder for all processes of this user, or a new one where that could be somebody else's."""
    if hasattr(os, "getuid"):
        folder = Path(tempfile.gettempdir()) / f"gancli-cache-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022:
            return folder
    return Path(tempfile.mkdtemp(prefix="gancli-cache-"))


def mark_cache(folder: Path) -> None:
    """Marks the folder as a cache, for programs that make backups, and for `is_cache`. Raises OSError.

    The mark is that of the Cache Directory Tagging Specification (Ellis, 2004).
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / _TAG).exists():
        (folder / _TAG).write_bytes(_TAG_CONTENT)


def is_cache(folder: str | Path) -> bool:
    """Whether `folder` is the default cache, or was marked by `mark_cache`."""
    try:
        path = expand(folder)
        if path == _default_cache():
            return True
        with open(path / _TAG, "rb") as file:
            return file.read(len(_TAG_CONTENT) + 1) == _TAG_CONTENT
    except (OSError, ValueError, UserError):
        return False
