"""What every diagnostic is given and what it hands back."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gancli.game import eval_mode
from gancli.randomness import seeded
from gancli.reporting import image_grids
from gancli.reporting.plots import drawn
from gancli.training.run_folder import RunFolder
from gancli.training.trainer import Trainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a diagnostic found. text: a sentence or two. numbers: by name; words where a number would say less."""

    text: str
    numbers: Mapping[str, float | str] = field(default_factory=dict)
    figure: Figure | None = None


class Run:
    """A run to look at: the trainer where it stands, and what it logged. Looking changes neither."""

    def __init__(self, folder: RunFolder, trainer: Trainer) -> None:
        self.folder, self.trainer = folder, trainer

    @cached_property
    def rows(self) -> list[dict[str, float]]:
        """Rows of metrics.jsonl, oldest first."""
        return self.folder.read_metrics()

    def series(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Images seen and the scalar `name`, (n,) each, where it was logged."""
        known = [(row["images"], row[name]) for row in self.rows if name in row]
        images, values = zip(*known, strict=True) if known else ((), ())
        return np.array(images, dtype=np.float64), np.array(values, dtype=np.float64)

    def real(self, count: int, *, held_out: bool = False) -> tuple[Tensor, Tensor | None]:
        """At most `count` real samples (n, *shape), always the same, and labels where the players take them."""
        dataset = self.trainer.dataset
        if held_out:
            samples, labels = dataset.holdout(count)
        else:
            size = min(count, len(dataset))
            samples, labels = dataset.batch(0, size=size, seed=self.trainer.seed)
        return samples, labels if self.trainer.game.generator.num_classes else None

    def noise(self, count: int) -> Tensor:
        """Noise (count, dim), always the same, on the run's device."""
        game = self.trainer.game
        return game.prior.sample(count, seeded(self.trainer.seed, "diagnostic")).to(game.stream.device)


class Diagnostic(ABC):
    """One statement of the theory, looked for in a run. title: of the picture."""

    title: str

    @abstractmethod
    def suits(self, run: Run) -> bool:
        """Whether it means anything for this run."""

    @abstractmethod
    def __call__(self, run: Run) -> Shown:
        """What it found."""


def diagnose(run: Run, diagnostics: Mapping[str, Diagnostic]) -> dict[str, Shown]:
    """Those that suit the run: found, told, and kept in its folder and in TensorBoard. Raises OSError."""
    found: dict[str, Shown] = {}
    for name, diagnostic in diagnostics.items():
        if diagnostic.suits(run):
            found[name] = diagnostic(run)
            log.info("%s: %s", diagnostic.title, found[name].text)
            _keep(run, name, found[name])
    return found


def _keep(run: Run, name: str, shown: Shown) -> None:
    from torch.utils.tensorboard import SummaryWriter

    images = run.trainer.images
    about = {"text": shown.text, "images": images, "numbers": dict(shown.numbers)}
    run.folder.write_diagnostic(name, about)
    with SummaryWriter(str(run.folder.path), filename_suffix=f".{name}") as writer:
        for key, value in shown.numbers.items():
            if not isinstance(value, str):
                writer.add_scalar(f"theory/{name}/{key}", value, images)
        if shown.figure is not None:
            array = drawn(shown.figure)
            image_grids.write_png(run.folder.theory / f"{name}.png", array)
            writer.add_image(f"theory/{name}", array, images, dataformats="HWC")


def frozen(network: torch.nn.Module, inputs: Tensor, *, batch: int = 4096) -> Tensor:
    """The network's output on `inputs`, in evaluation mode and without gradients, on the CPU."""
    with eval_mode(network):
        return torch.cat([network(some).float().cpu() for some in inputs.split(batch)])
