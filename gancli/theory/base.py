"""A chapter of the report: a statement of the theory, the runs that show it, and what they showed."""

from __future__ import annotations

import json
import statistics
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gancli.reporting.html import Picture, Section, Table
from gancli.training.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A run: what to type after `gancli train`, and after `gancli evaluate run=…`, or None for nothing.

    name: its folder. minutes: about how long it takes, to start the longest first.
    """

    name: str
    overrides: tuple[str, ...]
    evaluate: tuple[str, ...] | None = None
    minutes: float = 0.2


class Chapter(ABC):
    """seeds: runs of each method where chance matters. length: factor on that of every run; in shortened ones the
    theory's limits are not reached, so a chapter gives no verdict on them.
    """

    title: str
    statement: str

    def __init__(self, *, seeds: int = 5, length: float = 1.0) -> None:
        self.seeds, self.length = seeds, length

    @abstractmethod
    def experiments(self) -> list[Experiment]:
        """The runs it needs."""

    @abstractmethod
    def parts(self, folder: Path) -> list[Table | Picture | str]:
        """What the runs in `folder`, one folder each by its name, have shown."""

    def section(self, folder: Path) -> Section:
        """The chapter's place in the report."""
        commands = [f"gancli train {' '.join(self._words(each, folder))}" for each in self.experiments()]
        return Section(title=self.title, statement=self.statement, parts=self.parts(folder), commands=commands)

    def _words(self, experiment: Experiment, folder: Path) -> list[str]:
        """What to type for the run as it was made, however long."""
        images = None if self.length == 1 else _done(folder / experiment.name).get("images")
        if images is None:
            return list(experiment.overrides)
        return [
            *(word for word in experiment.overrides if not word.startswith("train.images=")),
            f"train.images={images}",
        ]


def diverged(run: Path) -> bool:
    """Whether a loss or a gradient was no longer finite, so that the run ended before its time."""
    return str(_done(run).get("ended")).startswith("ended: ")


def _done(run: Path) -> dict[str, Any]:
    file = run / "done.json"
    return dict(json.loads(file.read_text())) if file.exists() else {}


def numbers(run: Path, diagnostic: str) -> dict[str, Any]:
    """Returns what a diagnostic found in a run; nothing where the run ended before."""
    return dict(RunFolder(run).read_diagnostic(diagnostic).get("numbers", {}))


def picture(run: Path, name: str, caption: str = "") -> list[Table | Picture | str]:
    """Returns a PNG of the run's folder, where there is one."""
    file = run / name
    return [Picture(file.read_bytes(), caption)] if file.exists() else []


def evaluated(run: Path) -> dict[str, float]:
    """Returns the last evaluation's values; nothing where there was none."""
    rows = RunFolder(run).read_evaluations()
    return dict(rows[-1]["values"]) if rows else {}


def number(value: Any, digits: int = 3) -> str:
    """A cell; a dash for nothing."""
    return "–" if value is None else value if isinstance(value, str) else f"{value:.{digits}g}"


def spread(values: Iterable[float]) -> str:
    """ "7.2 ± 0.4": mean and standard deviation; a dash for nothing."""
    known = list(values)
    if not known:
        return "–"
    mean = f"{statistics.mean(known):.3g}"
    return mean if len(known) == 1 else f"{mean} ± {statistics.stdev(known):.2g}"
