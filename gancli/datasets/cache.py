"""Pictures decoded once, into a memory-mapped cache keyed by their content.

A cache is `<root>/<key>/images.u8`, raw uint8 (N, C, H, W), and `meta.json`. The key is a hash of every
picture's name and content and of how it is decoded, so neither a copied nor a changed folder is mistaken.
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
UNREADABLE = "unreadable"  # in place of a hash; looked at again each time
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # others, such as EPS, may start programs
SHOWN = 10  # unreadable files named in a message


@dataclass(frozen=True)
class Decoding:
    """How a picture becomes (channels, height, width) bytes.

    fit: `crop` scales the picture to cover the frame and cuts its middle out, `stretch` changes its shape.
    """

    height: int
    width: int
    channels: Literal[1, 3]
    fit: Literal["crop", "stretch"]

    def __str__(self) -> str:
        return f"{self.fit} to {self.height}x{self.width}, Lanczos"

    def __call__(self, content: bytes) -> np.ndarray[Any, Any]:
        """Raises what Pillow raises on what is no picture, and its bomb error on one too large to be meant."""
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            upright = ImageOps.exif_transpose(opened)
            image = _flat(upright).convert("L" if self.channels == 1 else "RGB")
        size = (self.width, self.height)
        if image.size != size:
            image = (
                ImageOps.fit(image, size, method=Image.Resampling.LANCZOS)
                if self.fit == "crop"
                else image.resize(size, Image.Resampling.LANCZOS)
            )
        array = np.asarray(image, dtype=np.uint8).reshape(self.height, self.width, self.channels)
        return np.ascontiguousarray(array.transpose(2, 0, 1))


def _flat(image: Image.Image) -> Image.Image:
    """Transparency over white, 16 bits down to 8."""
    if image.mode.startswith("I") or image.mode == "F":
        array = np.asarray(image, dtype=np.float64)
        scale = 257 if image.mode.startswith("I") or array.max() > 255 else 1  # Pillow's integers are 16 bits deep
        return Image.fromarray((array / scale).round().clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


class Source:
    """A folder or a zip of pictures: their names, their content, and a fingerprint of each.

    key: the setting that `path` came from, for messages. Raises UserError.
    """

    endings = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

    def __init__(self, path: Path, *, key: str = "dataset.path") -> None:
        self.path, self.named = path, f"{key}={path}"
        self.archive: zipfile.ZipFile | None = None
        if path.is_file():
            try:
                self.archive = zipfile.ZipFile(path)
            except zipfile.BadZipFile:
                raise UserError(f"{self.named}: neither a folder nor a zip that can be read") from None
            found: Iterable[str] = (entry.filename for entry in self.archive.infolist() if not entry.is_dir())
        elif path.is_dir():
            found = (
                str((Path(folder) / file).relative_to(path)) for folder, _, files in os.walk(path) for file in files
            )
        else:
            raise UserError(f"{self.named}: no such folder or zip")
        self.names = sorted(name.replace(os.sep, "/") for name in found if self._is_picture(name))
        if not self.names:
            raise UserError(f"{self.named}: no images in it; they end in {' '.join(self.endings)}")

    def _is_picture(self, name: str) -> bool:
        hidden = any(part.startswith((".", "__MACOSX")) for part in Path(name).parts)
        return not hidden and name.lower().endswith(self.endings)

    def read(self, name: str) -> bytes:
        """The file's content."""
        return self.archive.read(name) if self.archive is not None else (self.path / name).read_bytes()

    def sides(self) -> tuple[int, int]:
        """The (height, width) that all of its readable pictures have. Raises UserError where they differ."""
        sizes = {size for size in _each(self._size, self.names) if size is not None}
        if len(sizes) != 1:
            found = ", ".join(f"{width}x{height}" for width, height in sorted(sizes)[:5]) or "none that can be read"
            raise UserError(f"{self.named}: its images have no size in common ({found}); give resolution=…")
        ((width, height),) = sizes
        return height, width

    def _size(self, name: str) -> tuple[int, int] | None:
        try:
            with Image.open(io.BytesIO(self.read(name)), formats=FORMATS) as image:
                width, height = image.size
                return width, height
        except Exception:  # whatever a decoder says of a broken file; decoding will name it
            return None

    def fingerprints(self, root: Path) -> dict[str, str]:
        """A hash of each picture's content. What did not change since the last time is not read again."""
        if self.archive is not None:  # its directory has them
            entries = {name: self.archive.getinfo(name) for name in self.names}
            return {name: f"{entry.CRC:08x}-{entry.file_size}" for name, entry in entries.items()}
        place = hashlib.blake2b(str(self.path.resolve()).encode(), digest_size=16).hexdigest()
        index = root / f"index-{place}.json"
        known = _json(index)

        def look(name: str) -> list[Any]:
            before, stamp = known.get(name), _stamp(self.path / name)
            if isinstance(before, list) and len(before) == 3 and before[:2] == stamp and before[2] != UNREADABLE:
                return before
            try:
                return [*stamp, hashlib.blake2b(self.read(name), digest_size=16).hexdigest()]
            except OSError:
                return [*stamp, UNREADABLE]

        rows = dict(zip(self.names, _each(look, self.names), strict=True))
        root.mkdir(parents=True, exist_ok=True)
        if rows != known:
            atomic_write(index, json.dumps(rows).encode())
        return {name: str(row[2]) for name, row in rows.items()}


