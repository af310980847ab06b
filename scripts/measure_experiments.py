#!/usr/bin/env python3
"""Trains experiments with several seeds, evaluates each run, and writes the table of docs/recipes.md.

    scripts/measure_experiments.py gaussian_ring gaussian_grid
    scripts/measure_experiments.py mnist --seeds 0 1 2 -- dataset.root=data update=alternating train.minutes=5
    scripts/measure_experiments.py --evaluate outputs/a outputs/b
    scripts/measure_experiments.py --curve outputs/a
    scripts/measure_experiments.py --write

What follows `--` is passed to `gancli train` and is part of a row's name. Results are kept in docs/experiments.json,
one record per run. `--write` only puts the table into docs/recipes.md. `--evaluate` records runs that were trained by
hand with experiment=… and seed=…. `--curve` draws the Fréchet distance, precision and recall of all the checkpoints of
one run into docs/. Images are compared in the features of a classifier, so the data needs labels (for a folder:
dataset.labels=true). Runs on few images (dataset.limit) are measured against the held-out part, so that copies of
those few images gain nothing; all others against the training part.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from gancli.reporting.image_grids import encode_png
from gancli.reporting.plots import BLUE, RED, figure, render
from gancli.training.run_folder import RunFolder

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "experiments.json"
RECIPES = ROOT / "docs" / "recipes.md"
FEATURES = "classifier"
WITHOUT_EFFECT = (  # settings that change nothing in a run's samples
    "dataset.root=",
    "dataset.path=",
    "dataset.download=",
    "dataset.cache=",
    "device.",
    "checkpoint.",
    "log.",
    "evaluation.",
)
COLUMNS = {  # number -> its heading, in order
    "modes": "modes",
    "high_quality": "high quality",
    "reverse_kl": "reverse KL",
    f"fd_{FEATURES}": f"FD ({FEATURES})",
    "precision": "precision",
    "recall": "recall",
    "closer_than_holdout": "copies",
    "augmentation": "augmentation",
}
DAGGER = "†"
NOTE = f"""{DAGGER} At least one run of this row was trained from a checkout with uncommitted changes, or from an
unknown commit, so the recorded commit alone does not reproduce it."""


def train(experiment: str, seed: int, overrides: list[str], run: Path) -> Path:
    """Trains one run and returns its folder."""
    words = [f"experiment={experiment}", f"seed={seed}", f"hydra.run.dir={run}", *overrides]
    subprocess.run([sys.executable, "-m", "gancli", "train", *words], check=True)
    return run


def evaluate(run: Path, *words: str) -> list[dict]:
    """Evaluates a run and returns all the rows of `gancli evaluate` in its folder, oldest first."""
    command = [sys.executable, "-m", "gancli", "evaluate", f"run={run}", f"metric/features={FEATURES}", *words]
    subprocess.run(command, check=True)
    return RunFolder(run).read_evaluations(by="evaluate")


def last_start(run: Path) -> tuple[dict, dict[str, str]]:
    """Returns the last start of a run as run.json has it, and the overrides of all its starts."""
    starts = RunFolder(run).starts()
    overrides = dict(word.lstrip("+").split("=", 1) for start in starts for word in start["overrides"])
    return starts[-1], {key: value for key, value in overrides.items() if key != "resume"}


def device(run: Path) -> str:
    """Returns what the run's log says of its device."""
    lines = [line for line in RunFolder(run).log.read_text().splitlines() if "device: " in line]
    return lines[-1].partition("device: ")[2]


def measure(run: Path) -> dict:
    """Evaluates the last checkpoint of a run and returns its record, with all that is needed to repeat it."""
    start, overrides = last_start(run)
    experiment, seed = overrides.pop("experiment"), int(overrides.pop("seed"))
    overrides.pop("hydra.run.dir", None)
    samples = 26_000 if experiment.startswith("stacked_mnist") else 10_000  # 26,000 is PacGAN's number
    reference = "holdout" if "dataset.limit" in overrides else "train"
    row = evaluate(run, f"count={samples}", f"reference={reference}")[-1]
    if overrides.get("augment") == "ada":  # where its adaptive strength has ended
        row["values"]["augmentation"] = RunFolder(run).read_metrics()[-1]["augment/strength"]
    return {
        "experiment": experiment,
        "overrides": [f"{key}={value}" for key, value in overrides.items()],
        "seed": seed,
        "machine": f"{os.cpu_count()} cores {platform.machine()}, {device(run)}",
        "git_commit": start["git_commit"],
        "torch": start["versions"]["torch"],
        "evaluation": row,
    }


