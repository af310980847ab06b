"""How this process was started: alone, or as one of several by torchrun, srun or submitit. Does not import torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gancli.errors import UserError


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
    """Reads the launcher's environment variables; torchrun's variables take precedence over Slurm's.

    An empty variable counts as not set. Raises UserError that names a variable with an impossible value.
    """
    env = os.environ if environment is None else environment
    if env.get("RANK") and env.get("WORLD_SIZE"):  # torchrun, or a launcher that sets the same variables
        return ProcessInfo(
            **_ranks(env, rank="RANK", world_size="WORLD_SIZE", local_rank="LOCAL_RANK"),
            address=env.get("MASTER_ADDR") or "127.0.0.1",
            port=number(env, "MASTER_PORT", default=29500, low=1, high=65535),
        )
    # A batch script's own shell has SLURM_NTASKS too, but only a step, srun's, has peers.
    if env.get("SLURM_PROCID") and number(env, "SLURM_STEP_NUM_TASKS", default=1) > 1:
        return ProcessInfo(
            **_ranks(env, rank="SLURM_PROCID", world_size="SLURM_STEP_NUM_TASKS", local_rank="SLURM_LOCALID"),
            address=first_host(env.get("SLURM_STEP_NODELIST") or "127.0.0.1"),
            port=_port(env, "SLURM_JOB_ID"),
        )
    if env.get("SUBMITIT_EXECUTOR") == "local" and number(env, "SUBMITIT_LOCAL_NTASKS", default=1) > 1:
        names = {"rank": "GLOBALID", "world_size": "NTASKS", "local_rank": "LOCALID"}
        return ProcessInfo(  # submitit without Slurm: all on this machine
            **_ranks(env, **{key: f"SUBMITIT_LOCAL_{name}" for key, name in names.items()}),
            port=_port(env, "SUBMITIT_LOCAL_JOB_ID"),
        )
    return ProcessInfo()


def number(
    env: Mapping[str, str], name: str, *, default: int | None = None, low: int = 0, high: int | None = None
) -> int:
    """Returns a variable's number, from `low` to `high`; `default` where it is empty or missing. Raises UserError."""
    text = env.get(name) or None
    if text is None and default is not None:
        return default
    value = int(text) if text is not None and re.fullmatch(r"\d{1,18}", text.strip(), re.ASCII) else None
    if value is None or value < low or (high is not None and value > high):
        limits = f"of at least {low}" if high is None else f"from {low} to {high}"
        given = f"{name} is not set" if text is None else f"{name}={text}"
        raise UserError(f"{given}: the environment variable must be a number {limits}; or unset those of the launcher")
    return value


def _ranks(env: Mapping[str, str], *, rank: str, world_size: str, local_rank: str) -> dict[str, Any]:
    """Returns the numbers of the variables of these names. Raises UserError."""
    size = number(env, world_size, low=1)
    return {
        "world_size": size,
        "rank": number(env, rank, high=size - 1),
        "local_rank": number(env, local_rank, default=0, high=size - 1),
    }


def _port(env: Mapping[str, str], job: str) -> int:
    """Returns a port that all processes of a job agree on and that most other jobs do not use."""
    return 20_000 + number(env, job, default=0) % 40_000


def was_restarted(environment: Mapping[str, str] | None = None) -> bool:
    """Whether a scheduler restarted this process after preemption, a time limit or the death of a peer."""
    env = os.environ if environment is None else environment
    return any(number(env, name, default=0) for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))


def is_restartable() -> bool:
    """Whether torchrun would start this process again after a failure. Raises UserError."""
    return number(os.environ, "TORCHELASTIC_MAX_RESTARTS", default=0) > 0


def first_host(nodes: str) -> str:
    """Returns the first name of Slurm's list of nodes: "gpu[03-05,9],cpu1" -> "gpu03"."""
    found = re.match(r"([^,\[]+)(?:\[(\w+)[^\]]*\]([^,]*))?", nodes)
    return "".join(part or "" for part in found.groups()) if found else nodes
