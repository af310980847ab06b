"""The device and the numerical precision of a run."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from gancli.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from gancli.errors import UserError, require_between

log = logging.getLogger(__name__)
Network = TypeVar("Network", bound=nn.Module)
_MAX_THREADS = 1_024  # more than a machine has cores for
_OPERATIONS_PER_THREAD = 40_000_000  # multiply-adds of a step, below which another thread does not pay


@cache
def default_threads() -> int:
    """Returns the number of CPU threads that torch chose at its import."""
    return torch.get_num_threads()


def device_name(device: torch.device) -> str:
    """Returns the name of a device, such as NVIDIA H200, or CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


class Runtime:
    """The device that a run computes on, its precision, and the processes that share the run.

    kind: "auto" takes CUDA where it is visible. precision: float32; tf32 (the shortened float32 of CUDA's matrix
    units); bf16 (autocast; parameters stay float32); "auto" for tf32 on CUDA, float32 on a CPU. cuda_graph: replay
    training steps as CUDA graphs (see `training.cuda_graphs`); "auto" for on CUDA. deterministic: let CUDA compute the
    same bits each time, which exact resume needs, instead of trying out what is fastest. threads: CPU threads; "auto"
    for as many as a training step keeps busy (see `choose_threads`), None for torch's choice.
    Raises UserError where the device is not available, SettingError.
    """

    def __init__(
        self,
        *,
        kind: Literal["auto", "cpu", "cuda"] = "auto",
        precision: Literal["auto", "float32", "tf32", "bf16"] = "auto",
        channels_last: bool = True,
        cuda_graph: bool | Literal["auto"] = "auto",
        deterministic: bool = True,
        threads: int | Literal["auto"] | None = "auto",
        process_group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        if kind == "cuda" and not torch.cuda.is_available():
            raise UserError("device=cuda: no CUDA device is visible here; use device=auto or device=cpu")
        self.check_settings(threads=threads)
        self.process_group = process_group
        self.device = torch.device("cpu")
        if kind != "cpu" and torch.cuda.is_available():
            # Slurm may show each task its own device only; torchrun shows all devices to all processes.
            self.device = torch.device("cuda", process_group.local_rank % torch.cuda.device_count())
            torch.cuda.set_device(self.device)
        on_cuda = self.device.type == "cuda"
        if precision == "auto":
            precision = "tf32" if on_cuda else "float32"
        self.kind, self.precision, self.channels_last = kind, precision, channels_last
        self.cuda_graph = bool(cuda_graph) and on_cuda
        self.cuda_graph_level = logging.INFO if cuda_graph == "auto" else logging.WARNING  # where none can be captured
        self.threads = threads
        torch.set_num_threads(threads if isinstance(threads, int) else default_threads())
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        if on_cuda:
            torch.backends.cudnn.allow_tf32 = precision == "tf32"
            torch.backends.cudnn.deterministic = deterministic
            torch.backends.cudnn.benchmark = not deterministic
        elif precision == "tf32":
            log.warning("device.precision=tf32 changes nothing on a CPU: it computes in float32")
        if cuda_graph is True and not on_cuda:
            log.warning("device.cuda_graph=true changes nothing on a CPU: there are no kernel launches to save")

    @staticmethod
    def check_settings(*, threads: int | Literal["auto"] | None = "auto", **_: Any) -> None:
        """Raises SettingError for values that are wrong whatever the device."""
        require_between(1, _MAX_THREADS, threads=threads if isinstance(threads, int) else None)

    def __str__(self) -> str:
        """The device, threads and precision, each with the reason where it was chosen by itself."""
        on_cuda = self.device.type == "cuda"
        without = "" if self.kind != "auto" or on_cuda else " (no CUDA device is visible)"
        count, threads = self.process_group.world_size, torch.get_num_threads()
        processes = f", {count} processes" if count > 1 else ""
        parallel = f"{threads} {'thread' if threads == 1 else 'threads'}"
        parallel += " (as many as a step keeps busy)" if self.threads == "auto" and not on_cuda else ""
        return f"{device_name(self.device)}{without}, {parallel}, {self.precision}{processes}"

    def choose_threads(self, operations: int) -> None:
        """Sets the number of threads where it is "auto" and the device is the CPU.

        operations: multiply-adds of the forward passes of a training step, in this process. A small operation costs
        less than dividing it, many times less where other programs use the cores too: threads wait for the last one.
        """
        if self.threads == "auto" and self.device.type == "cpu":
            torch.set_num_threads(min(max(1, operations // _OPERATIONS_PER_THREAD), default_threads()))

    def place(self, network: Network) -> Network:
        """Returns the network on the device, its convolution weights in channels_last where that was chosen."""
        network = network.to(self.device)
        if self.channels_last:
            network = network.to(memory_format=torch.channels_last)
        return network

    def autocast(self) -> AbstractContextManager[Any]:
        """Returns the context in which one forward pass is computed."""
        if self.precision != "bf16":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16, cache_enabled=False)
