"""Batches of data too large for the device: the next ones are read while the last one is in use."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Rows = Callable[[int, int], Tensor]  # step, part of the batch -> indices (n,)
THREADS = 4  # reads at once: a disk is slow to answer one after the other
STEPS = 3  # ahead: one slow read delays nothing
POOL = ThreadPoolExecutor(THREADS, thread_name_prefix="gancli-data")  # of all data sets; it starts with its first work
Reading = tuple[Tensor, list[Future[None]]]  # what will be full once all are done


class Prefetcher:
    """`images[rows(step, part)]`, and in the background already those of the next steps; what comes out is the same.

    images: (N, ...) in memory or mapped. With CUDA the rows are pinned, so that their copy to the device does not wait.
    """

    def __init__(self, images: Tensor, rows: Rows) -> None:
        self.images, self.rows = images, rows
        self.waiting: dict[tuple[int, int], Reading] = {}
        self.last: dict[int, int] = {}  # step of each part

    def __call__(self, step: int, part: int) -> Tensor:
        """The rows of this step. Only who goes from step to step is read ahead for; a jump lets go what was begun."""
        coming = range(step + 1, step + 1 + STEPS) if self.last.get(part) == step - 1 else range(0)
        self.last[part] = step
        batch, work = self.waiting.pop((step, part)) if (step, part) in self.waiting else self._begin(step, part)
        self.waiting = {key: each for key, each in self.waiting.items() if key[1] != part or key[0] in coming}
        for later in coming:
            if (later, part) not in self.waiting:
                self.waiting[later, part] = self._begin(later, part)
        for each in work:
            each.result()
        return batch

    def _begin(self, step: int, part: int) -> Reading:
        rows = self.rows(step, part)
        batch = torch.empty(
            (len(rows), *self.images.shape[1:]), dtype=self.images.dtype, pin_memory=torch.cuda.is_available()
        )
        # NumPy's copy takes one thread and lets the others run; torch's would start threads in each of ours.
        pieces = zip(rows.chunk(THREADS), batch.chunk(THREADS), strict=True)
        return batch, [POOL.submit(self._read, some.numpy(), into.numpy()) for some, into in pieces]

    def _read(self, rows: NDArray[np.int64], into: NDArray[np.uint8]) -> None:
        np.take(self.images.numpy(), rows, axis=0, out=into, mode="clip")  # which, unlike "raise", needs no buffer
