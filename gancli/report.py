"""`gancli report`: all runs of a sweep in one table and one HTML file. Only reads; imports nothing that runs name."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gancli import __version__, config
from gancli.checkpoint import write_whole
from gancli.errors import UserError
from gancli.page import Picture, Section, Table, page

log = logging.getLogger(__name__)
PLAIN = {"run": str | int | list[str | int], "out": str | None, "sort": str | None}
_CURVES = 12  # runs in a plot


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one run folder says. rows: its evaluations while it trained, oldest first."""

    name: str
    folder: Path
    settings: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    ended: str

    @property
    def final(self) -> dict[str, float]:
        """The last evaluation's numbers."""
        return dict(self.rows[-1]["values"]) if self.rows else {}

    def best(self, name: str, *, largest: bool) -> float | None:
        """The best that a number ever was."""
        values = [row["values"][name] for row in self.rows if math.isfinite(row["values"].get(name, math.nan))]
        return (max(values) if largest else min(values)) if values else None


def run(settings: dict[str, Any]) -> Path:
    """Prints the table, writes the page and returns where it is. Raises UserError, OSError."""
    config.check(settings, PLAIN)
    asked = settings["run"] if isinstance(settings["run"], list) else [settings["run"]]
    top = [Path(str(one)).expanduser() for one in asked]
    found = [_read(folder, _name(folder, top)) for one in top for folder in _runs(one)]
    names = list(dict.fromkeys(name for each in found for name in each.final if not name.startswith("fid_class_")))
    if settings["sort"] is not None:
        if settings["sort"] not in names:
            raise UserError(f"sort={settings['sort']}: no such number here{config.nearest(settings['sort'], names)}")
        found = sorted(found, key=lambda each: each.final.get(settings["sort"], math.inf))
    table = _table(found, names)
    for line in table.lines():
        log.info("%s", line)
    out = Path(settings["out"]).expanduser() if settings["out"] else top[0] / "report.html"
    sections = [Section(title="Settings that differ, and results", parts=[table, *_curves(found, names)])]
    sections.append(Section(title="Samples", parts=_samples(found)))
    about = f"{len(found)} runs under {', '.join(map(str, top))}, by gancli {__version__}."
    write_whole(out, page("Runs side by side", about, sections).encode())
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
    if not found:
        raise UserError(f"run={top}: no run folders here; name a sweep's folder or run folders")
    found = {folder for folder in found if folder.name != ".hydra"}  # Hydra's own copy of what was asked for
    return sorted(found, key=lambda folder: [(len(part), part) for part in folder.parts])  # 2 before 10


def _name(folder: Path, top: Sequence[Path]) -> str:
    below = next((one for one in top if folder != one and folder.is_relative_to(one)), folder.parent)
    return str(folder.relative_to(below))


def _read(folder: Path, name: str) -> Finding:
    settings, rows, ended = {}, [], "never began"
    try:
        settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        last = json.loads((folder / "run.json").read_text(encoding="utf-8"))["starts"][-1]
        ended = last.get("ended", "cut off, or running")
        lines = (folder / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [row for row in map(json.loads, lines) if row["by"] == "train"]
    except FileNotFoundError:
        pass
    except (OSError, ValueError, yaml.YAMLError, KeyError, IndexError, TypeError) as error:
        log.warning("%s: cannot be read in full: %s", folder, error)
    if ended in ("never began", "cut off, or running"):
        ended = f"{ended}: {_last_line(folder)}".rstrip(": ")
    return Finding(name=name, folder=folder, settings=settings, rows=rows, ended=ended)


def _last_line(folder: Path) -> str:
    """Of the log, without its date: why a job failed."""
    try:
        lines = (folder / "train.log").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition("] ")[2].rpartition("] - ")[2] or line for line in reversed(lines) if line.strip()), "")


def _differing(found: Sequence[Finding]) -> dict[str, list[str]]:
    """Key -> a value for each run, of the settings in which they differ; a class by its name."""
    flat = [dict(config.leaves(each.settings)) for each in found]
    keys = dict.fromkeys(key for some in flat for key in some)
    columns = {key: [str(some.get(key, "")) for some in flat if some] for key in keys}
    differ = {key: [str(some.get(key, "")) for some in flat] for key, values in columns.items() if len(set(values)) > 1}
    named = {
        key.removesuffix("._target_"): [
            value.rpartition(".")[2] if key.endswith("_target_") else value for value in values
        ]
        for key, values in differ.items()
    }
    return {key: values for key, values in named.items() if not key.startswith("hydra")}


def _table(found: Sequence[Finding], names: Sequence[str]) -> Table:
    differ, first = _differing(found), names[0] if names else None
    head = ["run", *differ, "images", "minutes", *names, *([f"best {first}"] if first else []), "ended"]
    lines = []
    for index, each in enumerate(found):
        last = each.rows[-1] if each.rows else {}
        images = f"{last['images']:,}" if last else ""
        minutes = f"{last['seconds'] / 60:.1f}" if last else ""
        numbers = [_short(each.final.get(name)) for name in names]
        best = [_short(each.best(first, largest=_larger_is_better(first)))] if first else []
        lines.append(
            [each.name, *(column[index] for column in differ.values()), images, minutes, *numbers, *best, each.ended]
        )
    return Table(head, lines)


def _larger_is_better(name: str) -> bool:
    larger = ("modes", "modes_held", "high_quality", "precision", "recall", "density", "coverage", "inception_score")
    return name in larger


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _curves(found: Sequence[Finding], names: Sequence[str]) -> list[Picture]:
    """The first number of each run over images."""
    drawn_runs = [each for each in found if len(each.rows) > 1][:_CURVES]
    if not names or not drawn_runs:
        return []
    from gancli.pictures import png
    from gancli.plots import drawn, figure

    made, (axis,) = figure(width=8.0)
    for each in drawn_runs:
        points = [(row["images"], row["values"].get(names[0], math.nan)) for row in each.rows]
        axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=each.name)
    axis.set(xlabel="images", ylabel=names[0])
    axis.legend(frameon=False, fontsize=8, ncols=2)
    return [Picture(png(drawn(made)), f"{names[0]} while training")]


def _samples(found: Sequence[Finding]) -> list[Table | Picture | str]:
    shown = [each for each in found if (each.folder / "samples.png").is_file()]
    return [Picture((each.folder / "samples.png").read_bytes(), each.name) for each in shown] or ["No run has any yet."]
