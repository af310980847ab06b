"""The training loop. It sequences the parts; the maths of a step is in `updates`, what is shown in `logging`."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor

from gancli.datasets.base import Dataset
from gancli.distributed.process_group import ProcessGroup
from gancli.distributed.signals import Request, Signals
from gancli.errors import Diverged, SettingError, UserError, require_at_least, require_minutes
from gancli.game import PLAYERS, Game
from gancli.game_value import decision_threshold
from gancli.overrides import typed
from gancli.randomness import random_state, set_random_state
from gancli.training.accumulation import UpdateInParts
from gancli.training.checkpoint import Checkpoints, change_of_data, check_resumable
from gancli.training.ema import EMA
from gancli.training.evaluation import PeriodicEvaluation
from gancli.training.guard import Guard
from gancli.training.logging import Logger
from gancli.training.position import Position
from gancli.training.scheduled_optimizer import ScheduledOptimizer
from gancli.updates import PlayerUpdate, Update

log = logging.getLogger(__name__)


class Trainer:
    """Trains `game` until `images` real images were seen or `minutes` have passed, whichever is first.

    images, minutes: either may be None, not both. max_time: minutes of this start, including the `startup_seconds`
    before its first step, after which the run saves and stops, to be resumed. batch_size: images per step over all
    processes. accumulate: micro-batches into which each process divides its shard of a batch, to save memory.
    Raises SettingError.
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
        logger: Logger,
        evaluation: PeriodicEvaluation,
        process_group: ProcessGroup,
        seed: int,
        batch_size: int = 128,
        accumulate: int = 1,
        images: int | None = 300_000,
        minutes: float | None = None,
        max_time: float | None = None,
    ) -> None:
        self.check_settings(
            batch_size=batch_size,
            accumulate=accumulate,
            images=images,
            minutes=minutes,
            max_time=max_time,
            world_size=process_group.world_size,
        )
        if batch_size > len(dataset):
            raise SettingError(f"batch_size={batch_size}: larger than the data set of {len(dataset)}; make it smaller")
        if process_group.world_size * accumulate > 1:
            update = UpdateInParts(update, process_group, accumulate=accumulate)
        self.game, self.update, self.optimizers, self.ema = game, update, optimizers, ema
        self.dataset, self.checkpoints, self.process_group = dataset, checkpoints, process_group
        self.logger, self.evaluation, self.health = logger, evaluation, evaluation.health
        self.seed, self.batch_size = seed, batch_size
        self.length, self.minutes, self.max_time = images, minutes, max_time
        delayed = game.stream.device.type == "cuda" and process_group.world_size == 1
        self.guard = Guard(self._stop_at, delayed=delayed)
        self.step_images = batch_size * update.discriminator_steps
        self.step = 0
        self.seconds = 0.0  # of training, over all starts of the run
        self.step_seconds = 0.0  # of these, since the step before
        self.startup_seconds = 0.0  # of this start before the first step, the same in all processes
        self.rollbacks = 0
        self.lr_factor = 1.0  # on both learning rates, lowered by each rollback
        self.stopped_by: signal.Signals | str | None = None

    @staticmethod
    def check_settings(
        *,
        batch_size: int,
        accumulate: int,
        images: int | None,
        minutes: float | None,
        max_time: float | None,
        world_size: int = 1,
    ) -> None:
        """Raises SettingError with everything that is wrong whatever the data."""
        errors = []
        for check in (
            partial(require_at_least, 1, batch_size=batch_size, accumulate=accumulate, images=images),
            partial(require_minutes, minutes=minutes, max_time=max_time),
        ):
            try:
                check()
            except SettingError as error:
                errors.append(str(error))
        if images is None and minutes is None:
            errors.append("images=null, minutes=null: one of them must say when to stop")
        parts = world_size * accumulate
        if parts > 1 and batch_size % parts:
            errors.append(
                f"batch_size={batch_size}: does not divide by {world_size} processes times accumulate={accumulate}"
            )
        if errors:
            raise SettingError("\n".join(errors))

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

    @property
    def position(self) -> Position:
        """Where the run stands, for logging and evaluation."""
        return Position(
            images=self.images,
            step_images=self.step_images,
            seconds=self.seconds,
            step_seconds=self.step_seconds,
            progress=self.progress,
        )

    def fit(self, signals: Signals | None = None) -> None:
        """Trains to the end, or until a signal, and leaves a checkpoint of the last step.

        signals: may have received some already. Raises Diverged, Collapsed, OSError.
        """
        self.saved_images = -1 if self.step == 0 else self.images
        self.step_seconds = 0.0
        self.logger.open(self.position)
        earlier = self.seconds
        began = time.monotonic() - earlier
        try:
            with (signals or Signals()).listening() as signals:
                while self.progress < 1.0 and self.stopped_by is None:
                    request = Request()
                    try:
                        record = self.train_step()
                        seconds, request = signals.poll(self.process_group, time.monotonic() - began)
                        self.seconds, self.step_seconds = seconds, seconds - self.seconds
                        if request != Request() or self._is_late(earlier) or self._is_seen():
                            self.guard.read()
                        self.logger.log_step(self.position, record)
                        if self.evaluation.is_due(self.position):
                            self.evaluate()
                    except Diverged as error:
                        self.rollback(error)
                    if request.save or (self.checkpoints.due(self.position) and self.saved_images < self.images):
                        self.save()
                    self.stopped_by = request.stop or ("train.max_time" if self._is_late(earlier) else None)
                    if request.requeue:
                        signals.requeue(self.process_group)
                if self.saved_images != self.images:
                    self.save()
        finally:
            self.logger.close(self.position)

    def _is_late(self, earlier: float) -> bool:
        """Whether this start has had its time. earlier: seconds of training before it."""
        here = self.startup_seconds + self.seconds - earlier
        return self.max_time is not None and here >= 60 * self.max_time

    def _is_seen(self) -> bool:
        """Whether the last step ends the run, or is logged, measured or saved."""
        parts = (self.logger.is_due, self.evaluation.is_due, self.checkpoints.due)
        return self.progress >= 1.0 or any(is_due(self.position) for is_due in parts)

    def train_step(self) -> dict[str, Tensor | float]:
        """One step of the game: gradients, guard, optimizers, EMA. Returns what there is to log.

        On a GPU `guard.read` must say that the step was made before anything else looks at its outcome.
        """
        progress, record, skip = self.progress, dict[str, Tensor | float](), None
        self.game.augment.prepare(progress)
        for update in self.update.player_updates(self.game, self._batch, step=self.step, progress=progress):
            numbers, skip = self.guard.check(self._numbers(update), step=self.step)
            record |= numbers | self._observe(update)
            for player in update.players:
                self.optimizers[player].step(progress, lr_factor=self.lr_factor, skip=skip)
                record[f"lr/{player}"] = self.optimizers[player].lr
        self.ema.update(
            self.game.generator, images=self.images, step_images=self.step_images, progress=progress, skip=skip
        )
        self.step += 1
        return record

    def _batch(self, k: int) -> tuple[Tensor, Tensor | None]:
        """Returns this part of the step's k-th real batch: (B, *shape), and labels (B,) where the players take them."""
        samples, labels = self.dataset.batch(
            self.step * self.update.discriminator_steps + k,
            size=self.batch_size,
            seed=self.seed,
            rank=self.game.stream.part,
            world_size=self.game.stream.parts,
        )
        return samples, labels if self.game.generator.num_classes else None

    def _numbers(self, update: PlayerUpdate) -> dict[str, Tensor]:
        """Returns all that must be finite for `update` to be made, 0-dim each."""
        named = {f"loss/{player}": value for player, value in update.losses.items()}
        named |= {f"penalty/{name}": value for name, value in update.penalties.items()}
        for player in update.players:
            named[f"grad_norm/{player}"] = _gradient_norm(self.optimizers[player].parameters)
        return named

    def _observe(self, update: PlayerUpdate) -> dict[str, Tensor]:
        """Shows the logits to the augmentation, and returns them."""
        if update.real_logits is None or update.fake_logits is None:
            return {}
        threshold = decision_threshold(update.real_logits, update.fake_logits, self.game.loss)
        self.game.augment.observe(update.real_logits, update.fake_logits, threshold=threshold)
        return {"real_logits": update.real_logits, "fake_logits": update.fake_logits}

    def _stop_at(self, step: int, name: str, number: float) -> NoReturn:
        """Raises Diverged in the state before `step`, which may be the step before this one."""
        self.step = step
        raise Diverged(self._divergence_message(name, number), good_images=self.images)

    def _divergence_message(self, name: str, number: float) -> str:
        kind, _, of = name.partition("/")
        player = "discriminator" if kind == "penalty" else of
        what = {"loss": "loss", "penalty": f"penalty {of}", "grad_norm": "gradient"}[kind]
        files = self.checkpoints.files()
        return (
            f"the {player}'s {what} became {number} at step {self.step} (after {self.images} images); "
            "the update was not made.\n"
            f"  last good checkpoint: {files[-1] if files else 'none yet'}\n"
            f"  try, in a new run: {self.health.remedies.divergence}"
        )

    def evaluate(self) -> None:
        """Measures the averaged generator and keeps the best checkpoint. Raises Collapsed."""
        result = self.evaluation.evaluate(self.ema.network, self.game, seed=self.seed, position=self.position)
        self.seconds += result.seconds
        self.step_seconds += result.seconds
        if result.is_best and self.process_group.is_main_process:
            self.checkpoints.save_best(self.state_dict(), images=self.images)
        self.evaluation.check_health(result, self.position)

    def rollback(self, error: Diverged) -> None:
        """Goes back to the newest checkpoint after at most `error.good_images`, with lower learning rates.

        Raises `error` where the health monitor was not told to do so, did it too often, or has no checkpoint.
        """
        group, state = self.process_group, None
        group.barrier()  # until the main process has written all that it was to write
        if self.health.action == "rollback" and self.rollbacks < self.health.rollbacks:
            state = self.checkpoints.newest_on_all_processes(group, up_to=error.good_images)
        if state is None:
            raise error
        seconds, rollbacks, lr_factor = self.seconds, self.rollbacks, self.lr_factor
        self.load_state_dict(state, rollback=True)
        self.seconds, self.rollbacks = seconds, rollbacks + 1
        self.lr_factor = lr_factor * self.health.lower_lr
        group.barrier()  # until all processes have read the checkpoint
        if group.is_main_process:
            self.checkpoints.delete_after(self.images)
        self.logger.rewind(self.position)
        self.save()
        log.warning("%s\n  back to %s images, learning rates times %g", error, f"{self.images:,}", self.lr_factor)

    def save(self) -> None:
        """Writes a checkpoint, and keeps the one that a rollback would go to."""
        self.guard.read()
        healthy = self.evaluation.healthy_images if self.health.action == "rollback" else None
        if self.process_group.is_main_process:
            self.checkpoints.save(self.state_dict(), images=self.images, healthy_images=healthy)
        self.saved_images = self.images

    def state_dict(self) -> dict[str, Any]:
        """Returns all that the rest of the run depends on, as tensors and plain values."""
        return {
            "step": self.step,
            "shape": list(self.dataset.shape),
            "samples": len(self.dataset),
            "content_hash": self.dataset.content_hash,
            "num_classes": self.game.generator.num_classes,
            "threads": torch.get_num_threads(),
            "seconds": self.seconds,
            "rollbacks": self.rollbacks,
            "lr_factor": self.lr_factor,
            "generator": self.game.generator.state_dict(),
            "discriminator": self.game.discriminator.state_dict(),
            "ema": self.ema.network.state_dict(),
            "optimizers": {player: self.optimizers[player].state_dict() for player in PLAYERS},
            "augment": self.game.augment.state_dict(),
            "logging": self.logger.state_dict(),
            "evaluation": self.evaluation.state_dict(),
            "random": random_state(self.game.stream),
        }

    def _check_data(self, state: Mapping[str, Any]) -> None:
        """Raises UserError unless the data is what it was."""
        reason = change_of_data(state, self.dataset)
        if reason is None:
            return
        raise UserError(
            f"{reason}.\n  Where the old ones lie somewhere else now, name that place: dataset.path=… or "
            "dataset.root=….\n  On other data only a new run can train, which may begin with these weights: "
            f"gancli train {typed('init', self.checkpoints.folder.parent)} …"
        )

    def load_state_dict(self, state: dict[str, Any], *, rollback: bool = False) -> None:
        """Goes on exactly where `state` was taken.

        rollback: within one run, whose evaluations and time stay. Raises UserError, ValueError, and what torch raises
        where the state does not fit.
        """
        check_resumable(state)
        self._check_data(state)
        self.game.generator.load_state_dict(state["generator"])
        self.game.discriminator.load_state_dict(state["discriminator"])
        self.ema.network.load_state_dict(state["ema"])
        for player in PLAYERS:
            self.optimizers[player].load_state_dict(state["optimizers"][player])
        self.game.augment.load_state_dict(state["augment"])
        self.logger.load_state_dict(state["logging"])
        self.evaluation.load_state_dict(state["evaluation"], rollback=rollback)
        set_random_state(state["random"], self.game.stream)
        self.step, self.seconds = state["step"], state["seconds"]
        self.rollbacks, self.lr_factor = state["rollbacks"], state["lr_factor"]


def _gradient_norm(parameters: list[Any]) -> Tensor:
    """Returns the Euclidean norm of all the gradients together, 0-dim."""
    norms = torch._foreach_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return total
