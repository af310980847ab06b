"""Devices, precision, ranks and random streams: the only place that knows of them."""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from gancli import distributed
from gancli.errors import UserError

log = logging.getLogger(__name__)
Network = TypeVar("Network", bound=nn.Module)


def seeded(*key: int | str) -> torch.Generator:
    """A CPU generator whose stream depends on `key` alone, such as (seed, "order", epoch)."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


class Stream:
    """Random numbers that belong to the samples of the global batch, not to a process.

    Whoever computes a part of the batch draws for all of it from the same generator and keeps its own slice,
    so that one process or several train the same run. Drawn on the CPU, so that a run may change its device.
    """

    def __init__(self, generator: torch.Generator, *, device: torch.device, part: int = 0, parts: int = 1) -> None:
        self.generator, self.device = generator, device
        self.part, self.parts = part, parts

    def take(self, draw: Callable[[int, torch.Generator], Tensor], count: int) -> Tensor:
        """`draw(n, rng) -> (n, ...)` for the global batch; returns the (count, ...) of this part."""
        drawn = draw(count * self.parts, self.generator)
        return drawn[self.part * count : (self.part + 1) * count].to(self.device, non_blocking=True)


class Runtime:
    """Where the run computes and how precisely.

    kind: `auto` takes CUDA where it is visible. precision: float32; tf32 (CUDA matrix units' short
    float32); bf16 (autocast, parameters stay float32). cuda_graph: replay training steps (see `graphs`).
    threads: CPU threads, None for torch's choice.
    Raises UserError where the device or the precision is not to be had.
    """

    def __init__(
        self,
        *,
        kind: Literal["auto", "cpu", "cuda"] = "auto",
        precision: Literal["float32", "tf32", "bf16"] = "float32",
        channels_last: bool = True,
        cuda_graph: bool = False,
        threads: int | None = None,
    ) -> None:
        if kind == "cuda" and not torch.cuda.is_available():
            raise UserError("device=cuda: no CUDA device is visible here; use device=auto or device=cpu")
        if threads is not None and threads < 1:
            raise ValueError(f"threads={threads}: at least 1, or null for torch's own choice")
        self.team = distributed.team()
        self.device = torch.device("cpu")
        if kind != "cpu" and torch.cuda.is_available():
            # Slurm may show a task its own device only, torchrun shows all of them to all.
            self.device = torch.device("cuda", self.team.local_rank % torch.cuda.device_count())
            torch.cuda.set_device(self.device)
        self.precision, self.channels_last = precision, channels_last
        self.cuda_graph = cuda_graph and self.device.type == "cuda"
        if threads is not None:
            torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        if self.device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = precision == "tf32"
            torch.backends.cudnn.deterministic = True  # exact resume asks for it
        elif precision == "tf32":
            log.warning("device.precision=tf32 changes nothing on a CPU: it computes in float32")
        if cuda_graph and not self.cuda_graph:
            log.warning("device.cuda_graph=true changes nothing on a CPU: there is no GPU to launch work on")

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        several = "" if self.team.alone else f", {self.team.size} processes"
        return f"{name}, {torch.get_num_threads()} threads, {self.precision}{several}"

    def seed(self, seed: int) -> None:
        """Seeds what initialises the networks and anything that draws from global generators."""
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)

    def stream(self, seed: int) -> Stream:
        """The stream of the run's noise."""
        return Stream(seeded(seed, "noise"), device=self.device)

    def place(self, network: Network) -> Network:
        """The network on the device, convolution weights in channels_last where asked for."""
        network = network.to(self.device)
        if self.channels_last:
            network = network.to(memory_format=torch.channels_last)
        return network

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of one forward pass."""
        if self.precision != "bf16":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16, cache_enabled=False)


def random_state(stream: Stream) -> dict[str, Any]:
    """Every random generator as plain values and tensors."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "noise": stream.generator.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, cached],
    }


def set_random_state(state: dict[str, Any], stream: Stream) -> None:
    """Puts every random generator where `random_state` found it."""
    stream.generator.set_state(state["noise"])
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
