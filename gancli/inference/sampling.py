"""Samples whose i-th row depends on a seed and i alone, and the walks between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from gancli.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from gancli.errors import UserError, did_you_mean, printable, require_memory
from gancli.game import Autocast, eval_mode
from gancli.networks.base import Generator
from gancli.priors import Prior
from gancli.progress import progress
from gancli.randomness import seeded

BATCH_SIZE = 64
BLOCK = 1024  # rows of noise drawn at once, so that row i of a seed is the same for every count and batch size
STOPS = 4  # rows of noise on each closed walk
_FLOAT = 4  # bytes


def noise_rows(
    prior: Prior, count: int, *, seed: int, truncation: float | None = None, stream: str = "sample"
) -> Tensor:
    """Returns noise (count, dim) whose row i depends on (seed, stream, i) alone. Raises SettingError."""
    require_memory(2 * _FLOAT * count * prior.dim, count=count)  # the blocks, and all of them in one
    rng = seeded(seed, stream)
    blocks = [prior.sample(BLOCK, rng, truncation=truncation) for _ in range(math.ceil(count / BLOCK))]
    return torch.cat(blocks)[:count]


def generate(
    generator: Generator,
    noise: Tensor,
    labels: Tensor | None = None,
    *,
    batch_size: int = BATCH_SIZE,
    process_group: ProcessGroup = SINGLE_PROCESS,
    autocast: Autocast = nullcontext,
) -> Iterator[Tensor]:
    """Yields samples on the CPU, batch by batch, float32 (B, *image_shape).

    noise: (N, dim). labels: int64 (N,), or float (N, num_classes) for mixtures of classes. process_group: the processes
    that generate them together. autocast: the context of a forward pass. Raises SettingError.
    """
    per_sample = _FLOAT * (noise.shape[1] + math.prod(generator.image_shape))
    require_memory(batch_size * per_sample, batch_size=batch_size)
    device = next(generator.parameters()).device

    def forward(rows: Tensor) -> Tensor:
        batch_labels = None if labels is None else labels[rows].to(device)
        with autocast():
            return generator(noise[rows].to(device), batch_labels).float()  # type: ignore[no-any-return]

    with eval_mode(generator):
        batches = process_group.map_batches(len(noise), batch_size, forward)
        for samples in progress(batches, title="samples", total=len(noise), size=len):
            yield samples.cpu()


def classes_in_turn(classes: Sequence[int], count: int) -> Tensor:
    """Returns labels, int64 (count,): the classes one after the other, again and again."""
    return torch.tensor(classes).repeat(math.ceil(count / len(classes)))[:count]


def chosen_classes(
    chosen: Sequence[int | str] | int | str | None, num_classes: int, names: Sequence[str]
) -> list[int] | None:
    """Returns the chosen classes (all for None), which are sampled in turn; None for a generator without labels.

    chosen: numbers, or some of `names`, those of all classes in order, where they have names. Raises UserError.
    """
    if not num_classes:
        if chosen is not None:
            raise UserError(f"labels={chosen}: this run was trained without labels; leave labels out")
        return None
    if chosen is None:
        return list(range(num_classes))
    wanted = [chosen] if isinstance(chosen, (int, str)) else list(chosen)
    labels = [label if isinstance(label, int) else _label_of(label, names) for label in wanted]
    if not labels or not all(0 <= label < num_classes for label in labels):
        raise UserError(f"labels={chosen}: classes of this run are 0 to {num_classes - 1}")
    return labels


def _label_of(name: str, names: Sequence[str]) -> int:
    if name in names:
        return list(names).index(name)
    known = ", ".join(map(printable, names[:20])) + (", … (all in run.json)" if len(names) > 20 else "")
    has = f"; its classes are {known}" if names else ", whose classes have numbers only"
    raise UserError(f"labels={printable(name)}: no class of this run{has}{did_you_mean(name, names)}")


def line_between(prior: Prior, a: Tensor, b: Tensor, steps: int) -> Tensor:
    """Returns noise from a to b, both (..., dim), with both ends: (steps, ..., dim). See `Prior.between`."""
    return torch.stack([prior.between(a, b, step / (steps - 1)) for step in range(steps)])


def walk_through_noise(prior: Prior, noise: Tensor, frames: int, *, seed: int, truncation: float | None) -> Tensor:
    """Returns closed walks that start at the rows of `noise` (N, dim): (STOPS * frames, N, dim).

    frames: from one stop to the next. The stops of row i depend on the seed and i alone. Gaussian noise is interpolated
    along great circles (see `Prior.between`).
    """
    streams = [f"stop {number}" for number in range(1, STOPS)]
    others = [noise_rows(prior, len(noise), seed=seed, truncation=truncation, stream=stream) for stream in streams]
    return _closed([noise, *others], frames, prior.between)


def walk_through_classes(classes: Sequence[int], num_classes: int, frames: int) -> Tensor:
    """Returns mixtures of classes on a closed walk from each class to the next: float (len(classes) * frames, classes).

    frames: from one class to the next.
    """
    return _closed([*torch.eye(num_classes)[list(classes)]], frames, torch.lerp)


def line_through_classes(classes: Sequence[int], num_classes: int, steps: int) -> Tensor:
    """Returns mixtures of classes from the first class through all to the last one: float (steps, num_classes)."""
    one_hot = torch.eye(num_classes)[list(classes)]
    places = torch.linspace(0, len(classes) - 1, steps)
    before = places.long().clamp(max=len(classes) - 2)
    return torch.lerp(one_hot[before], one_hot[before + 1], (places - before)[:, None])


def _closed(stops: Sequence[Tensor], frames: int, between: Callable[[Tensor, Tensor, float], Tensor]) -> Tensor:
    pairs = zip(stops, [*stops[1:], stops[0]], strict=True)
    return torch.stack([between(a, b, frame / frames) for a, b in pairs for frame in range(frames)])
