"""Images decoded once, into a memory-mapped cache keyed by their content.

A cache is `<root>/<key>/images.u8`, raw uint8 (N, C, H, W), and `meta.json`. The key is a hash of every image's name
and content and of how it is decoded, so a copied folder is found again and a changed one is decoded again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import sys
import zlib
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from gancli.datasets.decoding import Array, Decoding, size_of
from gancli.datasets.files import ImageFiles, ZipImages, without_common_folders
from gancli.datasets.unreadable import grouped, listed, reason_of
from gancli.errors import UserError
from gancli.files.atomic import atomic_write
from gancli.files.user_paths import mark_cache

try:
    import fcntl
except ImportError:  # not a POSIX system: two processes then decode the same images
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)
T = TypeVar("T")
THREADS = os.cpu_count() or 1
UNREADABLE = "unreadable"  # in place of a hash; such a file is read again each time
DARK = 16  # of 255: an image without a brighter pixel is nearly black
DARK_SHARE = 0.25  # of the images, above which the user is told
_META = {"names": list, "unreadable": dict, "remarks": dict, "dark": list, "content_hash": str}


class Decoded(NamedTuple):
    """Decoded images.

    images: memory-mapped uint8 (N, C, H, W). names: of each. content_hash: of the names, without folders that all lie
    in, and of the files' contents; the same wherever the folder or zip lies.
    """

    images: Tensor
    names: list[str]
    content_hash: str


def decode_cached(
    files: ImageFiles, decoding: Decoding, *, root: Path, unreadable: Literal["skip", "fail"] = "skip"
) -> Decoded:
    """Returns the images, decoded now or read from the cache in `root`, and tells what is odd about them.

    unreadable: leave such files out with a warning, or fail. Raises UserError, OSError.
    """
    mark_cache(root)
    pictures = fingerprints(files, root)
    content = {"decoding": asdict(decoding), "pictures": pictures}  # renaming a key loses all caches
    folder = root / hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()
    if not _is_complete(folder, decoding):
        with _locked(folder):
            if not _is_complete(folder, decoding):  # nor has another process decoded them meanwhile
                _sweep(root)
                read = {name for name, content_hash in pictures.items() if content_hash != UNREADABLE}
                _build(files, decoding, folder, read=read)
    meta = _read_json(folder / "meta.json")
    _tell(files, meta, unreadable)
    names, shape = meta["names"], (decoding.channels, decoding.height, decoding.width)
    if not names:
        raise UserError(f"{files.setting}: none of its {len(files.names)} images can be read")
    count = len(names) * int(np.prod(shape))
    mapped = torch.from_file(str(folder / "images.u8"), shared=False, size=count, dtype=torch.uint8)
    return Decoded(mapped.view(len(names), *shape), names, meta["content_hash"])


def common_size(files: ImageFiles) -> tuple[int, int]:
    """Returns the (height, width) of all readable images. Raises UserError where they differ."""

    def size(name: str) -> tuple[int, int] | None:
        try:
            with files.content(name) as content:
                return size_of(content)
        except Exception:  # decoders raise all sorts for a broken file; `decode_cached` reports it
            return None

    sizes = {found for found in _map_in_threads(size, files.names) if found is not None}
    if len(sizes) != 1:
        shown = ", ".join(f"{width}x{height}" for width, height in sorted(sizes)[:5]) or "none that can be read"
        raise UserError(f"{files.setting}: its images have no size in common ({shown}); give resolution=…")
    ((width, height),) = sizes
    return height, width


def fingerprints(files: ImageFiles, root: Path) -> dict[str, str]:
    """Returns a hash of each file's content. Files unchanged since the last call are not read again."""
    if isinstance(files, ZipImages):  # its directory has check sums
        return {name: f"{files.entries[name].CRC:08x}-{files.size(name)}" for name in files.names}
    path_hash = hashlib.blake2b(os.fsencode(files.path.resolve()), digest_size=16).hexdigest()
    index = root / f"index-{path_hash}.json"
    indexed = _read_json(index)

    def fingerprint(name: str) -> list[Any]:
        before, now = indexed.get(name), _size_and_times(files.path / name)
        if isinstance(before, list) and before[:-1] == now and before[-1] != UNREADABLE:
            return before
        try:
            with files.content(name) as content:
                return [*now, hashlib.blake2b(content, digest_size=16).hexdigest()]
        except Exception as error:  # decoding it tells the reason to the user
            log.debug("%s: %s", name, error)
            return [*now, UNREADABLE]

    rows = dict(zip(files.names, _map_in_threads(fingerprint, files.names), strict=True))
    if rows != indexed:
        try:
            atomic_write(index, json.dumps(rows).encode())
        except OSError as error:  # of a cache that can only be read, say
            log.warning("%s: %s; all images are read again the next time", index, error.strerror)
    return {name: str(row[-1]) for name, row in rows.items()}


def _size_and_times(path: Path) -> list[int]:
    try:
        stat = path.stat()
    except OSError:  # a dangling link, which cannot be read either
        return [0, 0, 0]
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]  # ctime changes even where mtime is set back


