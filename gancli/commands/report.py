"""`gancli report`: any runs in one table and one HTML file. Only reads, and imports no class of a run."""

from __future__ import annotations

import logging
import math
import os
import re
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from gancli import __version__, config
from gancli.commands.latest_run import is_experiment
from gancli.errors import UserError, did_you_mean, printable, require_between
from gancli.files.atomic import atomic_write
from gancli.files.json_files import numbers_of
from gancli.files.user_paths import expand
from gancli.files.yaml_files import read_plain_yaml
from gancli.reporting.html import Gallery, Image, Link, Part, Section, Table, render_page
from gancli.training.run_folder import RunFolder

log = logging.getLogger(__name__)
SCHEMA = {"run": str | list[str], "out": str | None, "sort": str | None, "watch": float | None}
_MAX_LINES = 8  # in a plot
_MAX_PICTURE = 2**25  # bytes of a grid of samples that is put into the page
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
    "diversity",
    "diversity_within_classes",
)
_NEVER_BEGAN, _RUNNING, _CUT_OFF = "never began", "running", "cut off, or running"


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """The content of one run folder.

    name: as in the report. settings: of its config.yaml, empty where it has none. evaluations: those made while
    training, oldest first. last: the newest row of the log or of the evaluations. ended: how the last start ended.
    device: that each of the `processes` of the last start computed on.
    """

    name: str
    folder: Path
    settings: Mapping[str, Any]
    evaluations: Sequence[Mapping[str, Any]]
    last: Mapping[str, Any]
    ended: str
    device: str = ""
    processes: int = 1

    @property
    def is_running(self) -> bool:
        """Whether a process trains here now."""
        return self.ended.startswith(f"{_RUNNING}:") or self.ended == _RUNNING

    @property
    def final(self) -> dict[str, float]:
        """The values of the last evaluation."""
        return dict(self.evaluations[-1]["values"]) if self.evaluations else {}

    @property
    def ranking(self) -> list[str]:
        """The name of the value that ranks checkpoints, the first of an evaluation, and of the sweep's objective."""
        objective = self.settings.get("objective")
        return [name for name in dict.fromkeys([*list(self.final)[:1], str(objective)]) if name in self.final]

    def best(self, name: str) -> float | None:
        """Returns the best value `name` of all evaluations; None where none is finite."""
        values = [row["values"].get(name, math.nan) for row in self.evaluations]
        finite = [value for value in values if math.isfinite(value)]
        return (max(finite) if name in _LARGER_IS_BETTER else min(finite)) if finite else None


def run(settings: dict[str, Any]) -> Path:
    """Prints the table, writes the HTML file and returns its path. Raises UserError, OSError.

    With `watch` the file is written again and again, until every run has ended, or by Ctrl-C.
    """
    config.check(settings, SCHEMA)
    require_between(1, 86_400, watch=settings["watch"])
    given = settings["run"] if isinstance(settings["run"], list) else [settings["run"]]
    if not given:
        raise UserError("run=[]: name at least one sweep's folder or run folder")
    tops = [expand(folder, key="run") for folder in dict.fromkeys(given)]
    out = expand(settings["out"], key="out") if settings["out"] else tops[0] / "report.html"
    if out.is_dir():
        raise UserError(f"out={out}: is a folder, and the report is one file")
    write = partial(_write, out, tops, sort=settings["sort"])
    while write(watch=settings["watch"]):
        log.info("report        %s; again in %g s, Ctrl-C ends it", out, settings["watch"])
        try:
            time.sleep(settings["watch"])
        except KeyboardInterrupt:
            write(watch=None)
            break
    log.info("report        %s", out)
    return out


