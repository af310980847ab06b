"""Everything that a run shows while it trains: TensorBoard, metrics.jsonl, sample grids, progress."""

from __future__ import annotations

import logging
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from gancli.datasets.base import Batch, Dataset
from gancli.errors import require_at_least, require_minutes
from gancli.files.json_files import Row
from gancli.game import Game, eval_mode
from gancli.game_value import SADDLE_VALUE, decision_threshold, game_statistics
from gancli.randomness import seeded
from gancli.reporting import image_grids
from gancli.reporting.sinks import JSON_LINES, Sink, Start, check_sinks, open_sinks
from gancli.training import time_lapse
from gancli.training.ema import EMA
from gancli.training.holdout_accuracy import holdout_accuracy
from gancli.training.position import Position
from gancli.training.run_folder import RunFolder

log = logging.getLogger(__name__)
Record = Mapping[str, Tensor | float]
Weights = Literal["ema", "raw"]
_LINE_SECONDS = 10.0  # between two lines of progress where there is no terminal
_YEAR = 3.2e7  # seconds; a longer time is not worth telling
# Of the share of the run that is done, whatever ends it; tqdm's own estimate knows nothing of a budget in minutes.
_BAR = "{percentage:3.0f}%|{bar:10}| {elapsed} {desc}{postfix}"
DEFAULT_SINKS = ("tensorboard", JSON_LINES)
POINTS_PER_SAMPLE = 32  # times as many samples in a plot of points as in a grid of images


class Logger(Protocol):
    """What the training loop and the evaluation write to. latest: the last row of scalars."""

    latest: dict[str, float]

    def open(self, position: Position) -> None:
        """Starts at `position` and deletes what was logged after it."""

    def is_due(self, position: Position) -> bool:
        """Whether `log_step` writes anything at `position`."""

    def log_step(self, position: Position, record: Record) -> None:
        """Takes the scalars and the logits, (B,) or (B, K) each, of one step."""

    def log_values(self, position: Position, values: Mapping[str, float]) -> None:
        """Writes scalars at once, to all sinks but metrics.jsonl."""

    def log_evaluation(self, position: Position, row: Row) -> None:
        """Writes an evaluation with its protocol."""

    def close(self, position: Position) -> None:
        """Draws the last sample grid and closes the files."""

    def show(self, weights: Weights, *, why: str = "") -> None:
        """Writes samples.png, once more, from the last grid of these weights. why: they were chosen."""

    def rewind(self, position: Position) -> None:
        """Goes back to `position`: what was logged after it is deleted."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed run needs to log the same numbers."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state`."""


