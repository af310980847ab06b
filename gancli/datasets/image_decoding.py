"""Images decoded once, into a memory-mapped cache keyed by their content.

A cache is `<root>/<key>/images.u8`, raw uint8 (N, C, H, W), and `meta.json`. The key is a hash of every image's name
and content and of how it is decoded, so a copied folder is found again and a changed one is decoded again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import logging
import os
import shutil
import sys
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from gancli.atomic_files import atomic_write
from gancli.errors import UserError

log = logging.getLogger(__name__)
T = TypeVar("T")
THREADS = os.cpu_count() or 1
UNREADABLE = "unreadable"  # in place of a hash; such a file is read again each time
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # others, such as EPS, may start programs
LISTED = 10  # unreadable files named in a message


@dataclass(frozen=True)
class Decoding:
    """How an image file becomes (channels, height, width) bytes.

    fit: `crop` scales the image to cover the frame and cuts its middle out, `stretch` changes its aspect ratio.
    """

    height: int
    width: int
    channels: Literal[1, 3]
    fit: Literal["crop", "stretch"]

    def __str__(self) -> str:
        return f"{self.fit} to {self.height}x{self.width}, Lanczos"

    def __call__(self, content: bytes) -> np.ndarray[Any, Any]:
        """Raises what Pillow raises for a broken file, and for one so large that it may be a decompression bomb."""
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            upright = ImageOps.exif_transpose(opened)
            image = _opaque_8_bit(upright).convert("L" if self.channels == 1 else "RGB")
        size = (self.width, self.height)
        if image.size != size:
            image = (
                ImageOps.fit(image, size, method=Image.Resampling.LANCZOS)
                if self.fit == "crop"
                else image.resize(size, Image.Resampling.LANCZOS)
            )
        array = np.asarray(image, dtype=np.uint8).reshape(self.height, self.width, self.channels)
        return np.ascontiguousarray(array.transpose(2, 0, 1))


def _opaque_8_bit(image: Image.Image) -> Image.Image:
    """Puts transparency over white, and scales 16 bits down to 8."""
    if image.mode.startswith("I") or image.mode == "F":
        array = np.asarray(image, dtype=np.float64)
        scale = 257 if image.mode.startswith("I") or array.max() > 255 else 1  # Pillow's integer modes hold 16 bits
        return Image.fromarray((array / scale).round().clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


class Source:
    """A folder or a zip of images: their names, their content, and a fingerprint of each.

    key: the setting that gave `path`, for messages. Raises UserError.
    """

    endings = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

    def __init__(self, path: Path, *, key: str = "dataset.path") -> None:
        self.path, self.setting = path, f"{key}={path}"
        self.archive: zipfile.ZipFile | None = None
        if path.is_file():
            try:
                self.archive = zipfile.ZipFile(path)
            except zipfile.BadZipFile:
                raise UserError(f"{self.setting}: neither a folder nor a zip that can be read") from None
            files: Iterable[str] = (entry.filename for entry in self.archive.infolist() if not entry.is_dir())
        elif path.is_dir():
            files = (
                str((Path(folder) / file).relative_to(path)) for folder, _, files in os.walk(path) for file in files
            )
        else:
            raise UserError(f"{self.setting}: no such folder or zip")
        self.names = sorted(name.replace(os.sep, "/") for name in files if self._is_image(name))
        if not self.names:
            raise UserError(f"{self.setting}: no images in it; they end in {' '.join(self.endings)}")

    def _is_image(self, name: str) -> bool:
        hidden = any(part.startswith((".", "__MACOSX")) for part in Path(name).parts)
        return not hidden and name.lower().endswith(self.endings)

    def read(self, name: str) -> bytes:
        """Returns the file's content."""
        return self.archive.read(name) if self.archive is not None else (self.path / name).read_bytes()

    def common_size(self) -> tuple[int, int]:
        """Returns the (height, width) of all readable images. Raises UserError where they differ."""
        sizes = {size for size in _map_in_threads(self._size, self.names) if size is not None}
        if len(sizes) != 1:
            listed = ", ".join(f"{width}x{height}" for width, height in sorted(sizes)[:5]) or "none that can be read"
            raise UserError(f"{self.setting}: its images have no size in common ({listed}); give resolution=…")
        ((width, height),) = sizes
        return height, width

    def _size(self, name: str) -> tuple[int, int] | None:
        try:
            with Image.open(io.BytesIO(self.read(name)), formats=FORMATS) as image:
                width, height = image.size
                return width, height
        except Exception:  # decoders raise all sorts for a broken file; `decode_cached` reports it
            return None

    def fingerprints(self, root: Path) -> dict[str, str]:
        """Returns a hash of each image's content. Files unchanged since the last call are not read again."""
        if self.archive is not None:  # the zip's directory has checksums
            entries = {name: self.archive.getinfo(name) for name in self.names}
            return {name: f"{entry.CRC:08x}-{entry.file_size}" for name, entry in entries.items()}
        path_hash = hashlib.blake2b(str(self.path.resolve()).encode(), digest_size=16).hexdigest()
        index = root / f"index-{path_hash}.json"
        indexed = _read_json(index)

        def fingerprint(name: str) -> list[Any]:
            before, now = indexed.get(name), _size_and_time(self.path / name)
            if isinstance(before, list) and len(before) == 3 and before[:2] == now and before[2] != UNREADABLE:
                return before
            try:
                return [*now, hashlib.blake2b(self.read(name), digest_size=16).hexdigest()]
            except OSError:
                return [*now, UNREADABLE]

        rows = dict(zip(self.names, _map_in_threads(fingerprint, self.names), strict=True))
        root.mkdir(parents=True, exist_ok=True)
        if rows != indexed:
            atomic_write(index, json.dumps(rows).encode())
        return {name: str(row[2]) for name, row in rows.items()}


