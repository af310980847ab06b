"""Everything a run shows: TensorBoard, metrics.jsonl, pictures, progress. Looking never changes training."""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from tqdm import tqdm

from gancli import pictures
from gancli.checkpoint import write_whole
from gancli.config import leaves
from gancli.datasets.base import Batch
from gancli.game import looking
from gancli.runtime import seeded

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from gancli.losses import Loss
    from gancli.trainer import Trainer

log = logging.getLogger(__name__)
SADDLE_VALUE = -math.log(4.0)  # of the game where D is right half of the time (Goodfellow et al., 2014, theorem 1)
Record = Mapping[str, Tensor | float]


class Silent:
    """The monitor of a process that is not the first: it watches nothing and writes nothing."""

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}

    def _nothing(self, *what: Any) -> None:
        pass

    begin = watch = end = rewind = load_state = _nothing


class Monitor:
    """Writes scalars every `every` images and pictures every `pictures` images; the x axis is images seen.

    samples: how many of the generator's samples a picture shows (points: 32 times as many).
    folder: the run folder. settings: the resolved configuration, for TensorBoard.
    """

    def __init__(
        self,
        folder: Path,
        *,
        settings: Mapping[str, Any],
        every: int = 2_000,
        pictures: int = 50_000,
        samples: int = 64,
        holdout: int = 256,
    ) -> None:
        for name, value in {"every": every, "pictures": pictures, "samples": samples, "holdout": holdout}.items():
            if value < 1:
                raise ValueError(f"{name}={value}: at least 1")
        self.folder, self.settings = Path(folder), settings
        self.every, self.pictures, self.samples, self.holdout = every, pictures, samples, holdout
        self.latest: dict[str, float] = {}
        self._sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def begin(self, trainer: Trainer) -> None:
        """Fixes what will be looked at, and forgets what the log says past the trainer's images."""
        self._forget_after(trainer.images)
        self.file = open(self.folder / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115
        game, count = trainer.game, self.samples * (1 if len(trainer.dataset.shape) == 3 else 32)
        device = game.stream.device
        self.noise = game.prior.sample(count, seeded(trainer.seed, "preview")).to(device)
        classes = game.generator.num_classes
        self.labels = torch.arange(count, device=device) % classes if classes else None
        real, labels = trainer.dataset.holdout(max(self.holdout, count))
        self.shown = real[:count]
        self.new = _some((real, labels), self.holdout, classes)
        seen = trainer.dataset.batch(0, size=min(self.holdout, len(trainer.dataset)), seed=trainer.seed)
        self.seen = _some(seen, self.holdout, classes)
        self.limits = None if real.ndim == 4 else pictures.limits(real)
        self.bar = tqdm(
            total=trainer.length, initial=trainer.images, unit="img", unit_scale=True, disable=not sys.stderr.isatty()
        )
        self._first_images = self._last_images = trainer.images
        self._last_time = time.monotonic()
        self._last_line = 0.0

    @cached_property
    def writer(self) -> SummaryWriter:
        """TensorBoard's, opened once there is something to write: its import takes half a second."""
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        _quiet_writer_thread()
        first = self._first_images
        writer = SummaryWriter(str(self.folder), purge_step=first + 1 if first else None)
        if not first:
            writer.add_text("config", "```yaml\n" + _yaml(self.settings) + "```", 0)
            values = {key: value for key, value in leaves(self.settings) if isinstance(value, (bool, int, float, str))}
            for summary in hparams(values, {"loss/discriminator": 0.0, "loss/generator": 0.0, "accuracy/holdout": 0.0}):
                writer._get_file_writer().add_summary(summary)
        return writer

    def watch(self, trainer: Trainer, record: Record) -> None:
        """Takes in one step; writes when a tick is due."""
        self.bar.update(trainer.step_images)
        real_logits, fake_logits = record["real_logits"], record["fake_logits"]
        assert isinstance(real_logits, Tensor) and isinstance(fake_logits, Tensor)
        for name, value in record.items():
            if isinstance(value, float):
                self._add(name, value)
        threshold = threshold_of(real_logits, fake_logits, trainer.game.loss)
        for name, value in judged(real_logits, fake_logits, threshold).items():
            self._add(name, value)
        if trainer.game.augment.draws:
            self._add("augment/strength", trainer.game.augment.strength)
        images, before = trainer.images, trainer.images - trainer.step_images
        if images // self.every > before // self.every or trainer.progress >= 1.0:
            self._tick(trainer, real_logits, fake_logits)
        if images // self.pictures > before // self.pictures:
            self.draw(trainer)

    def end(self, trainer: Trainer) -> None:
        """The last picture, and the logs closed."""
        try:
            if trainer.images:
                self.draw(trainer, also=self.folder / "samples.png")
        finally:
            self._close()

    def rewind(self, trainer: Trainer) -> None:
        """The trainer went back: what was logged past its images is forgotten."""
        self._close()
        self.__dict__.pop("writer", None)
        self.begin(trainer)

    def _close(self) -> None:
        self.bar.close()
        self.file.close()
        if "writer" in vars(self):
            self.writer.close()

    def state(self) -> dict[str, Any]:
        """Sums since the last row, and that row, so that a resumed run logs the same numbers."""
        latest = {name: value for name, value in self.latest.items() if not name.startswith("speed/")}
        return {"sums": {name: [float(total), count] for name, (total, count) in self._sums.items()}, "latest": latest}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state`."""
        self.latest = dict(state["latest"])
        self._sums.clear()
        self._sums.update({name: list(pair) for name, pair in state["sums"].items()})

    def _add(self, name: str, value: float | Tensor) -> None:
        total = self._sums[name]
        total[0] = total[0] + value  # type: ignore[assignment]  # a tensor stays on its device until the tick
        total[1] += 1

    def _tick(self, trainer: Trainer, real_logits: Tensor, fake_logits: Tensor) -> None:
        images, game, now = trainer.images, trainer.game, time.monotonic()
        values = {name: float(total) / count for name, (total, count) in self._sums.items()}
        self._sums.clear()
        values["game/distance_to_saddle"] = abs(values["game/value"] - SADDLE_VALUE)
        with looking(game.discriminator), game.autocast():
            logits = [game.discriminator(*some).float() for some in (self.seen, self.new)]
        threshold = threshold_of(real_logits, fake_logits, game.loss)
        seen, new = (judged(some, fake_logits, threshold) for some in logits)
        values["accuracy/holdout"] = new["accuracy/real"].item()
        values["accuracy/gap"] = (seen["accuracy/real"] - new["accuracy/real"]).item()
        values["game/value_holdout"] = new["game/value"].item()
        values |= {
            f"parameter/{name}": value.item()
            for network in (game.generator, game.discriminator)
            for name, value in network.watched().items()
        }
        values |= {f"lr/{player}": optimizer.lr for player, optimizer in trainer.optimizers.items()}
        values["speed/images_per_second"] = (images - self._last_images) / max(now - self._last_time, 1e-9)
        if game.stream.device.type == "cuda":
            values["memory/peak_gib"] = torch.cuda.max_memory_allocated(game.stream.device) / 2**30
        self._last_images, self._last_time = images, now
        self.latest = values
        for name, value in values.items():
            self.writer.add_scalar(name, value, images)
        self.writer.add_histogram("logits/real_histogram", real_logits, images)
        self.writer.add_histogram("logits/fake_histogram", fake_logits, images)
        self.file.write(json.dumps({"images": images, "seconds": round(trainer.seconds, 3), **values}) + "\n")
        self.file.flush()
        self._speak(trainer, values)

    def _speak(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        text = (
            f"D {values['loss/discriminator']:.3f}, G {values['loss/generator']:.3f}, "
            f"right on real {values['accuracy/real']:.2f}, on fake {values['accuracy/fake']:.2f}"
        )
        left = timedelta(seconds=round(trainer.seconds / max(trainer.progress, 1e-9) * (1 - trainer.progress)))
        # The bar counts images and cannot know of a budget in minutes.
        self.bar.set_postfix_str(text if trainer.minutes is None else f"{text}, {left} left at most")
        if self.bar.disable and (time.monotonic() - self._last_line > 10 or trainer.progress >= 1.0):
            self._last_line = time.monotonic()
            done, speed = f"{trainer.images:,} images ({trainer.progress:.0%})", values["speed/images_per_second"]
            log.info("%s: %s; %s images/s, %s left", done, text, f"{speed:,.0f}", left)

    def draw(self, trainer: Trainer, *, also: Path | None = None) -> None:
        """A picture of samples, and of real ones."""
        game = trainer.game
        self._show("samples/real", self.shown, trainer)
        for tag, network in {"samples/raw": game.generator, "samples/ema": trainer.ema.network}.items():
            with looking(network), game.autocast():
                array = self._show(tag, network(self.noise, self.labels).float(), trainer)
        folder = self.folder / "samples"
        folder.mkdir(exist_ok=True)
        pictures.write_png(folder / f"images-{trainer.images:012d}.png", array)
        if also is not None:
            pictures.write_png(also, array)

    def _show(self, tag: str, samples: Tensor, trainer: Trainer) -> Any:
        array = pictures.picture(samples.cpu(), density=trainer.dataset.density, limits=self.limits)
        self.writer.add_image(tag, array, trainer.images, dataformats="HWC")
        return array

    def _forget_after(self, images: int) -> None:
        """A run that was cut off logged steps that it now takes again: they go."""
        path = self.folder / "metrics.jsonl"
        if path.exists():
            lines = [line for line in path.read_bytes().splitlines(keepends=True) if _images_of(line) <= images]
            write_whole(path, b"".join(lines))


def judged(real_logits: Tensor, fake_logits: Tensor, threshold: Tensor | float) -> dict[str, Tensor]:
    """Accuracies, mean logits, and the value of the game E log D(x) + E log(1 - D(G(z))), whatever the loss.

    D is the sigmoid of the logit's distance to `threshold`.
    """
    return {
        "accuracy/real": (real_logits > threshold).float().mean(),
        "accuracy/fake": (fake_logits <= threshold).float().mean(),
        "logits/real": real_logits.mean(),
        "logits/fake": fake_logits.mean(),
        "game/value": logsigmoid(real_logits - threshold).mean() + logsigmoid(threshold - fake_logits).mean(),
    }


def _some(batch: Batch, count: int, classes: int) -> Batch:
    """The first `count` of it, with labels only where the players take them."""
    samples, labels = batch
    return samples[:count], labels[:count] if classes and labels is not None else None


def threshold_of(real_logits: Tensor, fake_logits: Tensor, loss: Loss) -> Tensor | float:
    """The logit above which a sample counts as real."""
    return (real_logits.mean() + fake_logits.mean()) / 2 if loss.threshold is None else loss.threshold


def _images_of(line: bytes) -> float:
    try:
        return float(json.loads(line)["images"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line cut short by the end of the process


def _yaml(settings: Mapping[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(dict(settings), sort_keys=False))


def _quiet_writer_thread() -> None:
    """TensorBoard's thread passes its OSError (a full disk) on to us; its own traceback says nothing more."""
    if threading.excepthook is not _all_but_os_errors:
        global _shown
        _shown, threading.excepthook = threading.excepthook, _all_but_os_errors


_shown = threading.excepthook


def _all_but_os_errors(args: threading.ExceptHookArgs) -> None:
    if not isinstance(args.exc_value, OSError):
        _shown(args)