class NullLogger:
    """The logger of a process that is not the main process: it writes nothing."""

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}

    def open(self, position: Position) -> None:
        pass

    def is_due(self, position: Position) -> bool:
        return False

    def log_step(self, position: Position, record: Record) -> None:
        pass

    def log_values(self, position: Position, values: Mapping[str, float]) -> None:
        pass

    def log_evaluation(self, position: Position, row: Row) -> None:
        pass

    def close(self, position: Position) -> None:
        pass

    def show(self, weights: Weights, *, why: str = "") -> None:
        pass

    def rewind(self, position: Position) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class TrainingLogger:
    """Writes scalars every `every` images and sample grids every `pictures` images; the x axis is images seen.

    picture_minutes: longest time between two grids, also; the first ones come at the start and soon after it (see
    `Position.passed_time`); None for grids by images only. samples: generated samples in a grid (32 times as many
    points in a plot of points). holdout: held-out real samples on which the discriminator is measured. sinks: where
    numbers and images go: tensorboard, jsonl (metrics.jsonl in the run folder), wandb, mlflow.
    settings: the resolved configuration. game, ema, dataset, seed: of the run. Previews draw from generators of
    their own, so logging never changes training.
    Raises SettingError.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        settings: Mapping[str, Any],
        game: Game,
        ema: EMA,
        dataset: Dataset,
        seed: int,
        every: int = 2_000,
        pictures: int = 50_000,
        picture_minutes: float | None = 5.0,
        samples: int = 64,
        holdout: int = 256,
        sinks: tuple[str, ...] = DEFAULT_SINKS,
    ) -> None:
        self.check_settings(
            every=every,
            pictures=pictures,
            picture_minutes=picture_minutes,
            samples=samples,
            holdout=holdout,
            sinks=sinks,
        )
        self.folder, self.settings = folder, settings
        self.game, self.ema, self.dataset, self.seed = game, ema, dataset, seed
        self.every, self.pictures, self.picture_minutes = every, pictures, picture_minutes
        self.samples, self.holdout, self.sinks = samples, holdout, list(dict.fromkeys(sinks))
        self.latest: dict[str, float] = {}
        self._sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    @staticmethod
    def check_settings(
        *, picture_minutes: float | None = None, sinks: Sequence[str] = DEFAULT_SINKS, **settings: int
    ) -> None:
        """Raises SettingError for values that are wrong whatever the data, UserError for a sink not installed."""
        check_sinks(sinks)
        require_at_least(1, **settings)
        require_minutes(picture_minutes=picture_minutes)

    def open(self, position: Position) -> None:
        """Fixes the noise and the real samples that are shown, deletes what was logged after `position`.

        A new run draws its first grid here.
        """
        self.folder.truncate_after(position.images)
        game, count = self.game, self.samples * (1 if len(self.dataset.shape) == 3 else POINTS_PER_SAMPLE)
        device = game.stream.device
        self.noise = game.prior.sample(count, seeded(self.seed, "preview")).to(device)
        classes = game.generator.num_classes
        self.labels = torch.arange(count, device=device) % classes if classes else None
        real, labels = self.dataset.holdout(max(self.holdout, count))
        self.shown = real[:count]
        self.held_out = _first((real, labels), self.holdout, classes)
        seen = self.dataset.batch(0, size=min(self.holdout, len(self.dataset)), seed=self.seed)
        self.seen = _first(seen, self.holdout, classes)
        self.limits = None if real.ndim == 4 else image_grids.limits(real)
        self._real = self._picture(self.shown)
        self._drawn: int | None = None  # images at which grids were drawn last
        self.bar = tqdm(total=1.0, initial=position.progress, bar_format=_BAR, disable=not sys.stderr.isatty())
        self._first_images = self._last_images = position.images
        self._last_time = time.monotonic()
        self._last_line = 0.0
        if not position.images:
            self.draw(position)

    @cached_property
    def outputs(self) -> list[Sink]:
        """What is written to besides the run folder's own files, opened at the first write: imports take seconds."""
        start = Start(
            folder=self.folder.path,
            settings=self.settings,
            images=self._first_images,
            ids=self.folder.read_tracking(),
        )
        known = dict(start.ids)
        opened = open_sinks(self.sinks, start)
        if start.ids != known:
            self.folder.write_tracking(start.ids)
        return opened

    def log_step(self, position: Position, record: Record) -> None:
        """Adds the step to the running means; writes a row and a sample grid where they are due."""
        self.bar.update(position.progress - self.bar.n)
        real_logits, fake_logits = record["real_logits"], record["fake_logits"]
        assert isinstance(real_logits, Tensor) and isinstance(fake_logits, Tensor)
        for name, value in record.items():
            if isinstance(value, float) or value.ndim == 0:
                self._add(name, value)
        threshold = decision_threshold(real_logits, fake_logits, self.game.loss)
        for name, value in game_statistics(real_logits, fake_logits, threshold).items():
            self._add(name, value)
        if self.game.augment.draws:
            self._add("augment/strength", self.game.augment.strength)
        if self._row_is_due(position):
            self._flush(position, real_logits, fake_logits, record)
        if self._picture_is_due(position):
            self.draw(position)

    def is_due(self, position: Position) -> bool:
        return self._row_is_due(position) or self._picture_is_due(position)

    def _row_is_due(self, position: Position) -> bool:
        return position.passed(self.every) or position.progress >= 1.0

    def _picture_is_due(self, position: Position) -> bool:
        return position.passed(self.pictures) or position.passed_time(self.picture_minutes)

    def log_values(self, position: Position, values: Mapping[str, float]) -> None:
        for sink in self.outputs:
            sink.scalars(values, images=position.images)

    def log_evaluation(self, position: Position, row: Row) -> None:
        self.folder.append_evaluation(row)
        self.log_values(position, {f"metric/{name}": value for name, value in row["values"].items()})

    def close(self, position: Position) -> None:
        try:
            if position.images:
                if self._drawn != position.images:
                    self.draw(position)
                self.show("ema")
                time_lapse.write_animation(self.folder)
        finally:
            self._close_files()

    def show(self, weights: Weights, *, why: str = "") -> None:
        comment = f"weights: {weights}" + (f" ({why})" if why else "")
        image_grids.write_png(self.folder.final_samples, self._grids[weights], comment=comment)

    def rewind(self, position: Position) -> None:
        self._close_files()
        self.__dict__.pop("outputs", None)
        self.open(position)

    def _close_files(self) -> None:
        self.bar.close()
        for sink in vars(self).get("outputs", []):
            sink.close()

    def state_dict(self) -> dict[str, Any]:
        """Returns the sums since the last row, and that row."""
        latest = {name: value for name, value in self.latest.items() if not name.startswith("speed/")}
        return {"sums": {name: [float(total), count] for name, (total, count) in self._sums.items()}, "latest": latest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if not all(count > 0 for _, count in state["sums"].values()):
            raise ValueError("logging: a sum of no steps")
        self.latest = dict(state["latest"])
        self._sums.clear()
        self._sums.update({name: list(pair) for name, pair in state["sums"].items()})

    def _add(self, name: str, value: float | Tensor) -> None:
        if name.startswith("lr/"):
            return  # a row has the last rate, not the mean
        total = self._sums[name]
        total[0] = total[0] + value  # type: ignore[assignment]  # a tensor stays on its device until the row is due
        total[1] += 1

    def _flush(self, position: Position, real_logits: Tensor, fake_logits: Tensor, record: Record) -> None:
        """Writes a row: means over the steps since the last row, and what is measured now."""
        images, game, now = position.images, self.game, time.monotonic()
        values = {name: float(total) / count for name, (total, count) in self._sums.items()}
        self._sums.clear()
        values["game/distance_to_saddle"] = abs(values["game/value"] - SADDLE_VALUE)
        values |= holdout_accuracy(game, self.seen, self.held_out, real_logits=real_logits, fake_logits=fake_logits)
        values |= {
            f"parameter/{name}": value.item()
            for network in (game.generator, game.discriminator)
            for name, value in network.logged_parameters().items()
        }
        values |= {name: float(value) for name, value in record.items() if name.startswith("lr/")}
        values["speed/images_per_second"] = (images - self._last_images) / max(now - self._last_time, 1e-9)
        if game.stream.device.type == "cuda":
            values["memory/peak_gib"] = torch.cuda.max_memory_allocated(game.stream.device) / 2**30
        self._last_images, self._last_time = images, now
        self.latest = values
        self.log_values(position, values)
        for kind, logits in (("real", real_logits), ("fake", fake_logits)):
            for sink in self.outputs:
                sink.histogram(f"logits/{kind}_histogram", logits, images=images)
        self.folder.append_metrics({"images": images, "seconds": round(position.seconds, 3), **values})
        self._print_status(position, values)

    def _print_status(self, position: Position, values: Mapping[str, float]) -> None:
        text = (
            f"D {values['loss/discriminator']:.3f}, G {values['loss/generator']:.3f}, "
            f"right on real {values['accuracy/real']:.2f}, on fake {values['accuracy/fake']:.2f}"
        )
        left = timedelta(seconds=round(min(position.seconds_left, _YEAR)))
        images, speed = f"{position.images:,} images", f"{values['speed/images_per_second']:,.0f} images/s"
        self.bar.set_description_str(f"{images}, {speed}, {left} left")
        self.bar.set_postfix_str(text)
        if self.bar.disable and (time.monotonic() - self._last_line > _LINE_SECONDS or position.progress >= 1.0):
            self._last_line = time.monotonic()
            log.info("%s (%.0f%%): %s; %s, %s left", images, 100 * position.progress, text, speed, left)

    def draw(self, position: Position) -> None:
        """Writes grids of real samples, of the generator's and of the averaged generator's, and the strip of these."""
        game = self.game
        self._show("samples/real", self._real, position)
        networks: dict[Weights, torch.nn.Module] = {"raw": game.generator, "ema": self.ema.network}
        self._grids: dict[Weights, image_grids.Array] = {}
        self._drawn = position.images
        for weights, network in networks.items():
            with eval_mode(network), game.autocast():
                samples = network(self.noise, self.labels).float()
            self._grids[weights] = self._picture(samples)
            self._show(f"samples/{weights}", self._grids[weights], position)
        self.folder.samples.mkdir(exist_ok=True)
        image_grids.write_png(self.folder.sample_grid(position.images), self._grids["ema"])
        time_lapse.write_strip(self.folder, self.dataset.shape)

    def _picture(self, samples: Tensor) -> image_grids.Array:
        return image_grids.picture(samples.cpu(), density=self.dataset.density, limits=self.limits)

    def _show(self, tag: str, array: image_grids.Array, position: Position) -> None:
        for sink in self.outputs:
            sink.image(tag, array, images=position.images)


def _first(batch: Batch, count: int, classes: int) -> Batch:
    """Returns the first `count` of the batch, with labels only where the players take them."""
    samples, labels = batch
    return samples[:count], labels[:count] if classes and labels is not None else None
