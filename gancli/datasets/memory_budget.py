"""A bound on the memory that threads take together for what they read or decode."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class MemoryBudget:
    """Lets threads take memory as long as their sum is within `limit` bytes; a larger piece is taken alone."""

    def __init__(self, limit: int) -> None:
        self.limit, self.taken = limit, 0
        self._changed = threading.Condition()

    @contextmanager
    def taking(self, size: int) -> Iterator[None]:
        """Waits until `size` bytes may be taken, and gives them back at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self.taken == 0 or self.taken + size <= self.limit)
            self.taken += size
        try:
            yield
        finally:
            with self._changed:
                self.taken -= size
                self._changed.notify_all()