def decode_cached(
    source: Source, decoding: Decoding, *, root: Path, unreadable: Literal["skip", "fail"] = "skip"
) -> tuple[Tensor, list[str]]:
    """Returns memory-mapped uint8 (N, C, H, W) and the name of each image, decoded now or read from the cache.

    unreadable: leave such files out with a warning, or fail. Raises UserError, OSError.
    """
    content = {"decoding": asdict(decoding), "pictures": source.fingerprints(root)}  # renaming a key loses all caches
    key = hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()
    folder = root / key
    if not _is_complete(folder, decoding):
        _build(source, decoding, folder)
    meta = _read_json(folder / "meta.json")
    _report_unreadable(source.setting, meta["unreadable"], len(source.names), unreadable)
    names, shape = meta["names"], (decoding.channels, decoding.height, decoding.width)
    if not names:
        raise UserError(f"{source.setting}: none of its {len(source.names)} images can be read")
    count = len(names) * int(np.prod(shape))
    mapped = torch.from_file(str(folder / "images.u8"), shared=False, size=count, dtype=torch.uint8)
    return mapped.view(len(names), *shape), names


def _size_and_time(path: Path) -> list[int]:
    try:
        stat = path.stat()
    except OSError:  # a dangling link, which cannot be read either
        return [0, 0]
    return [stat.st_size, stat.st_mtime_ns]


def _is_complete(folder: Path, decoding: Decoding) -> bool:
    meta, file = _read_json(folder / "meta.json"), folder / "images.u8"
    names = meta.get("names")
    if not isinstance(names, list) or not isinstance(meta.get("unreadable"), list):
        return False
    size = decoding.channels * decoding.height * decoding.width
    return file.is_file() and file.stat().st_size == len(names) * size


def _build(source: Source, decoding: Decoding, folder: Path) -> None:
    """Decodes into a temporary folder and renames it to `folder`. If another process was faster, its result stays."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.{id(source)}.tmp")
    broken = temporary.with_suffix(".broken")
    temporary.mkdir(parents=True)
    try:
        names, unreadable = [], []
        with open(temporary / "images.u8", "wb") as file:
            arrays = _map_in_threads(_decode_or_none(source, decoding), source.names)
            bar = tqdm(arrays, total=len(source.names), unit="img", desc="decoding", disable=not sys.stderr.isatty())
            for name, array in zip(source.names, bar, strict=True):
                if array is None:
                    unreadable.append(name)
                else:
                    names.append(name)
                    file.write(array.tobytes())
        atomic_write(temporary / "meta.json", json.dumps({"names": names, "unreadable": unreadable}).encode())
        if folder.exists() and not _is_complete(folder, decoding):
            with contextlib.suppress(FileNotFoundError):  # another process moved it already
                os.rename(folder, broken)
        try:
            os.rename(temporary, folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(broken, ignore_errors=True)


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


def _decode_or_none(source: Source, decoding: Decoding) -> Callable[[str], np.ndarray[Any, Any] | None]:
    def decode(name: str) -> np.ndarray[Any, Any] | None:
        try:
            return decoding(source.read(name))
        except Exception as error:  # decoders raise all sorts for a broken file
            log.debug("%s: %s", name, error)
            return None

    return decode


def _report_unreadable(setting: str, names: list[str], total: int, unreadable: str) -> None:
    if not names:
        return
    listed = ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
    text = f"{setting}: {len(names)} of {total} images cannot be read: {listed}"
    if unreadable == "fail":
        raise UserError(f"{text}; repair or remove them, or use dataset.unreadable=skip")
    log.warning("%s; they are skipped", text)


def _read_json(path: Path) -> dict[str, Any]:
    """Returns the object in the file; an empty dict where the file is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
