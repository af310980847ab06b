"""A stand-in for CUDA graphs on a CPU, as strict as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = {"aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::equal", "aten::is_nonzero"}
FROM_HOST = {"aten::lift_fresh"}  # torch.tensor(number): on a GPU a copy that waits


class Waits(TorchDispatchMode):
    """Writes down each operation for which the host would wait on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names += {func.name().partition(".")[0]} & (WAITS | FROM_HOST)
        return func(*args, **(kwargs or {}))


class Tracer(TorchDispatchMode):
    """Writes down each operation with the very tensors that it took and gave; numbers are as they were.

    Raises RuntimeError, as a capture does, for an operation that needs the host: reading a value, drawing numbers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Any]]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}  # by storage, of what was there before
        self.born: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().partition(".")[0]
        if name in WAITS | FROM_HOST or torch.Tag.nondeterministic_seeded in func.tags:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}\nand more")
        for tensor in tensors((args, kwargs)):
            where = tensor.untyped_storage().data_ptr()
            if where not in self.born and where not in self.before:
                self.before[where] = (tensor.detach(), copy_of(tensor))
        made = func(*args, **(kwargs or {}))
        known = {tensor.untyped_storage().data_ptr() for tensor in tensors((args, kwargs))}
        self.born |= {tensor.untyped_storage().data_ptr() for tensor in tensors(made)} - known - set(self.before)
        self.calls.append((func, args, kwargs or {}, tensors(made)))
        return made

    def undo(self) -> None:
        """A capture does nothing, so what was there is as it was."""
        for tensor, copy in self.before.values():
            whole(tensor).copy_(copy)

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, made in self.calls:
            for old, new in zip(made, tensors(func(*args, **kwargs)), strict=True):
                if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.copy_(new)


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def whole(tensor: Tensor) -> Tensor:
    """All of the storage that a tensor may see only a part of."""
    return torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())


def copy_of(tensor: Tensor) -> Tensor:
    return whole(tensor).clone()


class Graphs:
    """Recorders and what they did. allowed: recordings that succeed before one fails."""

    def __init__(self, allowed: float = float("inf")) -> None:
        self.allowed, self.recorded, self.replayed, self.run_plainly = allowed, 0, 0, 0

    def __call__(self) -> Graphs:
        return self

    def run(self, work: Callable[[], None]) -> None:
        self.run_plainly += 1
        work()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        if self.recorded >= self.allowed:
            raise RuntimeError("out of graphs")
        tracer = Tracer()
        try:
            with tracer:
                work()
        finally:
            tracer.undo()
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            tracer.replay()

        return replay
