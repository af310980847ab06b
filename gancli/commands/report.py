"""`gancli report`: the runs of a sweep in one table and one HTML file. Only reads, and imports no class of a run."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gancli import __version__, config
from gancli.atomic_files import atomic_write
from gancli.errors import UserError, did_you_mean
from gancli.reporting.html import Gallery, Image, Part, Section, Table, render_page
from gancli.training.run_folder import RunFolder

log = logging.getLogger(__name__)
SCHEMA = {"run": str | int | list[str | int], "out": str | None, "sort": str | None}
_MAX_CURVES = 12  # runs in the plot
_LARGER_IS_BETTER = (
    "modes",
    "modes_held",
    "high_quality",
    "precision",
    "recall",
    "density",
    "coverage",
    "inception_score",
    "classifier_score",
)
_NEVER_BEGAN, _CUT_OFF = "never began", "cut off, or running"


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """The content of one run folder.

    evaluations: those made while training, oldest first. last: the newest row of the log or of the evaluations. ended:
    how the last start ended.
    """

    name: str
    folder: Path
    settings: Mapping[str, Any]
    evaluations: Sequence[Mapping[str, Any]]
    last: Mapping[str, Any]
    ended: str

    @property
    def final(self) -> dict[str, float]:
        """The values of the last evaluation."""
        return dict(self.evaluations[-1]["values"]) if self.evaluations else {}

    @property
    def ranking(self) -> list[str]:
        """The name of the value that ranks checkpoints, the first of an evaluation, and of the sweep's objective."""
        objective = self.settings.get("objective")
        return [name for name in dict.fromkeys([*list(self.final)[:1], objective]) if name in self.final]

    def best(self, name: str) -> float | None:
        """Returns the best value `name` of all evaluations; None where none is finite."""
        values = [row["values"].get(name, math.nan) for row in self.evaluations]
        finite = [value for value in values if math.isfinite(value)]
        return (max(finite) if name in _LARGER_IS_BETTER else min(finite)) if finite else None


def run(settings: dict[str, Any]) -> Path:
    """Prints the table, writes the HTML file and returns its path. Raises UserError, OSError."""
    config.check(settings, SCHEMA)
    given = settings["run"] if isinstance(settings["run"], list) else [settings["run"]]
    tops = [Path(str(folder)).expanduser() for folder in given]
    runs = [_read(folder, _name(folder, tops)) for top in tops for folder in _find_runs(top)]
    names = list(dict.fromkeys(name for run in runs for name in run.final if not re.search(r"_class_\d+$", name)))
    if settings["sort"] is not None:
        if settings["sort"] not in names:
            raise UserError(
                f"sort={settings['sort']}: no evaluation has this value{did_you_mean(settings['sort'], names)}"
            )
        runs = sorted(runs, key=lambda run: _sort_key(run.final.get(settings["sort"], math.nan), settings["sort"]))
    table = _table(runs, names)
    for line in table.lines():
        log.info("%s", line)
    out = Path(settings["out"]).expanduser() if settings["out"] else tops[0] / "report.html"
    sections = [
        Section(title="Settings that differ, and results", parts=[table, *_curves(runs)]),
        Section(title="Samples", parts=_samples(runs)),
    ]
    introduction = f"{len(runs)} runs under {', '.join(map(str, tops))}, by gancli {__version__}."
    atomic_write(out, render_page("Runs side by side", introduction, sections).encode())
    log.info("report        %s", out)
    return out


def _find_runs(top: Path) -> list[Path]:
    """Returns the run folders at or below `top`, and the folders of jobs that failed before their run began."""
    if not top.is_dir():
        raise UserError(f"run={top}: no such folder; name a sweep's folder or run folders")
    files = (
        file for name in ("config.yaml", "train.log") for level in ("", "*/", "*/*/") for file in top.glob(level + name)
    )
    folders = {file.parent for file in files if file.parent.name != ".hydra"}  # which holds Hydra's own config.yaml
    if not folders:
        raise UserError(f"run={top}: no run folders here; name a sweep's folder or run folders")
    return sorted(folders, key=lambda folder: [(len(part), part) for part in folder.parts])  # 2 before 10


