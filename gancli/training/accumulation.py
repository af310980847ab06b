"""One step of the game over all parts of a batch: the shards of the processes, and the micro-batches of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from gancli.distributed.process_group import ProcessGroup
from gancli.game import Game
from gancli.updates import BatchFn, PlayerUpdate, Update


class UpdateInParts(Update):
    """`update` of the whole batch, the same for any number of parts, up to rounding.

    Gradients, losses and penalties are the means over the parts; logits are those of all parts. The `accumulate`
    micro-batches of a process take each player update one after the other, with the same random stream, before any
    optimizer steps. `game.stream.part` says which part of a real batch is asked for.
    """

    def __init__(self, update: Update, process_group: ProcessGroup, *, accumulate: int) -> None:
        self.update, self.process_group = update, process_group
        self.discriminator_steps, self.capturable = update.discriminator_steps, update.capturable
        first = process_group.rank * accumulate
        self.local, self.parts = range(first, first + accumulate), process_group.world_size * accumulate

    def player_updates(self, game: Game, draw: BatchFn, *, step: int, progress: float) -> Iterator[PlayerUpdate]:
        game.stream.parts = self.parts
        runs = [self.update.player_updates(game, draw, step=step, progress=progress) for _ in self.local]
        while True:
            generator_state = game.stream.generator.get_state()
            found = []
            for part, run in zip(self.local, runs, strict=True):
                game.stream.part = part
                game.stream.generator.set_state(generator_state)
                found.append(next(run, None))
            done = [each for each in found if each is not None]
            if not done:
                return
            yield self._reduce(done, game)

    def _reduce(self, parts: list[PlayerUpdate], game: Game) -> PlayerUpdate:
        """Averages the updates of this process's micro-batches, and those of the processes."""
        first, group = parts[0], self.process_group
        gradients = [w.grad for player in first.players for w in game.weights[player] if w.grad is not None]
        torch._foreach_div_(gradients, len(parts))  # backward passes add up
        losses = {name: _mean([part.losses[name] for part in parts]) for name in first.losses}
        penalties = {name: _mean([part.penalties[name] for part in parts]) for name in first.penalties}
        group.all_reduce_mean_([*gradients, *losses.values(), *penalties.values()])
        whole = replace(first, losses=losses, penalties=penalties)
        if first.real_logits is not None and first.fake_logits is not None:
            real = [part.real_logits for part in parts if part.real_logits is not None]
            fake = [part.fake_logits for part in parts if part.fake_logits is not None]
            whole.real_logits, whole.fake_logits = (group.all_gather(torch.cat(side)) for side in (real, fake))
        return whole


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()
