"""The training step as CUDA graphs: recorded once, then replayed, each replay a single launch.

Small networks leave a GPU waiting for the hundreds of launches of a step, which a graph does without (`Capturing
CUDA graphs` in torch's notes on CUDA). A step is recorded in parts: the gradients of each stage with all penalties,
each player's optimizer, and the moving average. Between gradients and update the host reads whether all is finite,
as it does without graphs, so that a step that is not finite still leaves the players as they were.

A replay repeats the same operations on the same addresses. So all that differs from step to step stands in tensors
that stay where they are, and is put there first: data and noise, drawn as ever from the run's own streams; learning
rates, weights of penalties, strength of augmentation. Which penalties are due decides which recording is played.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from gancli.game import Game, Scored
from gancli.penalties import Penalty
from gancli.runtime import Stream
from gancli.updates import Draw, Stage, Update

if TYPE_CHECKING:
    from gancli.trainer import Trainer

log = logging.getLogger(__name__)
WARM_UP = 3  # times that work is done as it is, so that libraries and optimizers have made what they keep
Work = Callable[[], None]


class Recorder(Protocol):
    """What records work. The work may take and leave values only in tensors that outlive it."""

    def run(self, work: Work) -> None:
        """Does it at once, as it would be recorded."""

    def record(self, work: Work) -> Work:
        """What will do it again. Does not do it now. Raises RuntimeError where that cannot be, such as for an
        operation that waits for the device."""


class CudaRecorder:
    """Records CUDA graphs, which share their memory: only one of them may be at work at a time.

    Nothing may be kept in that memory from one graph to another, but by graphs that were recorded in the order in
    which they are played.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)  # capture is not possible on the default one
        self.pool = torch.cuda.graph_pool_handle()

    def run(self, work: Work) -> None:
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            work()
        current.wait_stream(self.stream)

    def record(self, work: Work) -> Work:
        graph = torch.cuda.CUDAGraph()
        # Threads that read data ahead pin memory meanwhile, which is none of the capture's business.
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            work()
        return graph.replay


def recorded(recorder: Recorder, works: Iterable[Work], what: str) -> list[Work] | None:
    """What does each of them again; None, and a warning that names them, where one cannot be recorded."""
    try:
        return [recorder.record(work) for work in works]
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        log.warning("device.cuda_graph: %s cannot be recorded, so they go on without: %s", what, reason)
        return None


class Recorded:
    """Does `work` as it is at first, and then by replay. what: its name in a warning, in the plural."""

    def __init__(self, work: Work, recorder: Recorder, what: str) -> None:
        self.work, self.recorder, self.what = work, recorder, what
        self.runs = 0
        self.replay: Work = partial(recorder.run, work)

    def __call__(self) -> None:
        if self.runs == WARM_UP:
            (self.replay,) = recorded(self.recorder, [self.work], self.what) or [self.replay]
        self.runs += 1
        self.replay()


class Tape(Stream):
    """What a step draws, data and noise, in the order in which it asks for it, always in the same tensors.

    The first step draws as it asks. For later ones `fill` draws beforehand, from the same streams in the same order.
    """

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream.generator, device=stream.device)
        self.stream, self.asked = stream, 0
        self.drawn: list[tuple[Callable[[Draw], Any], tuple[Tensor | None, ...]]] = []
        self.ends: list[int] = []  # of the stages, as places in `drawn`
        self.draw: Draw

    def take(self, draw: Callable[[int, torch.Generator], Tensor], count: int) -> Tensor:
        (noise,) = self._next(lambda _: (self.stream.take(draw, count),))
        assert noise is not None
        return noise

    def batch(self, k: int) -> tuple[Tensor, Tensor | None]:
        """The step's k-th real batch: (B, *shape), labels (B,)."""
        samples, labels = self._next(lambda draw: draw(k))
        assert samples is not None
        return samples, labels

    def fill(self, stage: int, draw: Draw) -> None:
        """Draws what that stage will ask for."""
        for source, places in self.drawn[self.ends[stage - 1] if stage else 0 : self.ends[stage]]:
            for place, value in zip(places, source(draw), strict=True):
                if place is not None:
                    place.copy_(value, non_blocking=True)

    def _next(self, source: Callable[[Draw], Any]) -> tuple[Tensor | None, ...]:
        if self.asked == len(self.drawn):
            own = tuple(None if value is None else value.clone() for value in source(self.draw))
            self.drawn.append((source, own))
        self.asked += 1
        return self.drawn[self.asked - 1][1]


class Weighed(Penalty):
    """A penalty whose factor stands in a tensor, 0-dim."""

    def __init__(self, penalty: Penalty, number: Tensor) -> None:
        self.penalty, self.number = penalty, number
        self.touches_fake, self.both_players = penalty.touches_fake, penalty.both_players

    def due(self, step: int, progress: float) -> bool:
        return self.penalty.due(step, progress)

    def factor(self, progress: float) -> Tensor:
        return self.number

    def __call__(self, real: Scored, fake: Scored, game: Game, labels: Tensor | None) -> Tensor:
        return self.penalty(real, fake, game, labels)


class _Script:
    """One way for a step to go. stages: where results stand. replays: one for each stage, once recorded."""

    def __init__(self, game: Game, tape: Tape) -> None:
        self.game, self.tape = replace(game, stream=tape), tape
        self.runs, self.stages = 0, list[Stage]()
        self.replays: list[Work] | None = None


