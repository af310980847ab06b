"""Batches of data too large for the device: the next one is read while the last one is in use."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

Read = Callable[[int, int], Tensor]  # step, part of the batch -> rows in memory
THREADS = 4


class Ahead:
    """`read(step, part)`, and in the background already that of the next step; what comes out does not change.

    read: touches nothing but memory and files. With CUDA the rows are pinned, so that their copy to the device
    does not wait.
    """

    def __init__(self, read: Read) -> None:
        self.read = read
        self.pool = ThreadPoolExecutor(THREADS, thread_name_prefix="gancli-data")
        self.waiting: dict[tuple[int, int], Future[Tensor]] = {}

    def __call__(self, step: int, part: int) -> Tensor:
        """The rows of this step; whatever was begun for another one is let go."""
        found = self.waiting.pop((step, part), None)
        self.waiting = {key: future for key, future in self.waiting.items() if key[0] in (step, step + 1)}
        self.waiting.setdefault((step + 1, part), self.pool.submit(self._read, step + 1, part))
        return self._read(step, part) if found is None else found.result()

    def _read(self, step: int, part: int) -> Tensor:
        rows = self.read(step, part)
        return rows.pin_memory() if torch.cuda.is_available() else rows
