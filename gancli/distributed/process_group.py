"""The process group: what the processes of one run exchange, over torch.distributed."""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from gancli.distributed.launch import ProcessInfo, process_info
from gancli.errors import Diverged, ProcessLost

log = logging.getLogger(__name__)
T = TypeVar("T")
TIMEOUT = timedelta(hours=12)  # the main process may decode many images while others wait; a death is noticed at once
_JOIN_TIMEOUT = timedelta(minutes=5)  # between the first process that comes and the last one
_REPORT_TIMEOUT = timedelta(seconds=30)  # for another process to print the error that all of them met


class ProcessGroup:
    """The processes of a run, each of which computes its shard of every batch.

    What is reduced or gathered is the same in all processes afterwards, so that all take the same decisions. Python
    objects travel over gloo, tensors on a GPU over NCCL. With one process every method is a local operation.
    Methods raise ProcessLost where another process is gone.
    """

    def __init__(self, info: ProcessInfo, store: PrefixStore | None = None) -> None:
        self.rank, self.world_size, self.local_rank = info.rank, info.world_size, info.local_rank
        self.is_main_process = info.is_main_process
        self.failed = False
        self._store = store
        self._shared_error: Exception | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> ProcessGroup:
        return self  # a copy of a network, such as the average of the generator, has the same peers

    def all_reduce_mean_(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by its mean over the processes, with one message per dtype."""
        if self.world_size == 1:
            return
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_dtype.setdefault(tensor.dtype, []).append(tensor)
        for same in by_dtype.values():
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in same])
            _all_reduce(flat)
            parts = flat.div_(self.world_size).split([tensor.numel() for tensor in same])
            torch._foreach_copy_(
                [tensor.detach() for tensor in same],
                [part.view_as(tensor) for part, tensor in zip(parts, same, strict=True)],
            )

    def all_gather(self, rows: Tensor) -> Tensor:
        """(n, ...) of each process -> (world_size * n, ...) in the order of the ranks; twice differentiable."""
        if self.world_size == 1:
            return rows
        before, after = (torch.zeros_like(rows) for _ in range(2))
        parts = [before] * self.rank + [rows] + [after] * (self.world_size - self.rank - 1)
        return _AllReduceSum.apply(torch.cat(parts))  # type: ignore[no-any-return]

    def local_shard(self, rows: Tensor) -> Tensor:
        """(world_size * n, ...) -> this process's (n, ...); the inverse of `all_gather`."""
        count = len(rows) // self.world_size
        return rows[self.rank * count : (self.rank + 1) * count]

    def all_reduce_max(self, numbers: Sequence[float]) -> list[float]:
        """Returns the largest of each number over the processes."""
        if self.world_size == 1:
            return list(numbers)
        largest = torch.tensor(numbers, dtype=torch.float64)
        _all_reduce(largest, dist.ReduceOp.MAX)
        return largest.tolist()

    def barrier(self) -> None:
        """Returns once all processes have called it."""
        self.all_reduce_max([0.0])

    def map_batches(self, count: int, batch_size: int, make: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        """Yields `make(rows)` for rows 0 .. count - 1 in order; each process makes `batch_size` of them at a time.

        Every batch has the full size, the last one padded, so that neither a sample's position in its batch nor the
        number of processes changes its rounding.
        """
        for start in range(0, count, batch_size * self.world_size):
            first = start + self.rank * batch_size
            yield self.all_gather(make(torch.arange(first, first + batch_size).clamp(max=count - 1)))[: count - start]

    def broadcast_from_main(self, function: Callable[[], T]) -> T:
        """Calls `function` in the main process only, and returns its result, or raises its error, in all processes."""
        if self.world_size == 1:
            return function()
        message: list[Any] = [None, None]  # result, error
        error: Exception | None = None
        if self.is_main_process:
            try:
                message[0] = function()
            except Exception as raised:
                error, message[1] = raised, _picklable(raised)
        with _lost_processes():
            dist.broadcast_object_list(message, src=0)
        if message[1] is not None:
            self._shared_error = error or message[1]
            raise self._shared_error
        return message[0]  # type: ignore[no-any-return]

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Runs the block in the main process first, which fills caches, then in the others, which raise its error."""
        if not self.is_main_process:
            self.broadcast_from_main(lambda: None)
        try:
            yield
        except Exception as error:
            if self.is_main_process:
                self.broadcast_from_main(functools.partial(_raise, error))
            raise
        if self.is_main_process:
            self.broadcast_from_main(lambda: None)

    def is_shared(self, error: Exception) -> bool:
        """Whether every process of the run raises `error`, so that all of them go on to the same work after it."""
        return self.world_size == 1 or isinstance(error, Diverged) or error is self._shared_error

    def report_error_once(self, tell: Callable[[], None]) -> None:
        """Calls `tell` in the first process that comes here; the others return once it has told.

        A launcher ends all processes when one of them exits, so none may leave before the message is printed.
        """
        self.failed = True
        if self._store is None:
            tell()
            return
        try:
            claimed = self._store.add("gancli/error", 1) == 1
        except RuntimeError:  # the store ended with the process that held it
            claimed = self.is_main_process
        if claimed:
            tell()
        with contextlib.suppress(RuntimeError):
            if claimed:
                self._store.set("gancli/error-told", "1")
            else:
                self._store.wait(["gancli/error-told"], _REPORT_TIMEOUT)

    def leave(self) -> None:
        """Ends the threads that carry messages; the end of Python would abort one that is still cleaning up.

        After a failure NCCL might wait for processes that are gone, so there it is left as it is.
        """
        if dist.is_initialized() and not (self.failed and torch.cuda.is_available()):
            dist.destroy_process_group()


SINGLE_PROCESS = ProcessGroup(ProcessInfo())


def join_process_group() -> ProcessGroup:
    """Joins the processes that this one was started with. The later jobs of a sweep get the same group.

    Raises ProcessLost where not all of them come, at once where that is known already.
    """
    group = _join()
    if isinstance(group, ProcessLost):
        raise group
    return group


@functools.cache
def _join() -> ProcessGroup | ProcessLost:
    info = process_info()
    if info.world_size == 1:
        return SINGLE_PROCESS
    os.environ |= {
        "RANK": str(info.rank),
        "WORLD_SIZE": str(info.world_size),
        "LOCAL_RANK": str(info.local_rank),
        "MASTER_ADDR": info.address,
        "MASTER_PORT": str(info.port),
    }
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        store, rank, size = next(iter(rendezvous("env://", timeout=_JOIN_TIMEOUT)))
        # torchrun keeps its store over restarts, and with it the addresses of dead processes.
        store = PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_JOIN_TIMEOUT)
        wait_for_all(store, size)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        return ProcessLost(
            f"not all {info.world_size} processes of this run came to {info.address}:{info.port} within "
            f"{_JOIN_TIMEOUT.total_seconds() / 60:.3g} minutes; was one of them killed? ({reason})"
        )
    _set_timeout(TIMEOUT)
    group = ProcessGroup(info, store)
    atexit.register(group.leave)
    return group


def wait_for_all(store: Store, size: int) -> None:
    """Returns once `size` processes have called it. Raises RuntimeError where one of them does not come.

    A process returns from torch's init_process_group as soon as its own connections stand. If it then ended at once,
    with an error in the settings, the others would find a lost process instead of that error.
    """
    if store.add("gancli/joined", 1) == size:
        store.set("gancli/all-joined", "1")
    store.wait(["gancli/all-joined"], _JOIN_TIMEOUT)


def _set_timeout(timeout: timedelta) -> None:
    """Sets how long the processes wait for a message of each other."""
    if hasattr(dist, "set_timeout"):
        dist.set_timeout(timeout)
    else:  # before torch 2.13
        dist.distributed_c10d._set_pg_timeout(timeout)


class _AllReduceSum(torch.autograd.Function):
    """The sum over the processes, whose derivative is the sum over the processes."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = values.contiguous().clone()
        _all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _AllReduceSum.apply(grads[0])  # type: ignore[no-any-return]


@contextmanager
def _lost_processes() -> Iterator[None]:
    """Raises ProcessLost for torch's RuntimeError, which is all that gloo has for a closed connection."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise ProcessLost(f"another process of this run ended without a word; was it killed? ({reason})") from error


def _all_reduce(tensor: Tensor, operation: Any = dist.ReduceOp.SUM) -> None:
    with _lost_processes():
        dist.all_reduce(tensor, op=operation)


def _picklable(error: Exception) -> Exception:
    """Returns `error` where it survives pickling, else a RuntimeError with the same text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _raise(error: Exception) -> None:
    raise error
