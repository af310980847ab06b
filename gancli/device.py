"""The device and the numerical precision of a run."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from gancli.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from gancli.errors import UserError, require_at_least

log = logging.getLogger(__name__)
Network = TypeVar("Network", bound=nn.Module)


class Runtime:
    """The device that a run computes on, its precision, and the processes that share the run.

    kind: `auto` takes CUDA where it is visible. precision: float32; tf32 (the shortened float32 of CUDA's matrix
    units); bf16 (autocast; parameters stay float32). cuda_graph: replay training steps as CUDA graphs (see
    `training.cuda_graphs`). threads: CPU threads, None for torch's choice.
    Raises UserError where the device is not available, SettingError.
    """

    def __init__(
        self,
        *,
        kind: Literal["auto", "cpu", "cuda"] = "auto",
        precision: Literal["float32", "tf32", "bf16"] = "float32",
        channels_last: bool = True,
        cuda_graph: bool = False,
        threads: int | None = None,
        process_group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        if kind == "cuda" and not torch.cuda.is_available():
            raise UserError("device=cuda: no CUDA device is visible here; use device=auto or device=cpu")
        require_at_least(1, threads=threads)
        self.process_group = process_group
        self.device = torch.device("cpu")
        if kind != "cpu" and torch.cuda.is_available():
            # Slurm may show each task its own device only; torchrun shows all devices to all processes.
            self.device = torch.device("cuda", process_group.local_rank % torch.cuda.device_count())
            torch.cuda.set_device(self.device)
        self.precision, self.channels_last = precision, channels_last
        self.cuda_graph = cuda_graph and self.device.type == "cuda"
        if threads is not None:
            torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        if self.device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = precision == "tf32"
            torch.backends.cudnn.deterministic = True  # exact resume needs it
        elif precision == "tf32":
            log.warning("device.precision=tf32 changes nothing on a CPU: it computes in float32")
        if cuda_graph and not self.cuda_graph:
            log.warning("device.cuda_graph=true changes nothing on a CPU: there are no kernel launches to save")

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        count = self.process_group.world_size
        processes = f", {count} processes" if count > 1 else ""
        return f"{name}, {torch.get_num_threads()} threads, {self.precision}{processes}"

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