def _is_complete(folder: Path, decoding: Decoding) -> bool:
    meta, file = _read_json(folder / "meta.json"), folder / "images.u8"
    if not all(isinstance(meta.get(name), kind) for name, kind in _META.items()):
        return False
    size = decoding.channels * decoding.height * decoding.width
    return file.is_file() and file.stat().st_size == len(meta["names"]) * size


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the cache `folder` against other processes that would build it, where the file system can do that.

    Temporary folders of earlier processes, which were killed while they built it, are deleted.
    """
    with open(_lock_of(folder.name, folder.parent), "a") as lock:
        if fcntl is not None and _lock(lock):
            _delete(folder.parent.glob(f".{folder.name}.*.tmp"))
        yield


def _lock(file: IO[str]) -> bool:
    """Locks the file and returns whether that can be done here; waits for another process that has locked it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("another process decodes these images; waiting for it")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:  # a file system without locks: two processes may decode the same images
        return False
    return True


def _sweep(root: Path) -> None:
    """Deletes what processes left in `root` that were killed: temporary folders of caches that nobody builds now."""
    for left in root.glob(".*.tmp"):
        with contextlib.suppress(OSError), open(_lock_of(left.name.split(".")[1], root), "a") as lock:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises OSError where somebody builds it
                _delete([left])


def _lock_of(key: str, root: Path) -> Path:
    return root / f".{key}.lock"


def _delete(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _build(files: ImageFiles, decoding: Decoding, folder: Path, *, read: Collection[str]) -> None:
    """Decodes into a temporary folder and renames it to `folder`. If another process was faster, its result stays.

    read: the names of files that could be read before. Raises OSError where one of them no longer can.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.{id(files)}.tmp")
    broken = temporary.with_suffix(".broken.tmp")
    temporary.mkdir(parents=True)
    try:
        meta = _write_images(files, decoding, temporary / "images.u8", read=read)
        atomic_write(temporary / "meta.json", json.dumps(meta).encode())
        if folder.exists() and not _is_complete(folder, decoding):
            with contextlib.suppress(FileNotFoundError):  # another process moved it already
                os.rename(folder, broken)
        try:
            os.rename(temporary, folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
    finally:
        _delete([temporary, broken])


class _Image(NamedTuple):
    """One decoded file. check: of its content."""

    array: Array
    remarks: list[str]
    check: str


def _write_images(files: ImageFiles, decoding: Decoding, path: Path, *, read: Collection[str]) -> dict[str, Any]:
    """Writes the arrays of all files one after the other; returns what `meta.json` holds. read: as for `_build`."""
    names, dark, checks = list[str](), list[str](), list[str]()
    unreadable: dict[str, str] = {}
    remarks: dict[str, list[str]] = {}

    def decode(name: str) -> _Image | str:
        try:
            with files.content(name) as content:
                return _Image(*decoding.with_remarks(content), f"{zlib.crc32(content):08x}-{len(content)}")
        except Exception as error:  # decoders raise all sorts for a broken file
            if name in read and isinstance(error, OSError) and error.errno is not None:
                raise  # a fault of the disk or the network, not of the picture
            log.debug("%s: %s", name, error)
            return reason_of(error)

    with open(path, "wb") as file:
        images = _map_in_threads(decode, files.names)
        bar = tqdm(images, total=len(files.names), unit="img", desc="decoding", disable=not sys.stderr.isatty())
        for name, image in zip(files.names, bar, strict=True):
            if isinstance(image, str):
                unreadable[name] = image
                continue
            names.append(name)
            checks.append(image.check)
            file.write(image.array.tobytes())
            if image.array.max() <= DARK:
                dark.append(name)
            for remark in image.remarks:
                remarks.setdefault(remark, []).append(name)
    rows = list(zip(without_common_folders(names)[0], checks, strict=True))
    content_hash = hashlib.blake2b(json.dumps(rows).encode(), digest_size=16).hexdigest()
    return {
        "names": names,
        "unreadable": unreadable,
        "remarks": remarks,
        "dark": dark,
        "content_hash": content_hash,
    }


def _map_in_threads(function: Callable[[str], T], names: Iterable[str]) -> Iterator[T]:
    """Yields `function` of each name, in order, computed by threads; at most 4 results per thread wait in memory."""
    pending: deque[Future[T]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        for name in names:
            pending.append(pool.submit(function, name))
            if len(pending) == 4 * THREADS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _tell(files: ImageFiles, meta: dict[str, Any], unreadable: str) -> None:
    """Warns of what is odd about the images. Raises UserError for unreadable ones where they are to fail."""
    broken, total = meta["unreadable"], len(files.names)
    if broken:
        text = f"{files.setting}: {len(broken)} of {total} images cannot be read: {grouped(broken)}"
        if unreadable == "fail":
            raise UserError(f"{text}; repair or remove them, or use dataset.unreadable=skip")
        log.warning("%s; they are skipped", text)
    if files.unlisted and unreadable == "fail":
        raise UserError(f"{files.setting}: folders cannot be listed: {grouped(files.unlisted)}")
    for remark, names in meta["remarks"].items():
        log.warning("%s: %s: %s (%s)", files.setting, remark, f"{len(names):,}", listed(names, 3))
    dark = meta["dark"]
    if len(dark) > DARK_SHARE * len(meta["names"]):
        text = "%s: %s of %s images are nearly black, with nothing above %s of 255 (%s); if the files hold fewer bits "
        text += "than they could, say so: dataset.white=4095 for 12 bits"
        log.warning(text, files.setting, f"{len(dark):,}", f"{len(meta['names']):,}", DARK, listed(dark, 3))


def _read_json(path: Path) -> dict[str, Any]:
    """Returns the object in the file; an empty dict where the file is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
