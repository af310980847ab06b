"""`gancli report`: all runs of a sweep in one table and one HTML file. Only reads; imports nothing that runs name."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gancli import __version__, config
from gancli.atomic_files import atomic_write
from gancli.errors import UserError, did_you_mean
from gancli.reporting.html import Gallery, Part, Picture, Section, Table, page
from gancli.training.run_folder import RunFolder

log = logging.getLogger(__name__)
SCHEMA = {"run": str | int | list[str | int], "out": str | None, "sort": str | None}
_CURVES = 12  # runs in a plot


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What one run folder says. rows: its evaluations while it trained, oldest first. last: the newest row of all."""

    name: str
    folder: Path
    settings: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    last: Mapping[str, Any]
    ended: str

    @property
    def final(self) -> dict[str, float]:
        """The last evaluation's numbers."""
        return dict(self.rows[-1]["values"]) if self.rows else {}

    @property
    def judges(self) -> list[str]:
        """The number that judges checkpoints, the first of an evaluation, and the one that a sweep compares."""
        asked = self.settings.get("objective")
        return [name for name in dict.fromkeys([*list(self.final)[:1], asked]) if name in self.final]

    def best(self, name: str, *, largest: bool) -> float | None:
        """The best that a number ever was."""
        values = [row["values"][name] for row in self.rows if math.isfinite(row["values"].get(name, math.nan))]
        return (max(values) if largest else min(values)) if values else None


def run(settings: dict[str, Any]) -> Path:
    """Prints the table, writes the page and returns where it is. Raises UserError, OSError."""
    config.check(settings, SCHEMA)
    asked = settings["run"] if isinstance(settings["run"], list) else [settings["run"]]
    top = [Path(str(one)).expanduser() for one in asked]
    found = [_read(folder, _name(folder, top)) for one in top for folder in _runs(one)]
    names = list(dict.fromkeys(name for each in found for name in each.final if not name.startswith("fid_class_")))
    if settings["sort"] is not None:
        if settings["sort"] not in names:
            raise UserError(f"sort={settings['sort']}: no such number here{did_you_mean(settings['sort'], names)}")
        found = sorted(found, key=lambda each: _place(each.final.get(settings["sort"], math.nan), settings["sort"]))
    table = _table(found, names)
    for line in table.lines():
        log.info("%s", line)
    out = Path(settings["out"]).expanduser() if settings["out"] else top[0] / "report.html"
    sections = [Section(title="Settings that differ, and results", parts=[table, *_curves(found)])]
    sections.append(Section(title="Samples", parts=_samples(found)))
    about = f"{len(found)} runs under {', '.join(map(str, top))}, by gancli {__version__}."
    atomic_write(out, page("Runs side by side", about, sections).encode())
    log.info("report        %s", out)
    return out


def _runs(top: Path) -> list[Path]:
    """Run folders at or below `top`, and folders of jobs that ended before they became one."""
    if not top.is_dir():
        raise UserError(f"run={top}: no such folder; name a sweep's folder or run folders")
    marks = ("config.yaml", "train.log")
    found = {
        file.parent for mark in marks for file in [*top.glob(mark), *top.glob(f"*/{mark}"), *top.glob(f"*/*/{mark}")]
    }
    found = {folder for folder in found if folder.name != ".hydra"}  # Hydra's own copy of what was asked for
    if not found:
        raise UserError(f"run={top}: no run folders here; name a sweep's folder or run folders")
    return sorted(found, key=lambda folder: [(len(part), part) for part in folder.parts])  # 2 before 10


def _name(folder: Path, top: Sequence[Path]) -> str:
    below = next((one for one in top if folder != one and folder.is_relative_to(one)), folder.parent)
    return str(folder.relative_to(below))


