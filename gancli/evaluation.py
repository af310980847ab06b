"""Evaluation while a run trains: a small sample now and then, the best checkpoint, a watch. It changes no training."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gancli.checkpoint import write_whole
from gancli.datasets.base import Dataset
from gancli.errors import Collapsed, UserError
from gancli.game import looking
from gancli.metrics import evaluator as evaluators
from gancli.metrics.base import Samples
from gancli.runtime import Runtime, seeded
from gancli.watch import Watch

if TYPE_CHECKING:
    from gancli.trainer import Trainer

log = logging.getLogger(__name__)
FILE = "evaluations.jsonl"
_BATCH = 250


class Evaluation:
    """Scores `count` samples of the averaged generator every `every` images, and at the end of the run.

    every: None for never. reference_count: real samples to compare with, of the training part. labelled:
    whether the generator takes labels. watch: what looks for collapse. metric: the group's settings.
    cache: for features of real images.
    """

    def __init__(
        self,
        folder: Path,
        *,
        metric: Mapping[str, Any],
        dataset: Dataset,
        labelled: bool,
        runtime: Runtime,
        watch: Watch,
        every: int | None = 100_000,
        count: int = 2_000,
        reference_count: int = 10_000,
        cache: str = "~/.cache/gancli",
    ) -> None:
        for name, value in {"every": every, "count": count, "reference_count": reference_count}.items():
            if value is not None and value < 2:
                raise ValueError(f"{name}={value}: at least 2")
        self.file, self.every, self.count, self.watch = Path(folder) / FILE, every, count, watch
        self.team = runtime.team
        self.evaluator = None
        if every is not None:
            self.evaluator = evaluators.assemble(
                metric,
                dataset,
                labelled=labelled,
                device=runtime.device,
                cache=Path(cache).expanduser(),
                reference_count=reference_count,
            )
            if self.evaluator is None:
                lost = f"evaluation: none of metric=[{','.join(metric.keys() - {'features'})}] suits this data"
                if watch.action != "warn":
                    raise UserError(f"{lost}, so watch.action={watch.action} has nothing to look at; choose another")
                log.info("%s: there will be no best checkpoint and no watch", lost)
        self.first: float | None = None
        self.best: float | None = None
        self.best_images, self.healthy, self.rollbacks = 0, 0, 0
        self.seconds = 0.0
        self.latest: dict[str, float] = {}

    def due(self, trainer: Trainer) -> bool:
        """Whether the step just made calls for one."""
        if self.evaluator is None or self.every is None:
            return False
        before = trainer.images - trainer.step_images
        return trainer.images // self.every > before // self.every or trainer.progress >= 1.0

    def look(self, trainer: Trainer) -> None:
        """Evaluates, keeps the best, and acts on what the watch finds. Raises Collapsed."""
        began = time.monotonic()
        samples = self._samples(trainer)
        bad, self.healthy = self.team.said(lambda: (self._judged(trainer, samples, began), self.healthy))
        if bad is not None:
            trainer.recover(Collapsed(f"after {trainer.images:,} images: {bad}"), up_to=self.healthy)

    def _judged(self, trainer: Trainer, samples: Samples, began: float) -> str | None:
        """Measures, writes and warns; returns what is bad enough to act on."""
        assert self.evaluator is not None
        real = variance(self.evaluator.real)
        values = self.evaluator(samples) | {"diversity": variance(samples) / real if real else 1.0}
        name, better = self.evaluator.best
        shares = self.evaluator.dataset.mode_shares
        known = {"modes_share": values["modes"] / len(shares)} if "modes" in values and shares is not None else {}
        findings = self.watch.look(
            trainer.monitor.latest, values | known, name=name, better=better, first=self.first, best=self.best
        )
        serious = [finding for finding in findings if finding.serious]
        now, best = values[name], self.best
        if math.isfinite(now) and self.first is None:
            self.first = now
        if math.isfinite(now) and (best is None or (now < best if better == "lower" else now > best)):
            self.best, self.best_images = now, trainer.images
            trainer.checkpoints.save_best(trainer.state(), images=trainer.images)
        if not serious:
            self.healthy = trainer.images
        self.seconds += time.monotonic() - began
        self.latest = values
        self._write(trainer, values)
        for finding in findings:
            log.warning("after %s images: %s", f"{trainer.images:,}", finding.text)
        return serious[0].text if serious and self.watch.action != "warn" else None

    def _samples(self, trainer: Trainer) -> Samples:
        assert self.evaluator is not None
        game, ema = trainer.game, trainer.ema.network
        noise = game.prior.sample(self.count, seeded(trainer.seed, "evaluation"))
        labels = self.evaluator.labels(self.count) if game.generator.num_classes else None

        def made(rows: Tensor) -> Tensor:
            chosen = None if labels is None else labels[rows].to(game.stream.device)
            return ema(noise[rows].to(game.stream.device), chosen)  # type: ignore[no-any-return]

        with looking(ema), game.autocast():
            return self.evaluator.samples(self.team.share_out(self.count, _BATCH, made), labels)

    def _write(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        assert self.evaluator is not None
        about = {"checkpoint": None, "images": trainer.images, "seconds": round(trainer.seconds, 3), "weights": "ema"}
        about |= {"seed": trainer.seed, "samples": self.count, "by": "train"}
        row = {"of": f"images {trainer.images}", "values": dict(values), **self.evaluator.protocol(), **about}
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in values.items():
            trainer.monitor.writer.add_scalar(f"metric/{name}", value, trainer.images)
        share = self.seconds / max(trainer.seconds, 1e-9)
        trainer.monitor.writer.add_scalar("speed/evaluation_share", share, trainer.images)

    @property
    def _scale(self) -> list[Any]:
        """What values of the number that judges checkpoints must have in common to be compared."""
        if self.evaluator is None:
            return []
        known = self.evaluator.protocol()
        return [self.evaluator.best[0], self.count, known["reference_hash"], known.get("features_hash")]

    def state(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return {
            "scale": self._scale,
            "seconds": self.seconds,
            "first": self.first,
            "best": self.best,
            "best_images": self.best_images,
            "healthy": self.healthy,
            "rollbacks": self.rollbacks,
            "norms": list(self.watch.norms),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state`."""
        self.seconds = state["seconds"]
        if state["scale"] == self._scale:  # another metric's best is not ours
            self.first, self.best, self.best_images = state["first"], state["best"], state["best_images"]
        self.healthy, self.rollbacks, self.watch.norms = state["healthy"], state["rollbacks"], list(state["norms"])

    def kept(self) -> dict[str, Any]:
        """What a way back to an older checkpoint does not undo: the best is still there, and time was spent."""
        return {name: getattr(self, name) for name in ("first", "best", "best_images", "seconds", "rollbacks")}

    def rewind(self, images: int) -> None:
        """Forgets the rows of this run's own past `images` images."""
        if self.team.first and self.file.exists():
            lines = self.file.read_bytes().splitlines(keepends=True)
            write_whole(self.file, b"".join(line for line in lines if not _past(line, images)))


def variance(samples: Samples) -> float:
    """Mean squared distance of features from their mean: how much samples vary."""
    return float(samples.features.double().var(0).sum())


def _past(line: bytes, images: int) -> bool:
    try:
        row = json.loads(line)
    except ValueError:
        return True  # cut short by the end of the process
    return bool(row.get("by") == "train" and row["images"] > images)