def decoded(
    source: Source, decoding: Decoding, *, root: Path, unreadable: Literal["skip", "fail"] = "skip"
) -> tuple[Tensor, list[str]]:
    """Memory-mapped uint8 (N, C, H, W) and the name of each image, decoded now or read from the cache.

    Unreadable files are named and left out, or fatal. Raises UserError, OSError.
    """
    content = {"decoding": asdict(decoding), "pictures": source.fingerprints(root)}
    key = hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()
    folder = root / key
    if not _whole(folder, decoding):
        _build(source, decoding, folder)
    meta = _json(folder / "meta.json")
    _report(source.named, meta["unreadable"], len(source.names), unreadable)
    names, shape = meta["names"], (decoding.channels, decoding.height, decoding.width)
    if not names:
        raise UserError(f"{source.named}: none of its {len(source.names)} images can be read")
    count = len(names) * int(np.prod(shape))
    mapped = torch.from_file(str(folder / "images.u8"), shared=False, size=count, dtype=torch.uint8)
    return mapped.view(len(names), *shape), names


def _stamp(path: Path) -> list[int]:
    try:
        stat = path.stat()
    except OSError:  # a link to nowhere; reading it will say so
        return [0, 0]
    return [stat.st_size, stat.st_mtime_ns]


def _whole(folder: Path, decoding: Decoding) -> bool:
    meta, file = _json(folder / "meta.json"), folder / "images.u8"
    names = meta.get("names")
    if not isinstance(names, list) or not isinstance(meta.get("unreadable"), list):
        return False
    size = decoding.channels * decoding.height * decoding.width
    return file.is_file() and file.stat().st_size == len(names) * size


def _build(source: Source, decoding: Decoding, folder: Path) -> None:
    """Decodes next to `folder` and renames. Another run that was quicker wins, and its work is used."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.{id(source)}.tmp")
    broken = temporary.with_suffix(".broken")
    temporary.mkdir(parents=True)
    try:
        names, bad = [], []
        with open(temporary / "images.u8", "wb") as file:
            work = _each(_attempt(source, decoding), source.names)
            bar = tqdm(work, total=len(source.names), unit="img", desc="decoding", disable=not sys.stderr.isatty())
            for name, array in zip(source.names, bar, strict=True):
                if array is None:
                    bad.append(name)
                else:
                    names.append(name)
                    file.write(array.tobytes())
        atomic_write(temporary / "meta.json", json.dumps({"names": names, "unreadable": bad}).encode())
        if folder.exists() and not _whole(folder, decoding):
            with contextlib.suppress(FileNotFoundError):  # another run was quicker
                os.rename(folder, broken)
        try:
            os.rename(temporary, folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(broken, ignore_errors=True)


def _each(work: Callable[[str], T], names: Iterable[str]) -> Iterator[T]:
    """`work` on each name by several threads, in order; what waits to be taken does not grow with the data."""
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        for name in names:
            waiting.append(pool.submit(work, name))
            if len(waiting) == 4 * THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _attempt(source: Source, decoding: Decoding) -> Callable[[str], np.ndarray[Any, Any] | None]:
    def attempt(name: str) -> np.ndarray[Any, Any] | None:
        try:
            return decoding(source.read(name))
        except Exception as error:  # whatever a decoder says of a broken file, it is a broken file
            log.debug("%s: %s", name, error)
            return None

    return attempt


def _report(named: str, bad: list[str], total: int, unreadable: str) -> None:
    if not bad:
        return
    listed = ", ".join(bad[:SHOWN]) + (f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else "")
    text = f"{named}: {len(bad)} of {total} images cannot be read: {listed}"
    if unreadable == "fail":
        raise UserError(f"{text}; mend or remove them, or say dataset.unreadable=skip")
    log.warning("%s; they are left out", text)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
