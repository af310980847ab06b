"""One step of the game over all parts of a batch: the shards of the processes, and the micro-batches of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from gancli.distributed.process_group import ProcessGroup
from gancli.game import Game
from gancli.updates import PlayerUpdate, Update

PartBatchFn = Callable[[int, int], tuple[Tensor, Tensor | None]]  # part of the batch, k -> samples, labels


def player_updates(
    update: Update,
    game: Game,
    batch: PartBatchFn,
    process_group: ProcessGroup,
    *,
    accumulate: int,
    step: int,
    progress: float,
) -> Iterator[PlayerUpdate]:
    """Yields the player updates of the whole batch, the same for any number of parts, up to rounding.

    Gradients, losses and penalties are the means over the parts; logits are those of all parts. The micro-batches of
    a process take each player update one after the other, with the same random stream, before any optimizer steps.
    """
    local = [process_group.rank * accumulate + index for index in range(accumulate)]
    game.stream.parts = process_group.world_size * accumulate
    runs = [update.player_updates(game, partial(batch, part), step=step, progress=progress) for part in local]
    while True:
        generator_state = game.stream.generator.get_state()
        found = []
        for part, run in zip(local, runs, strict=True):
            game.stream.part = part
            game.stream.generator.set_state(generator_state)
            found.append(next(run, None))
        done = [each for each in found if each is not None]
        if not done:
            return
        yield done[0] if game.stream.parts == 1 else _reduce(done, game, process_group)


def _reduce(parts: list[PlayerUpdate], game: Game, process_group: ProcessGroup) -> PlayerUpdate:
    """Averages the updates of this process's micro-batches, and those of the processes."""
    first = parts[0]
    gradients = [w.grad for player in first.players for w in game.weights[player] if w.grad is not None]
    torch._foreach_div_(gradients, len(parts))  # backward passes add up
    losses = {name: torch.stack([part.losses[name] for part in parts]).mean() for name in first.losses}
    penalties = {name: torch.stack([part.penalties[name] for part in parts]).mean() for name in first.penalties}
    process_group.all_reduce_mean_([*gradients, *losses.values(), *penalties.values()])
    whole = replace(first, losses=losses, penalties=penalties)
    if first.real_logits is not None and first.fake_logits is not None:
        real = [part.real_logits for part in parts if part.real_logits is not None]
        fake = [part.fake_logits for part in parts if part.fake_logits is not None]
        whole.real_logits, whole.fake_logits = (process_group.all_gather(torch.cat(side)) for side in (real, fake))
    return whole
