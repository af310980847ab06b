"""Overrides of a command line: paths and names reach gancli as they were typed, and are printed as they can be typed.

Hydra reads `run=2024_01_05` as the number 20240105, and `run=my run` not at all. So settings that hold text are put in
quotes before Hydra reads them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gancli.files.user_paths import expand

LISTS = frozenset({"run", "folders", "trust", "freeze", "chapters"})  # that may also be typed as [a,b]
TEXTS = LISTS | {  # settings whose declared type is text, of whatever command; see the test of the same name
    *("resume", "init", "out", "data", "cache", "objective", "sort", "image"),
    *("dataset.path", "dataset.root", "dataset.cache", "dataset.distribution.path", "dataset.distribution.cdf"),
    *("prior.distribution.path", "prior.distribution.cdf"),
    *("evaluation.cache", "metric.features.cache", "metric.features.weights"),
    *("metric.features.extractor", "metric.features.file"),
    *("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.job.name"),
    *("hydra.launcher.partition", "hydra.launcher.account", "hydra.launcher.qos", "hydra.launcher.constraint"),
}
_FOLDERS_OF_HYDRA = ("hydra.run.dir", "hydra.sweep.dir")  # which knows no home folder
_PLAIN = re.compile(r"[\w.-]*/[\w./-]*|[a-z_][\w.-]*", re.ASCII | re.IGNORECASE)  # text that needs no quotes
_RESERVED = {"null", "true", "false", "inf", "nan"}  # which Hydra does not read as text
_QUOTED = re.compile(r"""'(\\.|[^'\\])*'|"(\\.|[^"\\])*\"""", re.DOTALL)
_FUNCTION = re.compile(r"(choice|glob|range|interval|tag|sort|shuffle|str)\s*\(.*\)", re.DOTALL)
_PIECE = re.compile(rf"{_QUOTED.pattern}|\([^()]*\)|\[[^\[\]]*\]|.", re.DOTALL)  # in which a comma separates nothing
_WHOLE = re.compile(r"(?<![^=,\[:])([+-]?\d[\d_]*(?:\.\d+)?)[eE]\+?(\d\d?)(?![^,\]}])")  # a number such as 3e5


def setting(key: str, text: str | Path) -> str:
    """Returns `key=text` as Hydra reads it back: in quotes where it would take the text for something else."""
    return f"{key}={quoted(text)}"


def typed(key: str, text: str | Path) -> str:
    """Returns `key=text` as it is typed in a shell."""
    return f"{key}={shlex.quote(quoted(text))}"


def quoted(text: str | Path) -> str:
    """Returns a path or a name as it stands behind the equals sign of a setting."""
    text = str(text)
    if text.startswith("~"):
        text = f"./{text}"  # a folder of that name, not the home of a user
    if _PLAIN.fullmatch(text) and text.lower() not in _RESERVED:
        return text
    # OmegaConf reads ${…} also within quotes.
    return _in_quotes(re.sub(r"(\\*)\$\{", lambda match: f"{match[1] * 2}\\${{", text))


def _in_quotes(text: str) -> str:
    escaped = re.sub(r'(\\*)("|$)', lambda match: match[1] * 2 + match[2].replace('"', '\\"'), text)
    return f'"{escaped}"'


def as_typed(word: str, *, sweep: bool) -> str:
    """Returns a word such that Hydra reads of it what was typed.

    A setting of text keeps its text, with `~` as the home folder in folders that Hydra makes. Of other settings, 3e5
    is the whole number that it looks like. What is in quotes already, null, interpolations and functions of Hydra stay
    as they are. sweep: whether commas separate the values of a sweep. Raises UserError for a home that is not known.
    """
    key, _, value = word.partition("=")
    key = key.lstrip("+")
    if key not in TEXTS:
        return f"{word[: -len(value)]}{_whole_numbers(value)}" if value else word
    if not value or value == "???":
        return word
    if sweep and not _FUNCTION.fullmatch(value):
        text = ",".join(_text(key, part) for part in _split(value))
    else:
        text = value if sweep else _text(key, value)
    return f"{word.partition('=')[0]}={text}"


def _text(key: str, value: str) -> str:
    """Returns one value of the setting `key`, which holds text, in quotes."""
    if key in LISTS and value.startswith("[") and value.endswith("]"):
        parts = [part.strip() for part in _split(value[1:-1])]
        return f"[{','.join(_text('', part) for part in parts)}]" if parts != [""] else value
    if _QUOTED.fullmatch(value):
        if key not in _FOLDERS_OF_HYDRA or value[1:2] != "~":
            return value
        value = re.sub(r"""(\\+)(['"]|$)""", lambda match: match[1][::2] + match[2], value[1:-1])
    elif value.lower() == "null" or "\\" in value:  # a backslash is Hydra's: it makes the next character plain text
        return value
    if key in _FOLDERS_OF_HYDRA and value.startswith("~"):
        value = str(expand(value, key=key))
    return value if _PLAIN.fullmatch(value) and value.lower() not in _RESERVED else _in_quotes(value)


def _split(value: str) -> list[str]:
    """Returns the parts between commas that are in no quotes and no brackets."""
    pieces = (match[0] for match in _PIECE.finditer(value))
    return "".join("\0" if piece == "," else piece for piece in pieces).split("\0")


def _whole_numbers(value: str) -> str:
    """Returns the value with 300000 for 3e5; as it is where it has quotes, or a function, which may mean a float."""
    if re.search(r"""['"($]""", value):
        return value

    def digits(match: re.Match[str]) -> str:
        mantissa, _, fraction = match[1].replace("_", "").partition(".")
        zeros = int(match[2]) - len(fraction)
        return f"{int(mantissa + fraction + '0' * zeros)}" if 0 <= zeros <= 18 else match[0]

    return _WHOLE.sub(digits, value)


def typed_value(value: Any) -> str:
    """Returns a value as it is typed on the command line."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(typed_value, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{typed_value(each)}' for key, each in value.items())}}}"
    return f"{value:_}" if isinstance(value, int) and value >= 10_000 else str(value)


def last_value(words: Sequence[str], key: str) -> str | None:
    """Returns the last text that the words, made by `as_typed`, give to `key`; None where none gives a text."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    given = [word for word in words if word.startswith(f"{key}=")]
    value = OverridesParser.create().parse_override(given[-1]).value() if given else None
    return value if isinstance(value, str) else None


def settings_of(words: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yields key and value of every setting among the words of a command line, without a + in front of the key."""
    for word in words:
        key, equals, value = word.partition("=")
        if equals and not word.startswith(("-", "~")):
            yield key.lstrip("+"), value