def _write(out: Path, tops: Sequence[Path], *, sort: str | None, watch: float | None) -> bool:
    """Prints the table and writes the file; returns whether to do so again, since a run goes on and is watched."""
    runs = [_read(folder, _name(folder, tops)) for top in tops for folder in _find_runs(top)]
    names = list(dict.fromkeys(name for run in runs for name in run.final if not re.search(r"_class_\d+$", name)))
    if sort is not None:
        if sort not in names:
            raise UserError(f"sort={sort}: no evaluation has this value{did_you_mean(sort, names)}")
        runs = sorted(runs, key=lambda run: _sort_key(run.final.get(sort, math.nan), sort))
    differing, best = _differing_settings(runs), _best(runs)
    table = _table(runs, differing, names)
    for line in table.lines():
        log.info("%s", line)
    introduction = f"{len(runs)} runs under {printable(', '.join(map(str, tops)))}, by gancli {__version__}."
    labels = _labels(runs, differing)
    if best is not None:
        name, number = best.ranking[-1], _cell(best.final[best.ranking[-1]])
        log.info("best          %s, by %s: %s", best.folder, name, number)
        introduction += f" The best by {name} is {best.name} ({number}), marked with a star."
    again = watch is not None and any(run.is_running for run in runs)
    if again:
        introduction += f" This page is written again every {watch:g} seconds while a run goes on."
    sections = [
        Section(
            title="Settings that differ, and results",
            parts=[_with_costs(table, runs, best, out), *_over_seeds(runs, labels)],
        ),
        Section(title="Quality during training", parts=_curves(runs, labels, best)),
        Section(title="Samples", parts=_samples(runs, labels, best)),
    ]
    page = render_page("Runs side by side", introduction, sections, refresh=watch if again else None)
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(out, page.encode(errors="backslashreplace"))
    return again


def _with_costs(table: Table, runs: Sequence[RunSummary], best: RunSummary | None, out: Path) -> Table:
    """Returns the table of the page: links to the run folders, and speed, device and its hours after the minutes."""
    place = table.head.index("minutes") + 1
    rows: list[list[str | Link]] = []
    for run, row in zip(runs, table.rows, strict=True):
        seconds = run.last["seconds"] if run.last else 0.0
        speed = f"{run.last['images'] / seconds:,.0f}" if seconds > 0 else ""
        device = f"{run.processes} x {run.device}" if run.processes > 1 and run.device else run.device
        hours = f"{seconds * run.processes / 3600:.3g}" if seconds > 0 else ""
        first = Link(_starred(run.name, best), _relative_url(run.folder, out.parent))
        rows.append([first, *row[1:place], speed, device, hours, *row[place:]])
    head = [*table.head[:place], "images/s", "device", "device hours", *table.head[place:]]
    return Table(head, rows, "A click on a head sorts the rows.", sortable=True)


def _relative_url(folder: Path, start: Path) -> str:
    """Returns the way from the page to a run folder, which holds on wherever both are moved together."""
    return quote(os.path.relpath(folder.resolve(), start.resolve()).replace(os.sep, "/"), errors="replace") + "/"


def _find_runs(top: Path) -> list[Path]:
    """Returns the run folders at or below `top`, and the folders of jobs that failed before their run began."""
    if not top.is_dir():
        raise UserError(f"run={top}: no such folder; name a sweep's folder or run folders")
    levels = ("", "*/", "*/*/", "*/*/*/", "*/*/*/*/")  # outputs/multirun/DATE/TIME/JOB
    files = (file for name in ("config.yaml", "train.log") for level in levels for file in top.glob(level + name))
    folders = {file.parent for file in files if file.parent.name != ".hydra"}  # which holds Hydra's own config.yaml
    runs = {folder for folder in folders if (folder / "config.yaml").is_file()}
    folders -= {folder for folder in folders if runs & set(folder.parents)}  # what other programs keep in a run
    folders -= {folder for folder in folders if folder != top and is_experiment(folder, top)}
    for link in sorted(folder for folder in folders if folder != top and _is_linked(folder, top)):
        log.warning("%s is a link, or below one, and left out; name it itself: run=[…]", printable(link))
        folders.remove(link)
    if not folders:
        raise UserError(f"run={top}: no run folders here; name a sweep's folder or run folders")
    return sorted(folders, key=lambda folder: [(len(part), part) for part in folder.parts])  # 2 before 10


