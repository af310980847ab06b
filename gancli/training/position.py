"""Where a run stands, and what is due there: by images seen, and by time."""

from __future__ import annotations

import math
from dataclasses import dataclass

_FIRST_TIMES = (10.0, 30.0, 60.0, 120.0, 240.0)  # seconds; later on, times lie equally far apart


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run stands after a step.

    images: real images seen. step_images: of these, in the last step. seconds: of training, over all starts.
    step_seconds: of these, since the step before. progress: share of the run that is done, 0 to 1.
    """

    images: int
    step_images: int
    seconds: float
    step_seconds: float
    progress: float

    def passed(self, every: int) -> bool:
        """Whether the last step reached or passed a multiple of `every` images."""
        return self.images // every > (self.images - self.step_images) // every

    def passed_time(self, minutes: float | None, *, first: float = 10.0) -> bool:
        """Whether the last step passed a time at which something is due: 10 s, 30 s, 1, 2, 4 minutes, and so on.

        minutes: longest time between two; None for never. first: seconds before which nothing is due, unless
        `minutes` is shorter.
        """
        if minutes is None:
            return False
        before = _times_until(self.seconds - self.step_seconds, first=first, longest=60 * minutes)
        return _times_until(self.seconds, first=first, longest=60 * minutes) > before

    @property
    def seconds_left(self) -> float:
        """Seconds to the end of the run at its mean pace; infinite before the first step."""
        return self.seconds / self.progress * (1 - self.progress) if self.progress > 0 else math.inf


def _times_until(seconds: float, *, first: float, longest: float) -> int:
    """Returns how many of the times at which something is due lie in the first `seconds`."""
    gaps = zip(_FIRST_TIMES, (0.0, *_FIRST_TIMES), strict=False)
    times = [time for time, previous in gaps if time >= first and time - previous <= longest]
    later = (seconds - (times[-1] if times else 0.0)) // longest
    return sum(time <= seconds for time in times) + max(0, int(later))
