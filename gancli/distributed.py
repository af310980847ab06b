"""What the processes of one run say to one another, over torch.distributed. One process alone says nothing."""

from __future__ import annotations

import atexit
import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from gancli.errors import Diverged
from gancli.launch import Place, place

log = logging.getLogger(__name__)
T = TypeVar("T")
TIMEOUT = timedelta(hours=12)  # the first process may decode much while others wait; a death is noticed at once


class Team:
    """The processes of a run, each with its share of every batch.

    What is averaged or gathered is afterwards the same in all of them, so that each takes the same decisions.
    Words and flags travel over gloo, tensors on a GPU over NCCL.
    """

    def __init__(self, where: Place) -> None:
        self.rank, self.size, self.local_rank = where.rank, where.world_size, where.local_rank
        self.first, self.alone = where.first, where.alone

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Puts the mean over the processes in the place of each, with one message for each kind of number."""
        if self.alone:
            return
        kinds: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            kinds.setdefault(tensor.dtype, []).append(tensor)
        for some in kinds.values():
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in some])
            dist.all_reduce(flat)
            parts = flat.div_(self.size).split([tensor.numel() for tensor in some])
            torch._foreach_copy_(
                [tensor.detach() for tensor in some],
                [part.view_as(tensor) for part, tensor in zip(parts, some, strict=True)],
            )

    def gathered(self, rows: Tensor) -> Tensor:
        """(n, ...) of each process -> (size n, ...) in the order of the ranks; differentiable, also twice."""
        return rows if self.alone else _Sum.apply(self._at_my_place(rows))

    def mine(self, rows: Tensor) -> Tensor:
        """The inverse of `gathered`: this process's (n, ...) of (size n, ...)."""
        count = len(rows) // self.size
        return rows[self.rank * count : (self.rank + 1) * count]

    def total(self, values: Tensor) -> Tensor:
        """The sum over the processes; differentiable, also twice."""
        return values if self.alone else _Sum.apply(values)

    def share_out(self, count: int, batch: int, make: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        """`make(rows)` for rows 0 .. count, in order, each process making `batch` of them at a time.

        Every batch is of full size, its last one filled up, so that neither a sample's place among the others nor
        the number of processes can change its rounding.
        """
        for start in range(0, count, batch * self.size):
            at = start + self.rank * batch
            yield self.gathered(make(torch.arange(at, at + batch).clamp(max=count - 1)))[: count - start]

    def said(self, word: Callable[[], T]) -> T:
        """What the first process finds, or the error that it meets, in all of them; the others do not look."""
        if self.alone:
            return word()
        told: list[Any] = [None, None]
        met: Exception | None = None
        if self.first:
            try:
                told[0] = word()
            except Exception as error:
                error.__dict__["everywhere"] = True
                met, told[1] = error, _portable(error)
        dist.broadcast_object_list(told, src=0)
        if told[1] is not None:
            raise met or told[1]
        return told[0]  # type: ignore[no-any-return]

    def largest(self, numbers: Sequence[float]) -> list[float]:
        """The largest of each number over the processes."""
        if self.alone:
            return list(numbers)
        agreed = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
        return agreed.tolist()

    def wait(self) -> None:
        """Until all are here."""
        if not self.alone:
            self.largest([0.0])

    @contextmanager
    def first_first(self) -> Iterator[None]:
        """The first process does it, and leaves its caches, before the others do; they raise what it raised."""
        if not self.first:
            self.said(_nothing)
        try:
            yield
        except Exception as error:
            if self.first:
                self.said(partial(_fail, error))
            raise
        if self.first:
            self.said(_nothing)

    def _at_my_place(self, rows: Tensor) -> Tensor:
        before, after = (torch.zeros_like(rows) for _ in range(2))
        parts = [before] * self.rank + [rows] + [after] * (self.size - self.rank - 1)
        return torch.cat(parts)


class _Sum(torch.autograd.Function):
    """All-reduce whose derivative is an all-reduce."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = values.contiguous().clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _Sum.apply(grads[0])  # type: ignore[no-any-return]


def everywhere(error: Exception) -> bool:
    """Whether every process of the run meets `error`, so that all go on to the same thing after it."""
    return isinstance(error, Diverged) or bool(error.__dict__.get("everywhere"))


def _portable(error: Exception) -> Exception:
    """`error`, if it survives the way to another process, else one that says the same."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        plain = RuntimeError(f"{type(error).__name__}: {error}")
        plain.__dict__["everywhere"] = True
        return plain
    return error


def _nothing() -> None:
    return None


def _fail(error: Exception) -> NoReturn:
    raise error


ALONE = Team(Place())
_team: Team | None = None
_failed = False


def team() -> Team:
    """The team of this process, joined at the first call: a sweep's later jobs meet the same one."""
    global _team
    if _team is None:
        where = place()
        if not where.alone:
            _join(where)
        _team = Team(where)
    return _team


@contextmanager
def apart() -> Iterator[None]:
    """For what one process does by itself: nobody is asked meanwhile."""
    global _team
    before, _team = _team, ALONE
    try:
        yield
    finally:
        _team = before


def _join(where: Place) -> None:
    os.environ |= {
        "RANK": str(where.rank),
        "WORLD_SIZE": str(where.world_size),
        "LOCAL_RANK": str(where.local_rank),
        "MASTER_ADDR": where.address,
        "MASTER_PORT": str(where.port),
    }
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store, rank, size = next(iter(rendezvous("env://", timeout=TIMEOUT)))
    # torchrun keeps its store over restarts, and with it the addresses of dead processes.
    store = PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    atexit.register(_leave)


def _leave() -> None:
    """Ends the threads that carry messages: the end of Python would abort one that is still tidying up.

    After a failure NCCL might wait for those that are gone, and the end is not a clean one anyhow.
    """
    if dist.is_initialized() and not (_failed and torch.cuda.is_available()):
        dist.destroy_process_group()


def first_to_fail() -> bool:
    """Marks the run as failed. Returns whether no other process did so before: then this one says why."""
    global _failed
    _failed = True
    if _team is None or _team.alone:
        return True
    try:
        store = dist.distributed_c10d._get_default_store()
        return bool(store.add("gancli/failed", 1) == 1)
    except RuntimeError:  # the store went with the process that held it
        return _team.first
