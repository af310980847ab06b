"""One step of the game over all parts of the batch: those of the processes, and the micro-batches of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from gancli.distributed import Team
from gancli.game import Game
from gancli.updates import Stage, Update

Part = Callable[[int, int], tuple[Tensor, Tensor | None]]  # part of the batch, k -> samples, labels


def stages(
    update: Update, game: Game, draw: Part, team: Team, *, accumulate: int, step: int, progress: float
) -> Iterator[Stage]:
    """The stages of the whole batch, the same for any number of processes and micro-batches, up to rounding.

    Gradients, losses and penalties are the means over the parts, logits are those of all. The micro-batches of a
    process go through a stage one after the other, with the same random stream, before any player is updated.
    """
    mine = [team.rank * accumulate + index for index in range(accumulate)]
    game.stream.parts = team.size * accumulate
    runs = [update.stages(game, partial(draw, part), step=step, progress=progress) for part in mine]
    while True:
        begun = game.stream.generator.get_state()
        found = []
        for part, run in zip(mine, runs, strict=True):
            game.stream.part = part
            game.stream.generator.set_state(begun)
            found.append(next(run, None))
        done = [stage for stage in found if stage is not None]
        if not done:
            return
        yield done[0] if game.stream.parts == 1 else _whole(done, game, team)


def _whole(parts: list[Stage], game: Game, team: Team) -> Stage:
    """One stage of those of this process's micro-batches and of the other processes'."""
    first = parts[0]
    gradients = [w.grad for player in first.players for w in game.weights[player] if w.grad is not None]
    torch._foreach_div_(gradients, len(parts))  # backward passes add up
    losses = {name: torch.stack([part.losses[name] for part in parts]).mean() for name in first.losses}
    penalties = {name: torch.stack([part.penalties[name] for part in parts]).mean() for name in first.penalties}
    team.average([*gradients, *losses.values(), *penalties.values()])
    whole = replace(first, losses=losses, penalties=penalties)
    if first.real_logits is not None and first.fake_logits is not None:
        whole.real_logits = team.gathered(
            torch.cat([part.real_logits for part in parts if part.real_logits is not None])
        )
        whole.fake_logits = team.gathered(
            torch.cat([part.fake_logits for part in parts if part.fake_logits is not None])
        )
    return whole
