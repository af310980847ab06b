"""Why a picture cannot be read, in words that group many files into a few reasons."""

from __future__ import annotations

import zipfile
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

from PIL import Image, UnidentifiedImageError

from gancli.errors import printable

NAMED = 10  # files of a message


class Unreadable(Exception):
    """A picture that is left out. The text is the reason, as it stands behind a number of files: "cut short"."""


def reason_of(error: Exception) -> str:
    """Returns the reason why reading or decoding a file ended in `error`."""
    text = str(error).lower()
    if isinstance(error, Unreadable):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        return f"too large, above {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels"
    if isinstance(error, MemoryError):
        return "too large for the memory"
    if isinstance(error, UnidentifiedImageError):
        return "no picture of a kind that is read"
    if isinstance(error, FileNotFoundError):
        return "a link that leads nowhere"
    if isinstance(error, PermissionError):
        return "not permitted to be read"
    if isinstance(error, (zipfile.BadZipFile, zlib.error)):
        return "damaged in the zip"
    if isinstance(error, EOFError) or "truncated" in text or "unexpected end" in text or "not enough" in text:
        return "cut short"
    return "damaged"


def grouped(reasons: Mapping[str, str]) -> str:
    """Returns "2 cut short (a.png, b.png); 1 damaged (c.png)" for the reason of each file."""
    files = defaultdict(list)
    for name, reason in reasons.items():
        files[reason].append(name)
    return "; ".join(f"{len(names):,} {reason} ({listed(names)})" for reason, names in files.items())


def listed(names: Sequence[str], most: int = NAMED) -> str:
    """Returns the first names, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(printable, names[:most])) + more
