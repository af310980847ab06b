"""The base class of the report's chapters, and what they share: experiments, reading of run folders, table cells."""

from __future__ import annotations

import json
import statistics
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gancli.errors import require_between
from gancli.reporting.html import Gallery, Image, Part, Section
from gancli.reporting.image_grids import encode_png
from gancli.reporting.plots import render
from gancli.training.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DONE_FILE = "done.json"  # in the run folder of an experiment that ended: images, overrides, and how it ended
MAX_SEEDS = 1_000  # runs of a method, far more than its outcome takes to be known


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A run that a chapter needs.

    name: of its folder. overrides: of `gancli train`. evaluate: overrides of `gancli evaluate` after the training; None
    for no evaluation. minutes: estimated duration; long runs start first.
    """

    name: str
    overrides: tuple[str, ...]
    evaluate: tuple[str, ...] | None = None
    minutes: float = 0.2


class Chapter(ABC):
    """A statement of the theory, and the runs that test it.

    seeds: runs of each method whose outcome depends on chance. length: factor on the length of every run; runs
    shortened by it need not reach the limits that the theory speaks of, so no chapter judges them.
    """

    title: str
    statement: str

    def __init__(self, *, seeds: int = 5, length: float = 1.0) -> None:
        require_between(1, MAX_SEEDS, seeds=seeds)
        self.seeds, self.length = seeds, length

    @abstractmethod
    def experiments(self) -> list[Experiment]:
        """Returns the runs that the chapter needs."""

    @abstractmethod
    def parts(self, folder: Path) -> list[Part]:
        """Returns the tables, images and sentences about the runs in `folder`, each in a folder of its name."""

    def section(self, folder: Path) -> Section:
        """Returns the chapter's section of the report."""
        commands = [
            f"gancli train {' '.join(self._actual_overrides(experiment, folder))}" for experiment in self.experiments()
        ]
        return Section(title=self.title, statement=self.statement, parts=self.parts(folder), commands=commands)

    def _actual_overrides(self, experiment: Experiment, folder: Path) -> list[str]:
        """Returns the overrides with the length that the run really had."""
        images = None if self.length == 1 else read_done(folder / experiment.name).get("images")
        if images is None:
            return list(experiment.overrides)
        others = (override for override in experiment.overrides if not override.startswith("train.images="))
        return [*others, f"train.images={images}"]


def read_done(run: Path) -> dict[str, Any]:
    """Returns the content of the run's done.json; an empty dict for a run that has not ended."""
    file = run / DONE_FILE
    return dict(json.loads(file.read_text())) if file.exists() else {}


def diverged(run: Path) -> bool:
    """Whether the run ended early because a loss or a gradient was not finite."""
    return str(read_done(run).get("ended")).startswith("ended: ")


def diagnostic_numbers(run: Path, diagnostic: str) -> dict[str, Any]:
    """Returns the numbers of a run's diagnostic; an empty dict where the run did not get that far."""
    return dict(RunFolder(run).read_diagnostic(diagnostic).get("numbers", {}))


def plotted(plot: Figure, caption: str) -> Image:
    """Returns a plot of the page."""
    return Image(encode_png(render(plot)), caption)


def panels_of(run: Path, diagnostic: str, captions: Sequence[str]) -> list[Image]:
    """Returns the plots that a run's diagnostic drew, one for each caption, in their order; none where it did not."""
    files = [(f"theory/{diagnostic}-{number}.png", caption) for number, caption in enumerate(captions, start=1)]
    return [image for file, caption in files for image in images_of(run, file, caption)]


def gallery(images: Sequence[Image], *, plots: bool = True) -> list[Part]:
    """Returns the images side by side; an empty list for none."""
    return [Gallery(images, plots=plots)] if images else []


def images_of(run: Path, file: str, caption: str) -> list[Image]:
    """Returns the run's PNG `file`; an empty list where it does not exist."""
    path = run / file
    return [Image(path.read_bytes(), caption)] if path.exists() else []


def last_evaluation(run: Path) -> dict[str, float]:
    """Returns the values of the run's last evaluation; an empty dict for none."""
    rows = RunFolder(run).read_evaluations()
    return dict(rows[-1]["values"]) if rows else {}


def format_number(value: Any, digits: int = 3) -> str:
    """Returns a table cell: `digits` significant digits, a string as it is, a dash for None."""
    return "–" if value is None else value if isinstance(value, str) else f"{value:.{digits}g}"


def format_spread(values: Iterable[float]) -> str:
    """Returns mean and standard deviation, as "7.2 ± 0.4"; the value alone for one, a dash for none."""
    known = list(values)
    if not known:
        return "–"
    mean = f"{statistics.mean(known):.3g}"
    return mean if len(known) == 1 else f"{mean} ± {statistics.stdev(known):.2g}"
