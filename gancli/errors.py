"""The errors that end a command with a message instead of a traceback, and the check that most settings share."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from math import inf
from typing import Any


class UserError(Exception):
    """Bad input. The text names the key, the value and the way out. Exit status 2, no traceback."""


class SettingError(UserError, ValueError):
    """A constructor's complaint about one of its arguments: "name=value: what is allowed".

    `build` puts the key of the constructor's node in front of the text. Any other ValueError is a bug.
    """

    def at(self, key: str) -> UserError:
        """Returns the error for the user, with `key` in front of each setting."""
        return UserError("\n".join(f"{key}.{line}" for line in str(self).splitlines()))


class FeaturesUnavailable(UserError):
    """A feature extractor lacks its weights or its package."""


class Diverged(Exception):
    """A loss or a gradient is not finite; the update was not made. Exit status 1.

    good_images: images after which the run was still good, for a rollback.
    """

    def __init__(self, text: str, *, good_images: int = 0) -> None:
        super().__init__(text)
        self.good_images = good_images


class Collapsed(Diverged):
    """An evaluation found samples that went bad, and the health monitor was told to act. Exit status 1."""


class ProcessLost(Exception):
    """Another process of the run is gone, so that a message between processes did not arrive. Exit status 1."""


class InvalidTensorFile(Exception):
    """A file of tensors, such as a checkpoint, is damaged, or holds something else than it should."""


Setting = float | Callable[[float], float] | Sequence[Any] | None  # a number, a schedule, a list of these, not set


def require_at_least(minimum: float, /, **settings: Setting) -> None:
    """Raises one SettingError that names every setting with a number below `minimum`.

    As in the functions below, a schedule is asked over the whole run, None counts as not set, and infinite is wrong.
    """
    _require(lambda number: minimum <= number < inf, f"at least {minimum}", settings)


def require_positive(**settings: Setting) -> None:
    """Raises one SettingError that names every setting with a number that is not above 0."""
    _require(lambda number: 0 < number < inf, "a number above 0", settings)


def require_minutes(**settings: Setting) -> None:
    """Raises one SettingError that names every setting that is no time of a run: minutes above 0, at most 19 years."""
    _require(lambda number: 0 < number <= 10**7, "a number above 0, at most 10,000,000", settings)


def require_between(low: float, high: float, /, **settings: Setting) -> None:
    """Raises one SettingError that names every setting with a number below `low` or above `high`."""
    _require(lambda number: low <= number <= high, f"from {low:,} to {high:,}", settings)


def require_coordinate(**settings: Setting) -> None:
    """Raises one SettingError that names every setting with a number too large for a coordinate of samples or noise.

    Squares, and differences of near ones, of larger numbers mean nothing in float32.
    """
    require_between(-(10**9), 10**9, **settings)


def require_share(**settings: Setting) -> None:
    """Raises one SettingError that names every setting with a number that is no share, from 0 to 1."""
    require_between(0, 1, **settings)


def require_decay(**settings: Setting) -> None:
    """Raises one SettingError that names every setting with a number that is no decay rate, at least 0 and below 1."""
    _require(lambda number: 0 <= number < 1, "at least 0 and below 1", settings)


def require_memory(size: float, /, **settings: float) -> None:
    """Raises SettingError that names the largest of `settings`, for which `size` bytes are needed at least.

    It is raised where this machine, or this process by its limit, has less.
    """
    most = memory_limit()
    if not size <= most:
        name = max(settings, key=lambda each: settings[each])
        raise SettingError(
            f"{name}={settings[name]}: would take {gibibytes(size)} of memory or more; there are {gibibytes(most)}"
        )


@cache
def _physical_memory() -> float:
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # not known here
        return inf


def memory_limit() -> float:
    """Returns the bytes of memory that this process can have at most; infinity where that is not known."""
    try:
        import resource
    except ImportError:  # not a POSIX system
        return _physical_memory()
    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    return min(_physical_memory(), *(limit for limit in limits if limit != resource.RLIM_INFINITY), inf)


def gibibytes(size: float) -> str:
    """Returns bytes as a text, such as "1,863 GiB"."""
    return f"{size / 2**30:,.1f} GiB" if size < 2**60 else "a billion GiB"


def _require(is_right: Callable[[float], bool], expected: str, settings: Mapping[str, Setting]) -> None:
    wrong = []
    for name, setting in settings.items():
        number = next((number for number in _numbers(setting) if not is_right(number)), None)
        if number is not None:
            where = f" by {setting}" if callable(setting) else f" in {setting}" if isinstance(setting, Sequence) else ""
            wrong.append(f"{name}={number}{where}: {expected}")
    if wrong:
        raise SettingError("\n".join(wrong))


def _numbers(setting: Setting) -> list[float]:
    """Returns the numbers in a setting, a schedule's at its ends and between."""
    if setting is None:
        return []
    if callable(setting):
        return [setting(progress) for progress in (0.0, 1.0, 0.25, 0.5, 0.75)]
    if isinstance(setting, (list, tuple)):
        return [number for item in setting for number in _numbers(item)]
    assert isinstance(setting, (int, float))
    return [setting]


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Returns "; did you mean …?" where another one of `options` is close to `word`, else an empty string."""
    close = difflib.get_close_matches(word, [option for option in options if option != word], n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def printable(text: object) -> str:
    """Returns the text with escapes such as `\\x1b` for whatever a terminal or a log would not show as it is.

    These are control characters, line ends among them, and bytes of file names that are no text.
    """
    return "".join(letter if letter.isprintable() else _escape(letter) for letter in str(text))


def _escape(letter: str) -> str:
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte that the file system's encoding lacks
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