def _is_linked(folder: Path, top: Path) -> bool:
    """Whether the way down from `top` to `folder` leads through a link, maybe to what is nobody else's business."""
    parts = folder.relative_to(top).parts
    return any(top.joinpath(*parts[:depth]).is_symlink() for depth in range(1, len(parts) + 1))


def _name(folder: Path, tops: Sequence[Path]) -> str:
    """Returns the folder's path below that of `tops` that holds it; its own name for one of `tops`."""
    top = next((top for top in tops if folder != top and folder.is_relative_to(top)), folder.parent)
    return printable(folder.relative_to(top))


def _read(path: Path, name: str) -> RunSummary:
    """Reads a run folder, which may come from elsewhere: whatever its files hold, the other runs are shown."""
    folder = RunFolder(path)
    linked = [file.name for file in (*folder.texts, folder.final_samples) if file.is_symlink()]
    if linked:  # to what nobody meant to put into a report
        ended = f"not read: {', '.join(linked)} is a link to somewhere else"
        return RunSummary(name=name, folder=path, settings={}, evaluations=[], last={}, ended=ended)
    settings = {}
    try:
        settings = read_plain_yaml(folder.config)
        if not isinstance(settings, dict):
            raise ValueError("not the configuration of a run")
    except FileNotFoundError:  # the job failed before its run began
        pass
    except (OSError, ValueError) as error:
        settings = {}
        log.warning("%s: the settings cannot be read: %s", path, error)
    starts = folder.starts()
    ended = str(starts[-1].get("ended", _CUT_OFF)) if starts else _NEVER_BEGAN
    if folder.is_locked():
        ended = _RUNNING
    if ended in (_NEVER_BEGAN, _RUNNING, _CUT_OFF):
        ended = f"{ended}: {folder.last_log_line()}".rstrip(": ")
    evaluations = numbers_of(folder.read_evaluations(by="train"))
    last = max([*numbers_of(folder.read_metrics())[-1:], *evaluations[-1:]], key=lambda row: row["images"], default={})
    device, processes = (starts[-1].get(name) if starts else None for name in ("device", "processes"))
    return RunSummary(
        name=name,
        folder=path,
        settings=settings,
        evaluations=evaluations,
        last=last,
        ended=ended,
        device=printable(device) if isinstance(device, str) else "",
        processes=processes if isinstance(processes, int) and 1 <= processes <= 10**6 else 1,
    )


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


def _table(runs: Sequence[RunSummary], settings: Mapping[str, Sequence[str]], names: Sequence[str]) -> Table:
    """Returns a row for each run.

    settings: in which runs differ, see `_differing_settings`. names: of the values of the last evaluation to show.
    """
    ranking = _ranking(runs)
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


