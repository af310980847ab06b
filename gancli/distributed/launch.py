"""How this process was started: alone, or as one of several by torchrun, srun or submitit. Does not import torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ProcessInfo:
    """One process of a run of `world_size` processes.

    local_rank: its rank among those on its machine. address, port: where the main process (rank 0) listens.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    address: str = "127.0.0.1"
    port: int = 29500

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0


def process_info(environment: Mapping[str, str] | None = None) -> ProcessInfo:
    """Reads the launcher's environment variables; torchrun's variables take precedence over Slurm's."""
    env = os.environ if environment is None else environment
    if "RANK" in env and "WORLD_SIZE" in env:  # torchrun, or a launcher that sets the same variables
        return ProcessInfo(
            rank=int(env["RANK"]),
            world_size=int(env["WORLD_SIZE"]),
            local_rank=int(env.get("LOCAL_RANK", "0")),
            address=env.get("MASTER_ADDR", "127.0.0.1"),
            port=int(env.get("MASTER_PORT", "29500")),
        )
    # A batch script's own shell has SLURM_NTASKS too, but only a step, srun's, has peers.
    if int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_PROCID" in env:
        return ProcessInfo(
            rank=int(env["SLURM_PROCID"]),
            world_size=int(env["SLURM_STEP_NUM_TASKS"]),
            local_rank=int(env.get("SLURM_LOCALID", "0")),
            address=first_host(env.get("SLURM_STEP_NODELIST", "127.0.0.1")),
            port=_port(env.get("SLURM_JOB_ID", "0")),
        )
    if env.get("SUBMITIT_EXECUTOR") == "local" and int(env.get("SUBMITIT_LOCAL_NTASKS", "1")) > 1:
        return ProcessInfo(  # submitit without Slurm: all on this machine
            rank=int(env["SUBMITIT_LOCAL_GLOBALID"]),
            world_size=int(env["SUBMITIT_LOCAL_NTASKS"]),
            local_rank=int(env["SUBMITIT_LOCAL_LOCALID"]),
            port=_port(env["SUBMITIT_LOCAL_JOB_ID"]),
        )
    return ProcessInfo()


def _port(job: str) -> int:
    """Returns a port that all processes of a job agree on and that most other jobs do not use."""
    return 20_000 + int(job) % 40_000


def was_restarted(environment: Mapping[str, str] | None = None) -> bool:
    """Whether a scheduler restarted this process after preemption, a time limit or the death of a peer."""
    env = os.environ if environment is None else environment
    return any(int(env.get(name, "0")) > 0 for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))


def first_host(nodes: str) -> str:
    """Returns the first name of Slurm's list of nodes: "gpu[03-05,9],cpu1" -> "gpu03"."""
    found = re.match(r"([^,\[]+)(?:\[(\w+)[^\]]*\]([^,]*))?", nodes)
    return "".join(part or "" for part in found.groups()) if found else nodes
