"""The training step as CUDA graphs: captured once, then replayed, each replay a single launch.

Small networks leave a GPU waiting for the hundreds of kernel launches of a step, which a graph does without
("CUDA Graphs" in torch's CUDA notes). A step is captured in pieces: the gradients of each player update with all
penalties, each player's optimizer, and the moving average. The guard stands between gradients and optimizers, as it
does without graphs, so that a step that is not finite leaves the players unchanged.

A replay repeats the same operations on the same addresses. So everything that differs from step to step is kept in
static tensors and copied there first: data and noise, drawn as ever from the run's own streams; learning rates, weights
of penalties, the strength of augmentation. Which penalties are due decides which graph is replayed.

No other module knows of graphs: `apply` replaces a trainer's parts by the subclasses below.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gancli.game import DiscriminatorOutput, Game, Penalty
from gancli.randomness import Stream
from gancli.training.ema import EMA
from gancli.training.scheduled_optimizer import ScheduledOptimizer, step_unless
from gancli.training.trainer import Trainer
from gancli.updates import BatchFn, PlayerUpdate, Update

log = logging.getLogger(__name__)
WARM_UP = 3  # times that work runs eagerly first, so that libraries and optimizers have allocated what they keep
Work = Callable[[], None]


class Recorder(Protocol):
    """What captures work. The work may read and leave values only in tensors that outlive it."""

    def run(self, work: Work) -> None:
        """Runs the work now, eagerly, on the stream that captures."""

    def record(self, work: Work) -> Work:
        """Returns a function that repeats the work, without running it now.

        Raises RuntimeError where it cannot be captured, such as for an operation that waits for the device.
        """


class CudaRecorder:
    """Captures CUDA graphs that share one memory pool, so only one of them may run at a time.

    Nothing may be kept in that pool from one graph to the next, except by graphs that were captured in the order in
    which they are replayed.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)  # the default stream cannot capture
        self.pool = torch.cuda.graph_pool_handle()

    def run(self, work: Work) -> None:
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            work()
        current.wait_stream(self.stream)

    def record(self, work: Work) -> Work:
        graph = torch.cuda.CUDAGraph()
        # Threads that prefetch data pin memory meanwhile, which must not break the capture.
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            work()
        return graph.replay


def record_all(recorder: Recorder, works: Iterable[Work], what: str) -> list[Work] | None:
    """Returns what repeats each work; None, and a warning that names `what`, where one cannot be captured."""
    try:
        return [recorder.record(work) for work in works]
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        log.warning("device.cuda_graph: %s cannot be recorded, so they go on without: %s", what, reason)
        return None


class RecordedWork:
    """Runs `work` eagerly at first and then by replay. what: its name in a warning, in the plural."""

    def __init__(self, work: Work, recorder: Recorder, what: str) -> None:
        self.work, self.recorder, self.what = work, recorder, what
        self.runs = 0
        self.replay: Work = partial(recorder.run, work)

    def __call__(self) -> None:
        if self.runs == WARM_UP:
            (self.replay,) = record_all(self.recorder, [self.work], self.what) or [self.replay]
        self.runs += 1
        self.replay()


class GraphedOptimizer(ScheduledOptimizer):
    """`base`, whose updates are replayed. Gradients must stay in the same tensors from step to step.

    Raises ValueError where torch cannot capture the optimizer.
    """

    def __init__(self, base: ScheduledOptimizer, recorder: Recorder) -> None:
        self.parameters, self.make, self.optimizer = base.parameters, base.make, base.optimizer
        self.scheduled, self.lr = base.scheduled, base.lr
        self.recorder = recorder
        self.static_lr: Tensor | None = None
        self.static_skip: Tensor | None = None
        self.captured_settings: dict[str, Any] | None = None  # that a graph was captured for
        if "capturable" in self.optimizer.defaults:
            self.static_lr = torch.zeros((), device=self.parameters[0].device)
            for group in self.optimizer.param_groups:
                group["capturable"] = True
        elif not isinstance(self.optimizer, torch.optim.SGD):  # which counts no steps, but takes its rate as a number
            raise ValueError(f"{type(self.optimizer).__name__} is not capturable")

    def _apply(self, settings: dict[str, Any], skip: Tensor | None) -> None:
        if skip is not None:
            self.static_skip = skip.clone() if self.static_skip is None else self.static_skip.copy_(skip)
        fixed = {**settings, "may skip": skip is not None}
        if self.static_lr is not None and "lr" in settings:
            settings["lr"] = self.static_lr.fill_(fixed.pop("lr"))
        if fixed != self.captured_settings:  # a graph keeps the numbers that it was captured with
            self.captured_settings = fixed
            work = partial(step_unless, self.optimizer, None if skip is None else self.static_skip)
            self.replay = RecordedWork(work, self.recorder, "an optimizer's updates")
        for group in self.optimizer.param_groups:
            group.update(settings)
        self.replay()

    def state_dict(self) -> dict[str, Any]:
        """Returns the same state as without graphs."""
        state = self.optimizer.state_dict()
        for group in state["param_groups"]:
            known = {"capturable": self.optimizer.defaults.get("capturable")}
            group |= {"lr": self.lr} | {key: value for key, value in known.items() if key in group}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.captured_settings = None  # a graph would go on with the tensors of before