def _labels(runs: Sequence[RunSummary], settings: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Returns for each run, by name, the settings in which it differs from others, without its seed.

    Runs that differ in the seed alone have the same label.
    """
    return {
        run.name: ", ".join(
            printable(f"{key}={cells[index]}") for key, cells in settings.items() if key != "seed" and cells[index]
        )
        for index, run in enumerate(runs)
    }


def _best(runs: Sequence[RunSummary]) -> RunSummary | None:
    """Returns the run whose last evaluation is the best, by what a sweep compares; None for a single run or none."""
    ranking = _ranking(runs)
    known = [run for run in runs if ranking and math.isfinite(run.final.get(ranking[-1], math.nan))]
    return min(known, key=lambda run: _sort_key(run.final[ranking[-1]], ranking[-1])) if len(known) > 1 else None


def _starred(name: str, best: RunSummary | None) -> str:
    return f"{name} ★" if best is not None and name == best.name else name


def _over_seeds(runs: Sequence[RunSummary], labels: Mapping[str, str]) -> list[Table]:
    """Returns a table of the last value that a sweep compares, over runs that differ in the seed alone."""
    ranking, groups = _ranking(runs), dict[str, list[float]]()
    for run in runs:
        if ranking and math.isfinite(value := run.final.get(ranking[-1], math.nan)):
            groups.setdefault(labels[run.name], []).append(value)
    if max(map(len, groups.values()), default=0) < 2:
        return []
    rows = [
        [label or "all runs", str(len(values)), *(_cell(float(f(values))) for f in (np.mean, np.std, min, max))]
        for label, values in sorted(groups.items(), key=lambda item: _sort_key(float(np.mean(item[1])), ranking[-1]))
    ]
    caption = f"{ranking[-1]} of the last evaluation, over runs that differ in the seed alone, the best mean first"
    return [Table(["settings", "runs", "mean", "standard deviation", "lowest", "highest"], rows, caption)]


def _curves(runs: Sequence[RunSummary], labels: Mapping[str, str], best: RunSummary | None) -> list[Part]:
    """Returns plots of the value that a sweep compares, over images and over time; one line for each label."""
    ranking = _ranking(runs)
    evaluated = [(labels[run.name], rows) for run in runs if ranking and len(rows := _finite(run, ranking[-1])) > 1]
    if not evaluated:
        return ["No run has two evaluations to draw a curve through."]
    from gancli.reporting.curves import draw, summarise
    from gancli.reporting.image_grids import encode_png

    name = ranking[-1]
    groups: dict[str, list[NDArray[np.float64]]] = {}
    for label, rows in evaluated:
        groups.setdefault(label, []).append(rows)
    ordered = sorted(groups, key=lambda label: _sort_key(float(np.mean([rows[-1, 2] for rows in groups[label]])), name))
    lines = []
    for label in ordered[:_MAX_LINES]:
        count = f" ({len(groups[label])} runs)" if len(groups[label]) > 1 else ""
        lines.append(summarise(textwrap.shorten(label or "all runs", 60, placeholder=" …") + count, groups[label]))
    drawn = _finite(best, name) if best is not None else np.empty((0, 3))
    star = drawn[-1] if len(drawn) else None
    minutes = max(rows[-1, 1] for _, rows in evaluated) > 120
    images = []
    for over, unit, xlabel in (
        ("images", 1.0, "images seen"),
        ("seconds", 60.0 if minutes else 1.0, "minutes" if minutes else "seconds"),
    ):
        point = None if star is None else (star[1 if over == "seconds" else 0], star[2])
        plot = draw(lines, over=over, unit=unit, xlabel=xlabel, ylabel=name, best=point)
        images.append(Image(encode_png(plot), f"{name} over {xlabel}"))
    note = "A line is the mean of runs that differ in the seed alone; its band reaches from the lowest to the highest."
    note += f" {'More' if name in _LARGER_IS_BETTER else 'Less'} is better."
    if len(groups) > _MAX_LINES:
        note += f" The best {_MAX_LINES} of {len(groups)} are drawn."
    return [note, Gallery(images, plots=True)]


def _finite(run: RunSummary, name: str) -> NDArray[np.float64]:
    """Returns images, seconds and the value `name` of each evaluation where they can be drawn: (N, 3)."""
    rows = [(row["images"], row["seconds"], row["values"].get(name, math.nan)) for row in run.evaluations]
    array = np.array(rows, dtype=np.float64).reshape(-1, 3)
    return array[(np.abs(array) < 1e100).all(1)]  # not NaN either


def _samples(runs: Sequence[RunSummary], labels: Mapping[str, str], best: RunSummary | None) -> list[Part]:
    """Returns the last sample grid of each run; its caption says how the run differs, and its last result."""
    ranking, images = _ranking(runs), []
    for run in runs:
        folder = RunFolder(run.folder)
        grids = {} if folder.samples.is_symlink() else folder.sample_grids()
        file = grids[max(grids)] if grids and not folder.final_samples.exists() else folder.final_samples
        if file.is_file() and not file.is_symlink() and file.stat().st_size <= _MAX_PICTURE:
            seed = f"seed={run.settings['seed']}" if "seed" in run.settings else ""
            result = f"{ranking[-1]} {_cell(run.final[ranking[-1]])}" if ranking and ranking[-1] in run.final else ""
            facts = ", ".join(filter(None, [labels[run.name], seed, result]))
            images.append(Image(file.read_bytes(), f"{_starred(run.name, best)}: {facts}".removesuffix(": ")))
    return [Gallery(images)] if images else ["No run has samples yet."]
