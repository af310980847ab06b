"""Numbers that change over a run. Any number that says `float | Schedule` may be one."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

from gancli.errors import SettingError


class Schedule(ABC):
    """A number as a function of progress, the share of the run that is done, from 0 to 1.

    Progress is images seen over `train.images`, or time spent over `train.minutes` where that is further,
    so a schedule fits any length of run and any budget.
    """

    @abstractmethod
    def __call__(self, progress: float) -> float:
        """The value at `progress`."""


class Constant(Schedule):
    """`value` throughout."""

    def __init__(self, *, value: float) -> None:
        self.value = value

    def __call__(self, progress: float) -> float:
        return self.value


class _Ramp(Schedule):
    """From `start` to `end` between the progress `begin` and `finish`, constant outside of them."""

    def __init__(self, *, start: float, end: float, begin: float = 0.0, finish: float = 1.0) -> None:
        if not 0.0 <= begin < finish <= 1.0:
            raise SettingError(f"begin={begin}, finish={finish}: they are shares of the run, 0 <= begin < finish <= 1")
        self.start, self.end, self.begin, self.finish = start, end, begin, finish

    def __call__(self, progress: float) -> float:
        done = min(max((progress - self.begin) / (self.finish - self.begin), 0.0), 1.0)
        return self.start + (self.end - self.start) * self.share(done)

    @abstractmethod
    def share(self, done: float) -> float:
        """How much of the way is gone when `done` of the ramp's time is."""


class Linear(_Ramp):
    """A straight line."""

    def share(self, done: float) -> float:
        return done


class Cosine(_Ramp):
    """Half a cosine: flat at both ends (Loshchilov & Hutter, ICLR 2017, eq. 5, without restarts)."""

    def share(self, done: float) -> float:
        return 0.5 - 0.5 * math.cos(math.pi * done)


class BurnIn(Schedule):
    """Cosine from `start` to `value` during the first `until` of the run, then `value`."""

    def __init__(self, *, start: float, value: float, until: float = 0.1) -> None:
        if not 0.0 < until <= 1.0:
            raise SettingError(f"until={until}: it is a share of the run, 0 < until <= 1")
        self.ramp = Cosine(start=start, end=value, finish=until)

    def __call__(self, progress: float) -> float:
        return self.ramp(progress)


def at(value: Any, progress: float) -> Any:
    """`value` with every schedule in it, also inside lists and tuples, replaced by its number."""
    if isinstance(value, Schedule):
        return value(progress)
    if isinstance(value, (list, tuple)):
        return tuple(at(item, progress) for item in value)
    return value
