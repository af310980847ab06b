"""The training loop. It sequences; the maths is in `updates`, the looking in `monitor`."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gancli import parallel
from gancli.checkpoint import Checkpoints
from gancli.datasets.base import Dataset
from gancli.distributed import Team
from gancli.ema import EMA
from gancli.errors import Diverged
from gancli.evaluation import Evaluation
from gancli.game import Game
from gancli.monitor import Monitor, threshold_of
from gancli.optimizers import ScheduledOptimizer
from gancli.runtime import random_state, set_random_state
from gancli.signals import Signals
from gancli.updates import Stage, Update

log = logging.getLogger(__name__)
PLAYERS = ("generator", "discriminator")


class Trainer:
    """Plays `game` until `images` real images were seen or `minutes` have passed, whichever is first.

    images, minutes: either may be None, not both. max_time: minutes of this start, `prepared` seconds of which went
    by before, after which the run saves and stops, to be resumed. batch_size: over all processes. accumulate:
    micro-batches that each process takes its part of a batch in, one after the other, for want of memory.
    Raises ValueError.
    """

    def __init__(
        self,
        *,
        game: Game,
        update: Update,
        optimizers: dict[str, ScheduledOptimizer],
        ema: EMA,
        dataset: Dataset,
        checkpoints: Checkpoints,
        monitor: Monitor,
        evaluation: Evaluation,
        team: Team,
        seed: int,
        batch_size: int = 128,
        accumulate: int = 1,
        images: int | None = None,
        minutes: float | None = None,
        max_time: float | None = None,
    ) -> None:
        if images is None and minutes is None:
            raise ValueError("images=null, minutes=null: one of them must say when to stop")
        if images is not None and images < 1:
            raise ValueError(f"images={images}: at least 1")
        for name, value in {"minutes": minutes, "max_time": max_time}.items():
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value}: a time above 0")
        if accumulate < 1:
            raise ValueError(f"accumulate={accumulate}: at least 1")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: at least 1")
        if batch_size > len(dataset):
            raise ValueError(f"batch_size={batch_size}: larger than the data set of {len(dataset)}; make it smaller")
        parts = team.size * accumulate
        if batch_size % parts:
            raise ValueError(
                f"batch_size={batch_size}: does not divide by {team.size} processes times accumulate={accumulate}"
            )
        if parts > 1:
            update.check_parts(game)
        self.game, self.update, self.optimizers, self.ema = game, update, optimizers, ema
        self.dataset, self.checkpoints = dataset, checkpoints
        self.monitor, self.evaluation, self.team = monitor, evaluation, team
        self.accumulate, self.max_time = accumulate, max_time
        self.seed, self.batch_size, self.length, self.minutes = seed, batch_size, images, minutes
        self.step_images = batch_size * update.discriminator_steps
        self.step = 0
        self.seconds = 0.0  # of training, over all the starts of the run
        self.prepared = 0.0  # of this start before the first step, the same in all processes
        self.stopped_by: signal.Signals | str | None = None

    @property
    def images(self) -> int:
        """Real images seen."""
        return self.step * self.step_images

    @property
    def progress(self) -> float:
        """Share of the run that is done, 0 to 1."""
        by_images = self.images / self.length if self.length else 0.0
        by_time = self.seconds / (60 * self.minutes) if self.minutes else 0.0
        return min(max(by_images, by_time), 1.0)

    def fit(self, signals: Signals | None = None) -> None:
        """Trains to the end, or to a signal, and leaves a checkpoint of the last step.

        signals: what may have been heard already.
        """
        self.saved = -1 if self.step == 0 else self.images
        self.monitor.begin(self)
        self.evaluation.rewind(self.images)
        already = self.seconds
        began = time.monotonic() - already
        try:
            with (signals or Signals()).listening() as signals:
                while self.progress < 1.0 and self.stopped_by is None:
                    before = self.images
                    try:
                        record = self.train_step()
                    except Diverged as error:
                        self.recover(error, up_to=before)
                        continue
                    self.seconds, heard = signals.agreed(self.team, time.monotonic() - began)
                    self.monitor.watch(self, record)
                    if self.evaluation.due(self):
                        self.evaluation.look(self)
                    if heard.save or self.images // self.checkpoints.every > before // self.checkpoints.every:
                        self.save()
                    here = self.prepared + self.seconds - already
                    late = self.max_time is not None and here >= 60 * self.max_time
                    self.stopped_by = heard.stop or ("train.max_time" if late else None)
                    if heard.requeue:
                        signals.requeue(self.team)
                if self.saved != self.images:
                    self.save()
        finally:
            self.monitor.end(self)

    def train_step(self) -> dict[str, Tensor | float]:
        """One step of the game: gradients, guard, update, average. Returns what there is to log."""
        progress, record = self.progress, dict[str, Any]()
        self.game.augment.prepare(progress)
        for stage in self._stages(progress):
            record |= self._guard(stage)
            for player in stage.players:
                self.optimizers[player].step(progress)
        self.ema.update(self.game.generator, images=self.images, step_images=self.step_images, progress=progress)
        self.step += 1
        return record

    def _stages(self, progress: float) -> Iterator[Stage]:
        return parallel.stages(
            self.update,
            self.game,
            self._draw,
            self.team,
            accumulate=self.accumulate,
            step=self.step,
            progress=progress,
        )

    def _draw(self, part: int, k: int) -> tuple[Tensor, Tensor | None]:
        samples, labels = self.dataset.batch(
            self.step * self.update.discriminator_steps + k,
            size=self.batch_size,
            seed=self.seed,
            rank=part,
            world_size=self.game.stream.parts,
        )
        return samples, labels if self.game.generator.num_classes else None

    def _guard(self, stage: Stage) -> dict[str, Tensor | float]:
        """Stops before the update where a loss or a gradient is not finite. Waits for the device once."""
        norms = {player: _norm(self.optimizers[player].parameters) for player in stage.players}
        named = {f"loss/{player}": value for player, value in stage.losses.items()}
        named |= {f"penalty/{name}": value for name, value in stage.penalties.items()}
        named |= {f"grad_norm/{player}": norm for player, norm in norms.items()}
        numbers = dict(zip(named, torch.stack(list(named.values())).tolist(), strict=True))
        for name, number in numbers.items():
            if not abs(number) < float("inf"):
                raise Diverged(self._advice(name, number))
        record: dict[str, Tensor | float] = dict(numbers)
        if stage.real_logits is not None and stage.fake_logits is not None:
            threshold = threshold_of(stage.real_logits, stage.fake_logits, self.game.loss)
            self.game.augment.observe(stage.real_logits, stage.fake_logits, threshold=threshold)
            record |= {"real_logits": stage.real_logits, "fake_logits": stage.fake_logits}
        return record

    def _advice(self, name: str, number: float) -> str:
        kind, _, whose = name.partition("/")
        player = "discriminator" if kind == "penalty" else whose
        what = {"loss": "loss", "penalty": f"penalty {whose}", "grad_norm": "gradient"}[kind]
        files = self.checkpoints.files()
        return (
            f"the {player}'s {what} became {number} at step {self.step} (after {self.images} images); "
            "the update was not made.\n"
            f"  last good checkpoint: {files[-1] if files else 'none yet'}\n"
            "  try, in a new run: a lower optimizer.discriminator.lr or optimizer.generator.lr, "
            "a larger penalty weight (penalty.r1.weight), another loss, or device.precision=float32"
        )

    def recover(self, error: Diverged, *, up_to: int) -> None:
        """Back to the newest checkpoint after at most `up_to` images, with lower learning rates.

        Raises `error` where the watch was not told to do so, did it too often, or has no checkpoint.
        """
        watch, kept = self.evaluation.watch, self.evaluation.kept()
        self.team.wait()  # until the first process has written all that it was to write
        state = self.checkpoints.newest_for(self.team, up_to=up_to) if watch.action == "rollback" else None
        if state is None or kept["rollbacks"] >= watch.rollbacks:
            raise error
        seconds = self.seconds
        self.load_state(state)
        self.seconds = seconds
        vars(self.evaluation).update(kept, rollbacks=kept["rollbacks"] + 1)
        for optimizer in self.optimizers.values():
            optimizer.lr_factor *= watch.lower_lr
        self.team.wait()  # until all have read
        if self.team.first:
            self.checkpoints.forget_after(self.images)
        self.monitor.rewind(self)
        self.evaluation.rewind(self.images)
        self.save()
        factor = self.optimizers["generator"].lr_factor
        log.warning("%s\n  back to %s images, learning rates times %g", error, f"{self.images:,}", factor)

    def save(self) -> None:
        """Writes a checkpoint, and keeps the one that a rollback would go to."""
        healthy = self.evaluation.healthy if self.evaluation.watch.action == "rollback" else None
        if self.team.first:
            self.checkpoints.save(self.state(), images=self.images, healthy=healthy)
        self.saved = self.images

    def state(self) -> dict[str, Any]:
        """All that the rest of the run depends on, as tensors and plain values."""
        return {
            "step": self.step,
            "shape": list(self.dataset.shape),
            "samples": len(self.dataset),
            "num_classes": self.game.generator.num_classes,
            "seconds": self.seconds,
            "generator": self.game.generator.state_dict(),
            "discriminator": self.game.discriminator.state_dict(),
            "ema": self.ema.network.state_dict(),
            "optimizers": {player: self.optimizers[player].state() for player in PLAYERS},
            "lr_factors": {player: self.optimizers[player].lr_factor for player in PLAYERS},
            "augment": self.game.augment.state(),
            "monitor": self.monitor.state(),
            "evaluation": self.evaluation.state(),
            "random": random_state(self.game.stream),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on exactly where `state` was taken. Raises ValueError and what torch raises where it does not fit."""
        if state["samples"] != len(self.dataset):
            raise ValueError(f"the data set had {state['samples']} samples, and has {len(self.dataset)} now")
        self.game.generator.load_state_dict(state["generator"])
        self.game.discriminator.load_state_dict(state["discriminator"])
        self.ema.network.load_state_dict(state["ema"])
        for player in PLAYERS:
            self.optimizers[player].load_state(state["optimizers"][player])
            self.optimizers[player].lr_factor = state["lr_factors"][player]
        self.game.augment.load_state(state["augment"])
        self.monitor.load_state(state["monitor"])
        self.evaluation.load_state(state["evaluation"])
        set_random_state(state["random"], self.game.stream)
        self.step, self.seconds = state["step"], state["seconds"]


def _norm(parameters: list[Any]) -> Tensor:
    """Euclidean norm of all the gradients together."""
    norms = torch._foreach_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return total
