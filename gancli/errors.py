"""The errors that end a command with a message instead of a traceback, and the check that most settings share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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


class InvalidCheckpoint(Exception):
    """A checkpoint file is truncated, damaged, or holds more than tensors and plain values."""


def require_at_least(minimum: float, **settings: float | None) -> None:
    """Raises one SettingError that names every setting below `minimum`; None counts as not set."""
    low = {name: value for name, value in settings.items() if value is not None and not value >= minimum}
    if low:
        raise SettingError("\n".join(f"{name}={value}: at least {minimum}" for name, value in low.items()))


def require_positive(**settings: float | None) -> None:
    """Raises one SettingError that names every setting that is not above 0; None counts as not set."""
    low = {name: value for name, value in settings.items() if value is not None and not value > 0}
    if low:
        raise SettingError("\n".join(f"{name}={value}: a number above 0" for name, value in low.items()))


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Returns "; did you mean …?" where one of `options` is close to `word`, else an empty string."""
    close = difflib.get_close_matches(word, list(options), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""
