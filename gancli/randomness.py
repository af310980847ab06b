"""Random generators: named streams, noise that belongs to a sample, and their state for checkpoints."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor


def seeded(*key: int | str) -> torch.Generator:
    """Returns a CPU generator whose stream depends on `key` alone, such as (seed, "order", epoch)."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def seed_global_generators(seed: int) -> None:
    """Seeds the global generators of Python, NumPy and torch, which initialise the networks."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Returns `values`, which were drawn on the CPU, on `device`, without a wait for the work that is queued there.

    Only a copy from pinned memory does not wait. torch keeps pinned memory that is free again for the next step, and
    gives it out only after the copy from it was made.
    """
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


class Stream:
    """Random numbers that belong to the samples of the global batch, not to a process.

    Each process that computes a part of the batch draws for the whole batch from the same generator and keeps its
    own slice, so that one process and several processes train the same run. Numbers are drawn on the CPU, so that a
    run may be resumed on another device.
    """

    def __init__(self, generator: torch.Generator, *, device: torch.device, part: int = 0, parts: int = 1) -> None:
        self.generator, self.device = generator, device
        self.part, self.parts = part, parts

    def take(self, draw: Callable[[int, torch.Generator], Tensor], count: int) -> Tensor:
        """Calls `draw(n, rng) -> (n, ...)` for the global batch and returns the (count, ...) of this part."""
        drawn = draw(count * self.parts, self.generator)
        return to_device(drawn[self.part * count : (self.part + 1) * count], self.device)


def random_state(stream: Stream) -> dict[str, Any]:
    """Returns the state of every random generator as plain values and tensors."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "noise": stream.generator.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, cached],
    }


def set_random_state(state: dict[str, Any], stream: Stream) -> None:
    """Restores every random generator from what `random_state` returned. Raises ValueError, and what torch raises."""
    stream.generator.set_state(state["noise"])
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    if not 0 <= position <= len(keys):  # numpy would read past their end
        raise ValueError(f"random: numpy's generator stands at {position} of {len(keys)} numbers")
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