def _name(folder: Path, tops: Sequence[Path]) -> str:
    """Returns the folder's path below that of `tops` that holds it; its own name for one of `tops`."""
    top = next((top for top in tops if folder != top and folder.is_relative_to(top)), folder.parent)
    return str(folder.relative_to(top))


def _read(path: Path, name: str) -> RunSummary:
    folder, settings = RunFolder(path), {}
    try:
        settings = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    except FileNotFoundError:  # the job failed before its run began
        pass
    except (OSError, ValueError, yaml.YAMLError) as error:
        log.warning("%s: the settings cannot be read: %s", path, error)
    starts = folder.starts()
    ended = starts[-1].get("ended", _CUT_OFF) if starts else _NEVER_BEGAN
    if ended in (_NEVER_BEGAN, _CUT_OFF):
        ended = f"{ended}: {folder.last_log_line()}".rstrip(": ")
    evaluations = [row for row in folder.read_evaluations(by="train") if "seconds" in row]
    last = max([*folder.read_metrics()[-1:], *evaluations[-1:]], key=lambda row: row["images"], default={})
    return RunSummary(name=name, folder=path, settings=settings, evaluations=evaluations, last=last, ended=ended)


def _differing_settings(runs: Sequence[RunSummary]) -> dict[str, list[str]]:
    """Returns the settings in which runs differ: for each key, one cell per run; a class by its name alone."""
    flat = [dict(config.leaves(run.settings)) for run in runs]
    columns = {}
    for key in dict.fromkeys(key for settings in flat for key in settings):
        values = {str(settings.get(key, "")) for settings in flat if settings}
        if len(values) > 1 and not key.startswith("hydra"):
            cells = _distinct_cells([settings.get(key, "") for settings in flat])
            if key.endswith("_target_"):
                cells = [cell.rpartition(".")[2] for cell in cells]
            columns[key.removesuffix("._target_")] = cells
    return columns


def _distinct_cells(values: Sequence[Any]) -> list[str]:
    """Returns the values as text: floats with four digits, or with all of them where four do not tell them apart."""
    full = [str(value) for value in values]
    short = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
    return short if len(set(short)) == len(set(full)) else full


def _table(runs: Sequence[RunSummary], names: Sequence[str]) -> Table:
    """Returns a row for each run. names: of the values of the last evaluation to show."""
    settings, ranking = _differing_settings(runs), _ranking(runs)
    head = ["run", *settings, "images", "minutes", *names, *(f"best {name}" for name in ranking), "ended"]
    rows = []
    for index, run in enumerate(runs):
        images = f"{run.last['images']:,}" if run.last else ""
        minutes = f"{run.last['seconds'] / 60:.1f}" if run.last else ""
        final = [_cell(run.final.get(name)) for name in names]
        best = [_cell(run.best(name)) for name in ranking]
        rows.append(
            [run.name, *(cells[index] for cells in settings.values()), images, minutes, *final, *best, run.ended]
        )
    return Table(head, rows)


def _ranking(runs: Sequence[RunSummary]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.ranking))


def _sort_key(value: float, name: str) -> float:
    """Returns a key that sorts the best value first and NaN last."""
    return math.inf if math.isnan(value) else -value if name in _LARGER_IS_BETTER else value


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _curves(runs: Sequence[RunSummary]) -> list[Image]:
    """Returns a plot of the sweep's objective, or else of the value that ranks checkpoints, over images seen."""
    plotted, ranking = [run for run in runs if len(run.evaluations) > 1][:_MAX_CURVES], _ranking(runs)
    if not ranking or not plotted:
        return []
    from gancli.reporting.image_grids import encode_png
    from gancli.reporting.plots import figure, render

    name = ranking[-1]
    plot, (axis,) = figure(width=8.0)
    for run in plotted:
        points = [(row["images"], row["values"].get(name, math.nan)) for row in run.evaluations]
        axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=run.name)
    axis.set(xlabel="images seen", ylabel=name)
    axis.legend(frameon=False, fontsize=8, ncols=2)
    return [Image(encode_png(render(plot)), f"{name} during training")]


def _samples(runs: Sequence[RunSummary]) -> list[Part]:
    files = {run.name: RunFolder(run.folder).final_samples for run in runs}
    images = [Image(file.read_bytes(), name) for name, file in files.items() if file.is_file()]
    return [Gallery(images)] if images else ["No run has samples yet."]
