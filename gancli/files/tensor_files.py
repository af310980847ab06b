"""Files of tensors and plain values: the only place that reads them with torch, and it never runs code of a file.

A file is described by an outline, which is checked before anybody uses its content: a type hint such as `int`,
`dict[str, Tensor]` or `float | None`, or a dict of outlines for a mapping with those keys (and perhaps others). `Any`
stands for plain values and tensors of any kind.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import types
import typing
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gancli.errors import InvalidTensorFile
from gancli.files.atomic import atomic_write, sweep
from gancli.files.user_paths import mark_cache

log = logging.getLogger(__name__)
_DEPTH = 32  # of plain values in each other
_END_OF_ARCHIVE = (b"PK\x05\x06", 22)  # the last record of a zip without a comment: its mark, its length


def read(file: Path, outline: Any, *, legacy: bool = False) -> dict[str, Any]:
    """Returns the content of a file that `torch.save` wrote, with its tensors on the CPU.

    legacy: whether to take a file of the format before torch 1.6 too, a row of pickles, read by the same restricted
    unpickler. Raises InvalidTensorFile where the file is damaged, is no such file, holds more than tensors and plain
    values, states more content than it has, or does not fit `outline`; FileNotFoundError.
    """
    if not file.exists():
        raise FileNotFoundError(file)
    if not file.is_file():
        raise InvalidTensorFile("is not a regular file")
    try:
        if begins_as_zip(file) or not legacy:
            _check_archive(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about TorchScript, which is refused
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InvalidTensorFile(
            "holds more than tensors and plain values, and is refused: reading it could run code"
        ) from None
    except MemoryError:
        raise InvalidTensorFile("needs more memory than there is") from None
    except Exception as error:  # torch's reader raises all sorts for damaged files
        reason = str(error).splitlines()[0] if str(error) else "empty"
        raise InvalidTensorFile(f"is truncated or damaged ({reason})") from None
    if not isinstance(content, dict):
        raise InvalidTensorFile("is not a mapping of names to tensors and values")
    problem = misfit(content, outline)
    if problem is not None:
        raise InvalidTensorFile(f"does not hold what it should: {problem}")
    return content


def read_cached(file: Path, outline: Any) -> dict[str, Any] | None:
    """Returns what `write_cached` wrote, or None where the file is missing, or is not as it should be."""
    try:
        return read(file, outline)
    except FileNotFoundError:
        return None
    except (InvalidTensorFile, OSError) as error:
        log.warning("%s cannot be read and is computed again: %s", file, error)
        return None


def write(file: Path, content: dict[str, Any]) -> None:
    """Writes tensors and plain values atomically. Raises OSError."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, buffer.getbuffer())


def write_cached(file: Path, content: dict[str, Any]) -> None:
    """Does the same for a cache. One that cannot be written is a warning, not an error."""
    try:
        mark_cache(file.parent)
        sweep(file.parent)
        write(file, content)
    except OSError as error:
        log.warning("%s cannot be written: %s", file, error)


def begins_as_zip(file: Path) -> bool:
    """Whether the first bytes are those of a zip; a pickle with a zip behind it is a zip to Python's `zipfile` too."""
    with open(file, "rb") as opened:
        return opened.read(4) == b"PK\x03\x04"


def _check_archive(file: Path) -> None:
    """Raises InvalidTensorFile unless `file` is, from its first byte to its last, a sound archive as torch writes it.

    torch does not verify check sums, and takes entries that are packed, or that share their bytes, at their word.
    """
    mark, length = _END_OF_ARCHIVE
    with open(file, "rb") as opened:
        size = opened.seek(0, os.SEEK_END)
        opened.seek(max(0, size - length))
        ending = opened.read()
    if not begins_as_zip(file) or not ending.startswith(mark):
        raise InvalidTensorFile("is truncated, damaged or no file of torch")
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise InvalidTensorFile("is compressed, which a file of torch is not")
        if sum(entry.file_size for entry in entries) > size:
            raise InvalidTensorFile("states more content than the file holds")
        for entry in entries:
            if entry.filename.endswith(".pkl") and b"bytearray" in archive.read(entry):
                raise InvalidTensorFile("asks for memory by the name bytearray, which no tensor needs")
        # An entry that is marked as a folder is skipped, and torch would return whatever the memory held.
        damaged = archive.testzip() or next((entry.filename for entry in entries if entry.external_attr), None)
    if damaged is not None:
        raise InvalidTensorFile(f"is damaged in {damaged}")


