"""The input, the result and the base class of every diagnostic."""

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
from gancli.reporting.plots import panels, render
from gancli.training.run_folder import RunFolder
from gancli.training.trainer import Trainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DiagnosticResult:
    """The result of a diagnostic. text: one or two sentences. numbers: by name; some values are words."""

    text: str
    numbers: Mapping[str, float | str] = field(default_factory=dict)
    figure: Figure | None = None


class TrainedRun:
    """A run to diagnose: the trainer in its present state, and the run folder with the log.

    Diagnostics change neither the trainer's state nor the log.
    """

    def __init__(self, folder: RunFolder, trainer: Trainer) -> None:
        self.folder, self.trainer = folder, trainer

    @cached_property
    def rows(self) -> list[dict[str, float]]:
        """The rows of metrics.jsonl, oldest first."""
        return self.folder.read_metrics()

    def series(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Returns the images seen and the scalar `name`, (n,) each, of the n rows that have it."""
        pairs = [(row["images"], row[name]) for row in self.rows if isinstance(row.get(name), (int, float))]
        images, values = zip(*pairs, strict=True) if pairs else ((), ())
        return np.array(images, dtype=np.float64), np.array(values, dtype=np.float64)

    def real_samples(self, count: int, *, held_out: bool = False) -> tuple[Tensor, Tensor | None]:
        """Returns at most `count` real samples (n, *shape), the same ones at every call, and their labels (n,).

        The labels are None for an unconditional game.
        """
        dataset = self.trainer.dataset
        if held_out:
            samples, labels = dataset.holdout(count)
        else:
            size = min(count, len(dataset))
            samples, labels = dataset.batch(0, size=size, seed=self.trainer.seed)
        return samples, labels if self.trainer.game.generator.num_classes else None

    def noise(self, count: int) -> Tensor:
        """Returns noise (count, dim) on the run's device, the same at every call."""
        game = self.trainer.game
        return game.prior.sample(count, seeded(self.trainer.seed, "diagnostic")).to(game.stream.device)


class Diagnostic(ABC):
    """Tests one statement of the theory on a run. title: of the log line."""

    title: str

    @abstractmethod
    def suits(self, run: TrainedRun) -> bool:
        """Whether the diagnostic is defined for this run."""

    @abstractmethod
    def __call__(self, run: TrainedRun) -> DiagnosticResult:
        """Computes the result; called only for a run that it suits."""


def diagnose(run: TrainedRun, diagnostics: Mapping[str, Diagnostic]) -> dict[str, DiagnosticResult]:
    """Runs those diagnostics that suit the run; logs the results and writes them to its folder and to TensorBoard.

    Raises OSError.
    """
    results: dict[str, DiagnosticResult] = {}
    for name, diagnostic in diagnostics.items():
        if diagnostic.suits(run):
            results[name] = diagnostic(run)
            log.info("%s: %s", diagnostic.title, results[name].text)
            _write(run, name, results[name])
    return results


def _write(run: TrainedRun, name: str, result: DiagnosticResult) -> None:
    from torch.utils.tensorboard import SummaryWriter

    images = run.trainer.images
    content = {"text": result.text, "images": images, "numbers": dict(result.numbers)}
    run.folder.write_diagnostic(name, content)
    with SummaryWriter(str(run.folder.path), filename_suffix=f".{name}") as writer:
        for key, value in result.numbers.items():
            if not isinstance(value, str):
                writer.add_scalar(f"theory/{name}/{key}", value, images)
        if result.figure is not None:
            array = render(result.figure)
            image_grids.write_png(run.folder.theory / f"{name}.png", array)
            for number, panel in enumerate(panels(result.figure, array), start=1):  # for narrow pages
                image_grids.write_png(run.folder.theory / f"{name}-{number}.png", panel)
            writer.add_image(f"theory/{name}", array, images, dataformats="HWC")


def evaluate_in_batches(network: torch.nn.Module, inputs: Tensor, *, batch_size: int = 4096) -> Tensor:
    """Returns the network's output for `inputs` (n, …) as float32 on the CPU, in evaluation mode, without gradients."""
    with eval_mode(network):
        return torch.cat([network(batch).float().cpu() for batch in inputs.split(batch_size)])