class GraphedEMA(EMA):
    """`base`, which follows `network`, and no other, by replays."""

    def __init__(self, base: EMA, recorder: Recorder, network: nn.Module) -> None:
        vars(self).update(vars(base))
        self.static_share, self.static_skip = torch.zeros(2, device=next(network.parameters()).device)
        work = partial(base.move_towards, network, self.static_share, self.static_skip)
        self.replay = RecordedWork(work, recorder, "moving averages")

    def move_towards(self, network: nn.Module, share: Tensor | float, skip: Tensor | None = None) -> None:
        self.static_share.fill_(share)
        if skip is not None:
            self.static_skip.copy_(skip)
        self.replay()


class TensorWeightPenalty(Penalty):
    """A penalty whose factor is read from a 0-dim tensor."""

    def __init__(self, penalty: Penalty, static_factor: Tensor) -> None:
        self.penalty, self.static_factor = penalty, static_factor
        self.player, self.reaches = penalty.player, penalty.reaches

    def due(self, step: int, progress: float) -> bool:
        return self.penalty.due(step, progress)

    def factor(self, progress: float) -> Tensor:
        return self.static_factor

    def __call__(
        self, real: DiscriminatorOutput, fake: DiscriminatorOutput, game: Game, labels: Tensor | None
    ) -> Tensor:
        return self.penalty(real, fake, game, labels)


class StaticInputs(Stream):
    """Everything that a step draws, data and noise, in the order in which it asks for it, in the same tensors.

    The first step draws as it asks. For later steps `fill` draws beforehand, from the same streams in the same order.
    drawn: for each time that a step asks, the part of the batch that does, how to draw, and where it is kept.
    """

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream.generator, device=stream.device)
        self.stream, self.asked = stream, 0
        self.drawn: list[tuple[int, Callable[[BatchFn], Any], tuple[Tensor | None, ...]]] = []
        self.ends: list[int] = []  # of the player updates, as indices into `drawn`
        self.draw: BatchFn

    def take(self, draw: Callable[[int, torch.Generator], Tensor], count: int) -> Tensor:
        (noise,) = self._next(lambda _: (self.stream.take(draw, count),))
        assert noise is not None
        return noise

    def batch(self, k: int) -> tuple[Tensor, Tensor | None]:
        """Returns the step's k-th real batch: (B, *shape), labels (B,)."""
        samples, labels = self._next(lambda draw: draw(k))
        assert samples is not None
        return samples, labels

    def fill(self, index: int, draw: BatchFn) -> None:
        """Draws what the player update number `index` will ask for."""
        began = self.generator.get_state()
        for part, source, static in self.drawn[self.ends[index - 1] if index else 0 : self.ends[index]]:
            if part != self.stream.part:  # each draws the same numbers and takes its own
                self.stream.part = part
                self.generator.set_state(began)
            for tensor, value in zip(static, source(draw), strict=True):
                if tensor is not None:
                    tensor.copy_(value, non_blocking=True)

    def _next(self, source: Callable[[BatchFn], Any]) -> tuple[Tensor | None, ...]:
        if self.asked == len(self.drawn):
            self.stream.part, self.stream.parts = self.part, self.parts
            static = tuple(None if value is None else value.clone() for value in source(self.draw))
            self.drawn.append((self.part, source, static))
        self.asked += 1
        return self.drawn[self.asked - 1][-1]


class _CapturedStep:
    """One combination of due penalties. updates: where results are kept. replays: one per update, once captured."""

    def __init__(self, game: Game, inputs: StaticInputs) -> None:
        self.game, self.inputs = replace(game, stream=inputs), inputs
        self.runs, self.updates = 0, list[PlayerUpdate]()
        self.replays: list[Work] | None = None