def misfit(value: Any, outline: Any, key: str = "") -> str | None:
    """Returns where and how `value` differs from `outline`, or None where it fits. key: the name of the value."""
    return _misfit(value, outline, key, set(), _DEPTH)


def _misfit(value: Any, outline: Any, key: str, seen: set[tuple[int, str]], depth: int) -> str | None:
    origin, args = typing.get_origin(outline), typing.get_args(outline)
    if origin in (typing.Union, types.UnionType):
        found = [_misfit(value, option, key, seen, depth) for option in args]
        return None if None in found else found[0]
    if isinstance(value, (Mapping, list, tuple)):  # a value that many places share is looked at once
        if depth == 0:
            return f"{key}: nested too deeply"
        if (id(value), str(outline)) in seen:
            return None
        seen.add((id(value), str(outline)))
    if not _has_kind(value, outline, origin):
        return f"{key}: expected {_name(outline)}, got {_describe(value)}"
    for name, item, of in _parts(value, outline, origin, args):
        if isinstance(name, str) and isinstance(outline, Mapping) and name not in value:
            return f"{_join(key, name)}: is missing"
        problem = _misfit(item, of, _join(key, name), seen, depth - 1)
        if problem is not None:
            return problem
    return None


def _has_kind(value: Any, outline: Any, origin: Any) -> bool:
    if outline is Any:
        return value is None or isinstance(value, (Mapping, list, tuple, str, bool, int, float)) or _is_plain(value)
    if isinstance(outline, Mapping) or origin is dict:
        return isinstance(value, Mapping)
    if origin in (list, tuple):
        inner = typing.get_args(outline)
        fixed = origin is tuple and ... not in inner
        return isinstance(value, (list, tuple)) and (not fixed or len(value) == len(inner))
    if outline is Tensor:
        return _is_plain(value)
    if outline is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if outline is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(value, types.NoneType if outline is None else outline)


def _is_plain(value: Any) -> bool:
    """Whether `value` is a dense tensor that owns as many bytes as its shape says."""
    return (
        type(value) in (Tensor, nn.Parameter)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def _parts(value: Any, outline: Any, origin: Any, args: tuple[Any, ...]) -> list[tuple[Any, Any, Any]]:
    """Returns (name, item, outline) of what lies in a mapping or a sequence."""
    if isinstance(outline, Mapping):
        return [(name, value.get(name), of) for name, of in outline.items()]
    if isinstance(value, Mapping):
        of_key, of = args if origin is dict else (Any, Any)
        keys = [(f"key {name!r}"[:80], name, of_key) for name in value]
        return keys + [(str(name)[:80], item, of) for name, item in value.items()]
    if isinstance(value, (list, tuple)):
        same = args[0] if origin is list or ... in args else Any
        each = args if origin is tuple and ... not in args else [same] * len(value)
        return [(number, item, of) for number, (item, of) in enumerate(zip(value, each, strict=True))]
    return []


def _join(key: str, name: Any) -> str:
    return f"{key}[{name}]" if isinstance(name, int) else f"{key}.{name}" if key else str(name)


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {tuple(value.shape)}, {value.dtype}, {value.layout}"
    text = repr(value) if isinstance(value, (str, int, float, bool, types.NoneType)) else type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."


def _name(outline: Any) -> str:
    if outline is None or outline is types.NoneType:
        return "null"
    if isinstance(outline, Mapping) or typing.get_origin(outline) is dict:
        return "a mapping"
    return str(outline) if typing.get_origin(outline) else getattr(outline, "__name__", "a plain value")


def non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Returns the name of the first tensor that holds a value which is not finite, or None."""
    return next((name for name, value in tensors.items() if not bool(value.isfinite().all())), None)