class Replayed(Update):
    """`update` of `game`, by replays. Gradients stand in tensors that stay where they are, for optimizers to record."""

    def __init__(self, update: Update, game: Game, recorder: Recorder) -> None:
        self.update, self.recorder, self.recordable = update, recorder, True
        self.discriminator_steps = update.discriminator_steps
        strength, *factors = torch.zeros(1 + len(game.penalties), device=game.stream.device).unbind()
        augment = game.augment.with_strength(strength)
        if augment is None:
            raise ValueError(f"augment {type(game.augment).__name__} has no strength that could stand on the device")
        self.game = replace(
            game,
            augment=augment,
            penalties={name: Weighed(p, f) for (name, p), f in zip(game.penalties.items(), factors, strict=True)},
        )
        self.numbers: list[tuple[Tensor, Callable[[float], Tensor | float]]] = [
            (strength, lambda _: game.augment.strength),
            *((factor, penalty.factor) for factor, penalty in zip(factors, game.penalties.values(), strict=True)),
        ]
        self.known: dict[Tensor, float] = {}  # what stands there
        self.gradients: dict[Tensor, Tensor] = {}  # of each parameter
        self.scripts: dict[tuple[bool, ...], _Script] = {}

    def stages(self, game: Game, draw: Draw, *, step: int, progress: float) -> Iterator[Stage]:
        counts = range(step * self.discriminator_steps, (step + 1) * self.discriminator_steps)
        due = tuple(penalty.due(count, progress) for count in counts for penalty in game.penalties.values())
        # Taken out meanwhile: a step that is broken off may leave it half done.
        script = self.scripts.pop(due, None) or _Script(self.game, Tape(game.stream))
        begin = partial(self.update.stages, script.game, script.tape.batch, step=step, progress=progress)
        self._number(progress)
        for stage in self._play(script, draw, begin) if script.stages else self._learn(script, draw, begin):
            yield stage
            self._number(progress)  # augmentation may have learned from the stage's logits
        self.scripts[due] = script

    def _number(self, progress: float) -> None:
        for place, number in self.numbers:
            value = number(progress)
            if isinstance(value, Tensor):
                place.copy_(value)
            elif value != self.known.get(place):  # most stay as they are, and each costs a launch
                self.known[place] = value
                place.fill_(value)

    def _play(self, script: _Script, draw: Draw, begin: Callable[[], Iterator[Stage]]) -> Iterator[Stage]:
        if script.runs == WARM_UP and self.recordable:
            # All stages before any is played: where one cannot be recorded, nothing has happened yet.
            script.replays = recorded(self.recorder, self._works(script, begin), "gradients")
            self.recordable = script.replays is not None
        script.runs += 1
        works = script.replays or [partial(self.recorder.run, work) for work in self._works(script, begin)]
        for index, (stage, work) in enumerate(zip(script.stages, works, strict=True)):
            script.tape.fill(index, draw)
            work()
            for weight in self._weights(stage):
                weight.grad = self.gradients.get(weight)
            yield stage

    def _learn(self, script: _Script, draw: Draw, begin: Callable[[], Iterator[Stage]]) -> Iterator[Stage]:
        """The first time: what is drawn and found stays where it is, for later ones to be put there."""
        script.runs, script.tape.draw = 1, draw
        for stage in begin():
            script.stages.append(stage)
            script.tape.ends.append(len(script.tape.drawn))
            self._settle(stage, stage)
            yield stage

    def _works(self, script: _Script, begin: Callable[[], Iterator[Stage]]) -> list[Work]:
        """The stages of a step, to be done in this order."""
        script.tape.asked = 0
        run = begin()

        def work(stage: Stage) -> None:
            for weight in self._weights(stage):
                weight.grad = None
            self._settle(next(run), stage)

        return [partial(work, stage) for stage in script.stages]

    def _settle(self, found: Stage, place: Stage) -> None:
        """Puts results and gradients where they always stand."""
        pairs = list(zip(_tensors(place), _tensors(found), strict=True))
        for weight in self._weights(found):
            if weight.grad is not None:
                pairs.append((self.gradients.setdefault(weight, weight.grad), weight.grad))
                weight.grad = pairs[-1][0]
        moved = [pair for pair in pairs if pair[0] is not pair[1]]
        if moved:
            torch._foreach_copy_([place for place, _ in moved], [value for _, value in moved])

    def _weights(self, stage: Stage) -> list[Tensor]:
        return [weight for player in stage.players for weight in self.game.weights[player]]


def _tensors(stage: Stage) -> list[Tensor]:
    logits = [logits for logits in (stage.real_logits, stage.fake_logits) if logits is not None]
    return [*stage.losses.values(), *stage.penalties.values(), *logits]


def apply(trainer: Trainer, make: Callable[[], Recorder]) -> None:
    """Lets `trainer` take its steps by replays on what `make` makes. Says what goes on without, and why."""
    try:
        if trainer.team.size * trainer.accumulate > 1:
            raise ValueError("a batch is taken in parts, by several processes or by train.accumulate")
        if not trainer.update.capturable:
            raise ValueError(f"update {type(trainer.update).__name__} does not say that it is capturable")
        trainer.update = Replayed(trainer.update, trainer.game, make())
    except ValueError as error:
        log.warning("device.cuda_graph=true changes nothing here: %s", error)
        return
    # Of their own, for they are played between stages, which may keep something in theirs.
    recorder = make()
    for player, optimizer in trainer.optimizers.items():
        if not optimizer.record(recorder):
            kind = type(optimizer.optimizer).__name__
            log.warning("device.cuda_graph: the %s's updates go on without: %s is not capturable", player, kind)
    trainer.ema.record(recorder, trainer.game.generator)