class CUDAGraphUpdate(Update):
    """`update` of `game`, by replays. Gradients are kept in the same tensors, so that optimizers can be captured.

    Raises ValueError where the augmentation has no strength that could be kept in a tensor.
    """

    def __init__(self, update: Update, game: Game, recorder: Recorder) -> None:
        self.update, self.recorder, self.recordable = update, recorder, True
        self.discriminator_steps = update.discriminator_steps
        strength, *factors = torch.zeros(1 + len(game.penalties), device=game.stream.device).unbind()
        augment = game.augment.with_strength(strength)
        if augment is None:
            raise ValueError(f"augment {type(game.augment).__name__} has no strength that a tensor could hold")
        self.game = replace(
            game,
            augment=augment,
            penalties={
                name: TensorWeightPenalty(penalty, factor)
                for (name, penalty), factor in zip(game.penalties.items(), factors, strict=True)
            },
        )
        self.numbers: list[tuple[Tensor, Callable[[float], Tensor | float]]] = [
            (strength, lambda _: game.augment.strength),
            *((factor, penalty.factor) for factor, penalty in zip(factors, game.penalties.values(), strict=True)),
        ]
        self.static_values: dict[Tensor, float] = {}
        self.gradients: dict[Tensor, Tensor] = {}  # of each parameter
        self.captured: dict[tuple[bool, ...], _CapturedStep] = {}

    def player_updates(self, game: Game, draw: BatchFn, *, step: int, progress: float) -> Iterator[PlayerUpdate]:
        counts = range(step * self.discriminator_steps, (step + 1) * self.discriminator_steps)
        due = tuple(penalty.due(count, progress) for count in counts for penalty in game.penalties.values())
        # Taken out meanwhile: a step that is broken off may leave it half done.
        captured = self.captured.pop(due, None) or _CapturedStep(self.game, StaticInputs(game.stream))
        begin = partial(self.update.player_updates, captured.game, captured.inputs.batch, step=step, progress=progress)
        self._set_numbers(progress)
        run = self._replay if captured.updates else self._warm_up
        for update in run(captured, draw, begin):
            yield update
            self._set_numbers(progress)  # augmentation may have learned from the logits
        self.captured[due] = captured

    def _set_numbers(self, progress: float) -> None:
        for static, number in self.numbers:
            value = number(progress)
            if isinstance(value, Tensor):
                static.copy_(value)
            elif value != self.static_values.get(static):  # most stay as they are, and each costs a launch
                self.static_values[static] = value
                static.fill_(value)

    def _replay(
        self, captured: _CapturedStep, draw: BatchFn, begin: Callable[[], Iterator[PlayerUpdate]]
    ) -> Iterator[PlayerUpdate]:
        if captured.runs == WARM_UP and self.recordable:
            # All updates before any is replayed: where one cannot be captured, nothing has happened yet.
            captured.replays = record_all(self.recorder, self._works(captured, begin), "gradients")
            self.recordable = captured.replays is not None
        captured.runs += 1
        works = captured.replays or [partial(self.recorder.run, work) for work in self._works(captured, begin)]
        for index, (update, work) in enumerate(zip(captured.updates, works, strict=True)):
            captured.inputs.fill(index, draw)
            work()
            for weight in self._weights(update):
                weight.grad = self.gradients.get(weight)
            yield update

    def _warm_up(
        self, captured: _CapturedStep, draw: BatchFn, begin: Callable[[], Iterator[PlayerUpdate]]
    ) -> Iterator[PlayerUpdate]:
        """The first step: the tensors that it draws and finds become the static ones."""
        captured.runs, captured.inputs.draw = 1, draw
        for update in begin():
            captured.updates.append(update)
            captured.inputs.ends.append(len(captured.inputs.drawn))
            self._copy_to_static(update, update)
            yield update

    def _works(self, captured: _CapturedStep, begin: Callable[[], Iterator[PlayerUpdate]]) -> list[Work]:
        """Returns the player updates of a step as work, to be done in this order."""
        captured.inputs.asked = 0
        run = begin()

        def work(update: PlayerUpdate) -> None:
            for weight in self._weights(update):
                weight.grad = None
            self._copy_to_static(next(run), update)

        return [partial(work, update) for update in captured.updates]

    def _copy_to_static(self, found: PlayerUpdate, static: PlayerUpdate) -> None:
        """Copies results and gradients into the tensors where they are kept."""
        pairs = list(zip(_tensors(static), _tensors(found), strict=True))
        for weight in self._weights(found):
            if weight.grad is not None:
                pairs.append((self.gradients.setdefault(weight, weight.grad), weight.grad))
                weight.grad = pairs[-1][0]
        moved = [pair for pair in pairs if pair[0] is not pair[1]]
        if moved:
            torch._foreach_copy_([target for target, _ in moved], [value for _, value in moved])

    def _weights(self, update: PlayerUpdate) -> list[Tensor]:
        return [weight for player in update.players for weight in self.game.weights[player]]


def _tensors(update: PlayerUpdate) -> list[Tensor]:
    logits = [logits for logits in (update.real_logits, update.fake_logits) if logits is not None]
    return [*update.losses.values(), *update.penalties.values(), *logits]


def apply(trainer: Trainer, make: Callable[[], Recorder], *, level: int = logging.WARNING) -> None:
    """Lets `trainer` take its steps by replays of what `make()` captures. Warns of what goes on without, and why.

    level: of the message where no step can be captured: a warning for a user who asked for graphs.
    """
    try:
        if trainer.process_group.world_size > 1:
            raise ValueError("a batch is divided among several processes")
        if not trainer.update.capturable:
            raise ValueError("the update rule does not say that it is capturable")
        trainer.update = CUDAGraphUpdate(trainer.update, trainer.game, make())
    except ValueError as error:
        log.log(level, "training steps run without CUDA graphs (device.cuda_graph): %s", error)
        return
    # A recorder of their own, since they run between player updates, which may keep something in their pool.
    recorder = make()
    for player, optimizer in list(trainer.optimizers.items()):
        try:
            trainer.optimizers[player] = GraphedOptimizer(optimizer, recorder)
        except ValueError as error:
            log.warning("device.cuda_graph: the %s's updates go on without: %s", player, error)
    trainer.ema = GraphedEMA(trainer.ema, recorder, trainer.game.generator)
