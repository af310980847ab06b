"""JSON objects in files, which may come from elsewhere or be cut off: one in a file, or a row in each line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gancli.errors import printable
from gancli.files.atomic import atomic_write

Row = dict[str, Any]
_LARGEST_JSON, _LARGEST_ROWS = 2**26, 2**30  # bytes of a JSON file, and of rows that are read


def read_json(file: Path) -> Row:
    """Returns the object in a JSON file; an empty dict where the file is missing, damaged or holds something else."""
    if not file.is_file() or file.stat().st_size > _LARGEST_JSON:
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def numbers_of(rows: Sequence[Row]) -> list[Row]:
    """Returns images, seconds and those of the values that are numbers, of each row that has the former two."""
    numbers = []
    for row in rows:
        images, seconds = (_number(row.get(name)) for name in ("images", "seconds"))
        if images is not None and seconds is not None and math.isfinite(images) and math.isfinite(seconds):
            given = row["values"] if isinstance(row.get("values"), dict) else {}
            values = {printable(name): number for name in given if (number := _number(given[name])) is not None}
            numbers.append({"images": int(images), "seconds": seconds, "values": values})
    return numbers


def _number(value: Any) -> float | None:
    try:
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    except OverflowError:  # a whole number of hundreds of digits
        return None


def append_row(file: Path, row: Row) -> None:
    """Appends a row as a line of its own, also after a line that was cut off. Raises OSError."""
    with open(file, "ab+") as lines:
        if lines.tell() > 0:
            lines.seek(-1, 2)
            if lines.read(1) != b"\n":  # the last line was cut off
                lines.write(b"\n")
        lines.write(json.dumps(row).encode() + b"\n")


def _parse(line: bytes) -> Row | None:
    """Returns the row, or None for a line that was cut off or is no row."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    known = isinstance(row, dict) and isinstance(row.get("images", 0), (int, float))
    return row if known else None


def read_rows(file: Path) -> list[Row]:
    """Returns the rows of a file that have `images`, oldest first; none where it is missing."""
    if not file.is_file():  # a run without any
        return []
    with open(file, "rb") as opened:
        lines = opened.read(_LARGEST_ROWS).splitlines()
    return [row for row in map(_parse, lines) if row is not None and "images" in row]


def keep_rows(file: Path, wanted: Callable[[Row], bool]) -> None:
    """Deletes all lines but the whole rows with `images` that are `wanted`. Raises OSError."""
    if not file.exists():
        return
    lines = file.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if (row := _parse(line)) is not None and "images" in row and wanted(row)]
    if kept != lines:
        atomic_write(file, b"".join(kept))