def curve(run: Path) -> Path:
    """Draws the quality of the samples of each checkpoint over the minutes of training; returns the image file."""
    count = len(list(RunFolder(run).checkpoints.glob("images-*.pt")))
    rows = evaluate(run, "checkpoint=all", "count=10_000", "metric=[fid,precision_recall]")[-count:]
    minutes = [row["seconds"] / 60 for row in rows]
    plot, (distance, shares) = figure(2)
    distance.plot(minutes, [row["values"][f"fd_{FEATURES}"] for row in rows], "o-", color=BLUE)
    distance.set(title=f"Fréchet distance in the features of a {FEATURES}", xlabel="minutes", yscale="log")
    for name, color in {"precision": BLUE, "recall": RED}.items():
        shares.plot(minutes, [row["values"][name] for row in rows], "o-", color=color, label=name)
    shares.set(title="precision and recall", xlabel="minutes", ylim=(0, 1))
    shares.legend(frameon=False)
    file = RESULTS.parent / f"curve-{last_start(run)[1]['experiment']}.png"
    file.write_bytes(encode_png(render(plot)))
    return file


def keep(record: dict) -> None:
    """Stores a record in docs/experiments.json, in place of the one of the same recipe and seed."""
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    others = [old for old in stored if (recipe(old), old["seed"]) != (recipe(record), record["seed"])]
    records = sorted([*others, record], key=lambda record: (recipe(record), record["seed"]))
    RESULTS.write_text(json.dumps(records, indent=1) + "\n")


def recipe(record: dict) -> str:
    """Returns the name of a row: the experiment and the overrides that change its samples."""
    overrides = [word for word in record["overrides"] if not word.startswith(WITHOUT_EFFECT)]
    return " ".join([record["experiment"], *sorted(overrides)])


def from_a_dirty_tree(record: dict) -> bool:
    """Whether the code that trained the run is not known from the recorded commit."""
    commit = record.get("git_commit")
    return commit is None or commit.endswith("+changes")


def table(records: list[dict]) -> str:
    """Returns one line for each recipe: mean and, over several seeds, standard deviation of every number."""
    groups = defaultdict(list)
    for record in records:
        groups[recipe(record)].append(record)
    names = [name for name in COLUMNS if any(name in record["evaluation"]["values"] for record in records)]
    head = ["experiment", "seeds", "images", "minutes", *(COLUMNS[name] for name in names)]
    lines = [head, ["---"] * len(head)]
    for name, group in groups.items():
        rows = [record["evaluation"] for record in group]
        images = statistics.mean(row["images"] for row in rows)
        minutes = statistics.mean(row["seconds"] for row in rows) / 60
        mark = f" {DAGGER}" if any(map(from_a_dirty_tree, group)) else ""
        cells = [f"`{name}`{mark}", str(len(group)), f"{images / 1e6:.2f} M", f"{minutes:.1f}"]
        lines.append([*cells, *(spread([row["values"][n] for row in rows if n in row["values"]]) for n in names)])
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{text}\n\n{NOTE}" if any(map(from_a_dirty_tree, records)) else text


def spread(values: list[float]) -> str:
    """Returns "0.973 ± 0.004"; an empty text where nothing was measured."""
    if not values:
        return ""
    text = f"{statistics.mean(values):.4g}"
    return text if len(values) == 1 else f"{text} ± {statistics.stdev(values):.2g}"


def write(records: list[dict]) -> None:
    """Puts the table between its two marks in docs/recipes.md."""
    before, rest = RECIPES.read_text().split("<!-- experiments -->\n")
    _, after = rest.split("<!-- end of experiments -->\n")
    parts = [before, "<!-- experiments -->\n", table(records), "\n", "<!-- end of experiments -->\n", after]
    RECIPES.write_text("".join(parts))


def main() -> None:
    arguments, overrides = sys.argv[1:], []
    if "--" in arguments:
        at = arguments.index("--")
        arguments, overrides = arguments[:at], arguments[at + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, help="folder for the run folders; a temporary one where not given")
    parser.add_argument("--evaluate", nargs="+", type=Path, default=[], help="run folders that were trained before")
    parser.add_argument("--curve", type=Path, help="run folder that kept many checkpoints: checkpoint.keep=100")
    parser.add_argument("--write", action="store_true", help="put the table into docs/recipes.md")
    options = parser.parse_args(arguments)
    folder = (options.runs or Path(tempfile.mkdtemp(prefix="gancli-"))).resolve()
    for run in options.evaluate:
        keep(measure(run))
    if options.curve:
        print(curve(options.curve))
    for experiment in options.experiments:
        for seed in options.seeds:
            keep(measure(train(experiment, seed, overrides, folder / f"{experiment}-{seed}")))
    if RESULTS.exists():
        print(table(json.loads(RESULTS.read_text())))
        if options.write:
            write(json.loads(RESULTS.read_text()))


if __name__ == "__main__":
    main()
