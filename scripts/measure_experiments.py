#!/usr/bin/env python3
"""Trains experiments with several seeds, evaluates each run, and writes the README's table from what was measured.

    scripts/measure_experiments.py gaussian_ring gaussian_grid
    scripts/measure_experiments.py mnist --seeds 0 1 2 -- dataset.root=data update=alternating train.minutes=5
    scripts/measure_experiments.py --write

What follows `--` goes to `gancli train` and is part of a row's name. Results are kept in docs/experiments.json, a
record per run; `--write` only puts the table into README.md. Runs on few images (dataset.limit) are measured against
the held-out part, so that copies of those few earn nothing; all others against the training part.
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

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "experiments.json"
README = ROOT / "README.md"
OUTSIDE = ("dataset.root=", "dataset.path=", "dataset.download=", "dataset.cache=", "device.", "checkpoint.", "log.")
SHOWN = {  # number -> its heading, in order
    "modes": "modes",
    "high_quality": "high quality",
    "reverse_kl": "reverse KL",
    "fid": "FID",
    "precision": "precision",
    "recall": "recall",
    "nearer_to_train": "nearer to train",
}


def measure(experiment: str, seed: int, overrides: list[str], folder: Path) -> dict:
    """Trains and evaluates once; everything that a table or a doubter may want to know."""
    run = folder / f"{experiment}-{len(list(folder.iterdir()))}"
    gancli = [sys.executable, "-m", "gancli"]
    train = [*gancli, "train", f"experiment={experiment}", f"seed={seed}", f"hydra.run.dir={run}", *overrides]
    subprocess.run(train, check=True)
    samples = 26_000 if experiment.startswith("stacked_mnist") else 10_000  # PacGAN's number
    reference = "holdout" if any(word.startswith("dataset.limit=") for word in overrides) else "train"
    words = [f"run={run}", f"count={samples}", f"reference={reference}"]
    subprocess.run([*gancli, "evaluate", *words], check=True)
    row = json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])
    starts = json.loads((run / "run.json").read_text())["starts"]
    return {
        "experiment": experiment,
        "overrides": overrides,
        "seed": seed,
        "threads": next((o.partition("=")[2] for o in overrides if o.startswith("device.threads=")), "all"),
        "machine": f"{os.cpu_count()} cores {platform.machine()}",
        "git_commit": starts[-1]["git_commit"],
        "torch": starts[-1]["versions"]["torch"],
        **{key: value for key, value in row.items() if key != "of"},
    }


def recipe(record: dict) -> str:
    """A row's name: what was trained, without the place of data and results."""
    return " ".join([record["experiment"], *(o for o in record["overrides"] if not o.startswith(OUTSIDE))])


def tables(records: list[dict]) -> str:
    """One line for each recipe: mean and, over several seeds, standard deviation of every number."""
    groups = defaultdict(list)
    for record in records:
        groups[recipe(record)].append(record)
    names = [name for name in SHOWN if any(name in record["values"] for record in records)]
    head = ["experiment", "seeds", "images", "minutes", *(SHOWN[name] for name in names)]
    lines = [head, ["---"] * len(head)]
    for name, group in sorted(groups.items()):
        images = statistics.mean(record["images"] for record in group)
        minutes = statistics.mean(record["seconds"] for record in group) / 60
        cells = [f"`{name}`", str(len(group)), f"{images / 1e6:.2f} M", f"{minutes:.1f}"]
        lines.append([*cells, *(spread([r["values"][n] for r in group if n in r["values"]]) for n in names)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(values: list[float]) -> str:
    """ "0.973 ± 0.004"; nothing where nothing was measured."""
    if not values:
        return ""
    text = f"{statistics.mean(values):.4g}"
    return text if len(values) == 1 else f"{text} ± {statistics.stdev(values):.2g}"


def write(records: list[dict]) -> None:
    """Puts the table between its two marks in README.md."""
    before, rest = README.read_text().split("<!-- experiments -->\n")
    _, after = rest.split("<!-- end of experiments -->\n")
    parts = [before, "<!-- experiments -->\n", tables(records), "\n", "<!-- end of experiments -->\n", after]
    README.write_text("".join(parts))


def main() -> None:
    arguments, overrides = sys.argv[1:], []
    if "--" in arguments:
        at = arguments.index("--")
        arguments, overrides = arguments[:at], arguments[at + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, help="folder for the run folders; a temporary one where not given")
    parser.add_argument("--write", action="store_true", help="only put the tables into README.md")
    options = parser.parse_args(arguments)
    folder = options.runs or Path(tempfile.mkdtemp(prefix="gancli-"))
    folder.mkdir(parents=True, exist_ok=True)
    for experiment in options.experiments:
        for seed in options.seeds:
            record = measure(experiment, seed, overrides, folder.resolve())
            records = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
            records = [old for old in records if (recipe(old), old["seed"]) != (recipe(record), record["seed"])]
            RESULTS.write_text(json.dumps([*records, record], indent=1) + "\n")
    if RESULTS.exists():
        print(tables(json.loads(RESULTS.read_text())))
        if options.write:
            write(json.loads(RESULTS.read_text()))


if __name__ == "__main__":
    main()