def _read(path: Path, name: str) -> RunSummary:
    folder, settings = RunFolder(path), {}
    try:
        settings = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    except FileNotFoundError:  # a job that ended before its folder became a run
        pass
    except (OSError, ValueError, yaml.YAMLError) as error:
        log.warning("%s: cannot be read in full: %s", path, error)
    starts = folder.starts()
    ended = starts[-1].get("ended", "cut off, or running") if starts else "never began"
    if ended in ("never began", "cut off, or running"):
        ended = f"{ended}: {folder.last_log_line()}".rstrip(": ")
    rows = [row for row in folder.read_evaluations(by="train") if "seconds" in row]
    last = max([*folder.read_metrics()[-1:], *rows[-1:]], key=lambda row: row["images"], default={})
    return RunSummary(name=name, folder=path, settings=settings, rows=rows, last=last, ended=ended)


def _differing(found: Sequence[RunSummary]) -> dict[str, list[str]]:
    """Key -> a value for each run, of the settings in which they differ; a class by its name."""
    flat = [dict(config.leaves(each.settings)) for each in found]
    keys = dict.fromkeys(key for some in flat for key in some)
    columns = {key: [str(some.get(key, "")) for some in flat if some] for key in keys}
    differ = {key: _brief([some.get(key, "") for some in flat]) for key, each in columns.items() if len(set(each)) > 1}
    named = {
        key.removesuffix("._target_"): [
            value.rpartition(".")[2] if key.endswith("_target_") else value for value in values
        ]
        for key, values in differ.items()
    }
    return {key: values for key, values in named.items() if not key.startswith("hydra")}


def _brief(values: Sequence[Any]) -> list[str]:
    """As text; numbers in four digits, where these tell them apart."""
    whole = [str(value) for value in values]
    short = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
    return short if len(set(short)) == len(set(whole)) else whole


def _table(found: Sequence[RunSummary], names: Sequence[str]) -> Table:
    differ, judges = _differing(found), _judges(found)
    head = ["run", *differ, "images", "minutes", *names, *(f"best {name}" for name in judges), "ended"]
    lines = []
    for index, each in enumerate(found):
        images = f"{each.last['images']:,}" if each.last else ""
        minutes = f"{each.last['seconds'] / 60:.1f}" if each.last else ""
        numbers = [_short(each.final.get(name)) for name in names]
        best = [_short(each.best(name, largest=_larger_is_better(name))) for name in judges]
        lines.append(
            [each.name, *(column[index] for column in differ.values()), images, minutes, *numbers, *best, each.ended]
        )
    return Table(head, lines)


def _judges(found: Sequence[RunSummary]) -> list[str]:
    return list(dict.fromkeys(name for each in found for name in each.judges))


def _place(value: float, name: str) -> float:
    """To sort by, the best first; what was not measured, or is no number, comes last."""
    return math.inf if math.isnan(value) else -value if _larger_is_better(name) else value


def _larger_is_better(name: str) -> bool:
    larger = ("modes", "modes_held", "high_quality", "precision", "recall", "density", "coverage", "inception_score")
    return name in larger


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _curves(found: Sequence[RunSummary]) -> list[Picture]:
    """The number that was compared, else that judged checkpoints, of each run over images."""
    drawn_runs, judges = [each for each in found if len(each.rows) > 1][:_CURVES], _judges(found)
    if not judges or not drawn_runs:
        return []
    from gancli.reporting.image_grids import png
    from gancli.reporting.plots import drawn, figure

    made, (axis,) = figure(width=8.0)
    for each in drawn_runs:
        points = [(row["images"], row["values"].get(judges[-1], math.nan)) for row in each.rows]
        axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=each.name)
    axis.set(xlabel="images", ylabel=judges[-1])
    axis.legend(frameon=False, fontsize=8, ncols=2)
    return [Picture(png(drawn(made)), f"{judges[-1]} while training")]


def _samples(found: Sequence[RunSummary]) -> list[Part]:
    shown = [each for each in found if (each.folder / "samples.png").is_file()]
    pictures = [Picture((each.folder / "samples.png").read_bytes(), each.name) for each in shown]
    return [Gallery(pictures)] if pictures else ["No run has any yet."]
