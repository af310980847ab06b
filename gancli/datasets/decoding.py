"""How one image file becomes an array of bytes."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT

from gancli.datasets.memory_budget import MemoryBudget
from gancli.datasets.unreadable import Unreadable

Array = np.ndarray[Any, Any]
_AVIF = features.check("avif")  # Pillow may be built without
FORMATS = (  # others, such as EPS, may start programs
    *("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000"),
    *(("AVIF",) if _AVIF else ()),
)
ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jp2", ".j2k"),
    *((".avif",) if _AVIF else ()),
)
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*")  # of JPEG, PNG, GIF and TIFF
_OTHER_FILES = (  # position, bytes there, what it is
    (4, b"ftyphei", "HEIC, which is not read; convert them to JPEG or PNG"),
    (4, b"ftypmif1", "HEIF, which is not read; convert them to JPEG or PNG"),
    (0, b"version https://git-lfs", "pointers of Git LFS; fetch the files with git lfs pull"),
    (0, b"<", "text such as HTML, not pictures"),
)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)
SEVERAL = "images with several frames or pages, of which the first is taken"
GUESSED = (
    "images with 32-bit or signed values that do not say which of them is white, so 1, 255, 65,535 or the highest is "
    "taken, by the range of each (dataset.white=… sets it for all)"
)
SMALL = "images of less than 3/4 of the height and width that they are enlarged to (dataset.resolution)"
NOT_FINITE = "images with values that are not finite, of which NaN becomes the darkest"
_WHITES = (1, 255, 65535)
PIXELS = MemoryBudget(2**31)  # of all images that are decoded at a time
_BYTES = 8  # of a decoded pixel: Pillow's four, and a copy
_BYTES_DEEP = 20  # of one with transparency or more than 8 bits, which is worked on as floats or as several images

# Pillow tells of odd metadata and of many pixels, which cost nothing here, and would do so for each file.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Decoding:
    """How an image file becomes (channels, height, width) bytes.

    fit: `crop` scales the image to cover the frame and cuts its middle out, `stretch` changes its aspect ratio. white:
    the value that is white in grey images of more than 8 bits; None for what the file says, else by its range.
    """

    height: int
    width: int
    channels: Literal[1, 3]
    fit: Literal["crop", "stretch"]
    white: float | None = None

    def __str__(self) -> str:
        return f"{self.fit} to {self.height}x{self.width}, Lanczos"

    def __call__(self, content: bytes) -> Array:
        """Returns the array of an image file alone, as `with_remarks`."""
        return self.with_remarks(content)[0]

    def with_remarks(self, content: bytes) -> tuple[Array, list[str]]:
        """Returns uint8 (channels, height, width), and what the user should know of the file, such as `SEVERAL`.

        Raises what Pillow raises for a broken file, and for one so large that it may be a decompression bomb.
        """
        remarks: list[str] = []
        with _opened(content) as file:
            size = file.width * file.height * (_BYTES if file.mode in ("1", "L", "RGB") else _BYTES_DEEP)
            with PIXELS.taking(size):
                file.load()
                image = _opaque_8_bit(_upright(file), file, self.white, remarks)
                image = image.convert("L" if self.channels == 1 else "RGB")
                if 4 * image.width < 3 * self.width and 4 * image.height < 3 * self.height:
                    remarks.append(SMALL)
                array = self._fitted(image)
            if _has_several(file):
                remarks.append(SEVERAL)
        return array, remarks

    def _fitted(self, image: Image.Image) -> Array:
        size = (self.width, self.height)
        if image.size != size:
            image = (
                ImageOps.fit(image, size, method=Image.Resampling.LANCZOS)
                if self.fit == "crop"
                else image.resize(size, Image.Resampling.LANCZOS)
            )
        array = np.asarray(image, dtype=np.uint8).reshape(self.height, self.width, self.channels)
        return np.ascontiguousarray(array.transpose(2, 0, 1))


def size_of(content: bytes) -> tuple[int, int]:
    """Returns the (width, height) of an image file, upright, from its first bytes. Raises what Pillow raises."""
    with _opened(content) as file:
        # Pillow has the upright size of a TIFF already. PNG's own getexif would decode the whole image.
        exif = None if file.format == "TIFF" else Image.Image.getexif(file)
        return (file.height, file.width) if _turn(exif) in _SIDEWAYS else (file.width, file.height)


def begins_like_an_image(content: bytes) -> bool:
    """Whether the first 16 bytes of a file are those of an image."""
    return content.startswith(_BEGINNINGS) or content[8:12] in (b"WEBP", b"avif")


def _opened(content: bytes) -> Image.Image:
    if not content:
        raise Unreadable("empty")
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        for place, mark, kind in _OTHER_FILES:
            if content[place : place + 64].lstrip().startswith(mark):
                raise Unreadable(kind) from None
        raise


def _has_several(file: Image.Image) -> bool:
    with contextlib.suppress(Exception):  # a second frame that is broken costs nothing
        return file.format != "MPO" and bool(getattr(file, "is_animated", False))  # MPO: a photo and its previews
    return False


def _upright(image: Image.Image) -> Image.Image:
    """Returns the image turned as its EXIF says."""
    try:
        turn = _turn(image.getexif())
    except Exception:  # Pillow raises all sorts for odd tags
        turn = None
    return image if turn is None else image.transpose(turn)


def _turn(exif: Image.Exif | None) -> Image.Transpose | None:
    """Returns what makes an image upright. No other tag is looked at, so an odd one costs nothing."""
    return None if exif is None else _TURNS.get(exif.get(ExifTags.Base.Orientation, 1))


def _opaque_8_bit(image: Image.Image, file: Image.Image, white: float | None, remarks: list[str]) -> Image.Image:
    """Puts transparency over white, and brings more than 8 bits down to 8. file: what `image` was read from."""
    if image.mode.startswith("I") or image.mode == "F":
        values, transparent = np.asarray(image), image.info.get("transparency")
        eight_bits = _to_8_bits(values, getattr(file, "tag_v2", None), white, remarks)
        if isinstance(transparent, int):  # of a PNG: the value that marks transparent pixels
            eight_bits = np.where(values == transparent, np.uint8(255), eight_bits)
        return Image.fromarray(eight_bits)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def _to_8_bits(values: Array, tags: Any, white: float | None, remarks: list[str]) -> Array:
    """Returns values (H, W) as uint8. tags: of a TIFF, else None."""
    kind = 1 if tags is None else _first(tags, SAMPLEFORMAT)  # 1 unsigned, 2 signed, 3 float
    bits = 16 if tags is None else _first(tags, BITSPERSAMPLE)  # Pillow scales those of PNG, PPM and JPEG 2000 to 16
    if values.dtype.kind == "f":
        kind = 3
    elif kind == 1 and bits == 32:
        values = values.view(np.uint32)
    values = values.astype(np.float32)
    finite = np.isfinite(values)
    if not finite.all():
        if not finite.any():
            raise Unreadable("without any finite value")
        remarks.append(NOT_FINITE)
        low, high = float(values[finite].min()), float(values[finite].max())
        values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    black = 0.0
    if white is None and kind == 1 and bits <= 16:
        white = 2.0**bits - 1
    elif white is None:
        remarks.append(GUESSED)
        black, white = _range(float(values.min()), float(values.max()))
    values = ((values - black) * (255 / (white - black))).round().clip(0, 255).astype(np.uint8)
    inverted = tags is not None and _first(tags, PHOTOMETRIC_INTERPRETATION) == 0  # "white is zero"
    return 255 - values if inverted else values


def _range(low: float, high: float) -> tuple[float, float]:
    """Returns the values of black and white in an image whose values are from `low` to `high`."""
    if low < -0.1 * high:  # more than the ringing of a filter
        return min(low, -1.0), max(high, 1.0)
    return 0.0, next((white for white in _WHITES if high <= white), high)


def _first(tags: Any, tag: int) -> int:
    value = tags.get(tag, 1)
    return int(value[0] if isinstance(value, tuple) else value)
