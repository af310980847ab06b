"""Schedules: numbers that change over a run, for every setting of type `float | Schedule`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

from gancli.errors import SettingError


class Schedule(ABC):
    """A number as a function of progress, the fraction of the run that is done, from 0 to 1.

    Progress is the larger of images seen / `train.images` and time spent / `train.minutes`, so that a schedule fits a
    run of any length or time budget.
    """

    @abstractmethod
    def __call__(self, progress: float) -> float:
        """Returns the value at `progress`."""

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({settings})"


class Constant(Schedule):
    """Always `value`."""

    def __init__(self, *, value: float) -> None:
        self.value = value

    def __call__(self, progress: float) -> float:
        return self.value


class _Ramp(Schedule):
    """Changes from `start` to `end` between the progress `begin` and `finish`, and is constant before and after.

    Raises SettingError.
    """

    def __init__(self, *, start: float, end: float, begin: float = 0.0, finish: float = 1.0) -> None:
        if not 0.0 <= begin < finish <= 1.0:
            raise SettingError(f"begin={begin}, finish={finish}: fractions of the run with 0 <= begin < finish <= 1")
        self.start, self.end, self.begin, self.finish = start, end, begin, finish

    def __call__(self, progress: float) -> float:
        time = min(max((progress - self.begin) / (self.finish - self.begin), 0.0), 1.0)
        return self.start + (self.end - self.start) * self.shape(time)

    @abstractmethod
    def shape(self, time: float) -> float:
        """Returns the fraction of the way from `start` to `end` at `time`; both go from 0 to 1."""


class Linear(_Ramp):
    """Changes at a constant rate."""

    def shape(self, time: float) -> float:
        return time


class Cosine(_Ramp):
    """Follows half a cosine, flat at both ends (Loshchilov & Hutter, ICLR 2017, eq. 5, without restarts)."""

    def shape(self, time: float) -> float:
        return 0.5 - 0.5 * math.cos(math.pi * time)


class BurnIn(Schedule):
    """Changes as `Cosine` from `start` to `value` until the progress `until`, then stays. Raises SettingError."""

    def __init__(self, *, start: float, value: float, until: float = 0.1) -> None:
        if not 0.0 < until <= 1.0:
            raise SettingError(f"until={until}: a fraction of the run with 0 < until <= 1")
        self.start, self.value, self.until = start, value, until
        self._ramp = Cosine(start=start, end=value, finish=until)

    def __call__(self, progress: float) -> float:
        return self._ramp(progress)


def at(value: Any, progress: float) -> Any:
    """Returns `value` with every schedule in it replaced by its number at `progress`; lists become tuples."""
    if isinstance(value, Schedule):
        return value(progress)
    if isinstance(value, (list, tuple)):
        return tuple(at(item, progress) for item in value)
    return value
