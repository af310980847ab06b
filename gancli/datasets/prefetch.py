"""Reads batches of data that is too large for the device in the background, a few steps before they are needed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Indices = Callable[[int, int], Tensor]  # step, rank -> indices (n,)
THREADS = 4  # reads at once, since a single read from a disk is slow
STEPS = 3  # read in advance, so that one slow read delays nothing
POOL = ThreadPoolExecutor(THREADS, thread_name_prefix="gancli-data")  # shared by all data sets; starts when first used
PendingBatch = tuple[Tensor, list[Future[None]]]  # a tensor that is full when all futures are done


class Prefetcher:
    """Returns `images[indices(step, rank)]`, and reads the next steps' images in the background meanwhile.

    images: (N, ...) in memory or memory-mapped. With CUDA the batch is pinned, so that its copy to the device does
    not block.
    """

    def __init__(self, images: Tensor, indices: Indices) -> None:
        self.images, self.indices = images, indices
        self.pending: dict[tuple[int, int], PendingBatch] = {}  # by (step, rank)
        self.last_step: dict[int, int] = {}  # by rank

    def __call__(self, step: int, rank: int) -> Tensor:
        """Returns the batch of this step.

        Later steps are read in advance only when steps are consecutive; after a jump, pending batches are dropped.
        """
        consecutive = self.last_step.get(rank) == step - 1
        upcoming = range(step + 1, step + 1 + STEPS) if consecutive else range(0)
        self.last_step[rank] = step
        batch, reads = self.pending.pop((step, rank)) if (step, rank) in self.pending else self._start(step, rank)
        self.pending = {key: value for key, value in self.pending.items() if key[1] != rank or key[0] in upcoming}
        for later in upcoming:
            if (later, rank) not in self.pending:
                self.pending[later, rank] = self._start(later, rank)
        for read in reads:
            read.result()
        return batch

    def _start(self, step: int, rank: int) -> PendingBatch:
        indices = self.indices(step, rank)
        batch = torch.empty(
            (len(indices), *self.images.shape[1:]), dtype=self.images.dtype, pin_memory=torch.cuda.is_available()
        )
        # NumPy copies in the calling thread and releases the GIL; torch would start threads in each of these threads.
        chunks = zip(indices.chunk(THREADS), batch.chunk(THREADS), strict=True)
        return batch, [POOL.submit(self._read, source.numpy(), target.numpy()) for source, target in chunks]

    def _read(self, indices: NDArray[np.int64], target: NDArray[np.uint8]) -> None:
        np.take(self.images.numpy(), indices, axis=0, out=target, mode="clip")  # unlike "raise", it needs no buffer
