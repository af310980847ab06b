#!/usr/bin/env python3
"""Trains experiments with several seeds, evaluates each run, and writes the README's table from what was measured.

    scripts/measure_experiments.py gaussian_ring gaussian_grid
    scripts/measure_experiments.py mnist --seeds 0 1 2 -- dataset.root=data update=alternating train.minutes=5
    scripts/measure_experiments.py --evaluate outputs/a outputs/b
    scripts/measure_experiments.py --curve outputs/a
    scripts/measure_experiments.py --write

What follows `--` goes to `gancli train` and is part of a row's name. Results are kept in docs/experiments.json, a
record per run; `--write` only puts the table into README.md, `--evaluate` records runs that
were trained by hand with experiment=… and seed=…, `--curve` draws FID, precision and recall of all the checkpoints of
one into docs/. Runs on few images (dataset.limit) are measured against
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

from gancli.reporting.image_grids import png
from gancli.reporting.plots import BLUE, RED, drawn, figure

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "experiments.json"
README = ROOT / "README.md"
OUTSIDE = (  # what changes nothing in a run's samples
    "dataset.root=",
    "dataset.path=",
    "dataset.download=",
    "dataset.cache=",
    "device.",
    "checkpoint.",
    "log.",
    "evaluation.",
)
SHOWN = {  # number -> its heading, in order
    "modes": "modes",
    "high_quality": "high quality",
    "reverse_kl": "reverse KL",
    "fid": "FID",
    "precision": "precision",
    "recall": "recall",
    "closer_than_holdout": "copies",
    "augmentation": "augmentation",
}


def trained(experiment: str, seed: int, overrides: list[str], run: Path) -> Path:
    """The run folder of one training."""
    words = [f"experiment={experiment}", f"seed={seed}", f"hydra.run.dir={run}", *overrides]
    subprocess.run([sys.executable, "-m", "gancli", "train", *words], check=True)
    return run


def about(run: Path) -> tuple[dict, dict[str, str]]:
    """The last start of a run as run.json has it, and what was typed at any."""
    starts = json.loads((run / "run.json").read_text())["starts"]
    typed = dict(word.lstrip("+").split("=", 1) for start in starts for word in start["overrides"])
    return starts[-1], {key: value for key, value in typed.items() if key != "resume"}


def device(run: Path) -> str:
    """What the run says of where it computed."""
    lines = [line for line in (run / "train.log").read_text().splitlines() if "device: " in line]
    return lines[-1].partition("device: ")[2]


def measured(run: Path) -> dict:
    """Evaluates the last checkpoint of a run; everything that a table or a doubter may want to know."""
    start, typed = about(run)
    experiment, seed = typed.pop("experiment"), int(typed.pop("seed"))
    typed.pop("hydra.run.dir", None)
    samples = 26_000 if experiment.startswith("stacked_mnist") else 10_000  # PacGAN's number
    reference = "holdout" if "dataset.limit" in typed else "train"
    words = [f"run={run}", f"count={samples}", f"reference={reference}"]
    subprocess.run([sys.executable, "-m", "gancli", "evaluate", *words], check=True)
    row = json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])
    if "augment=ada" in start["overrides"]:  # where its steered strength has ended
        row["values"]["augmentation"] = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])[
            "augment/strength"
        ]
    return {
        "experiment": experiment,
        "overrides": [f"{key}={value}" for key, value in typed.items()],
        "seed": seed,
        "machine": f"{os.cpu_count()} cores {platform.machine()}, {device(run)}",
        "git_commit": start["git_commit"],
        "torch": start["versions"]["torch"],
        "evaluation": row,
    }


def curve(run: Path) -> Path:
    """Draws how good the samples of each checkpoint are over the minutes of training; returns the picture."""
    words = [f"run={run}", "checkpoint=all", "count=10_000", "metric=[fid,precision_recall]"]
    subprocess.run([sys.executable, "-m", "gancli", "evaluate", *words], check=True)
    count = len(list((run / "checkpoints").glob("images-*.pt")))
    rows = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()[-count:]]
    minutes = [row["seconds"] / 60 for row in rows]
    made, (distance, shares) = figure(2)
    distance.plot(minutes, [row["values"]["fid"] for row in rows], "o-", color=BLUE)
    distance.set(title="FID, in the features of a classifier", xlabel="minutes", yscale="log")
    for name, color in {"precision": BLUE, "recall": RED}.items():
        shares.plot(minutes, [row["values"][name] for row in rows], "o-", color=color, label=name)
    shares.set(title="precision and recall", xlabel="minutes", ylim=(0, 1))
    shares.legend(frameon=False)
    file = RESULTS.parent / f"curve-{about(run)[1]['experiment']}.png"
    file.write_bytes(png(drawn(made)))
    return file


def keep(record: dict) -> None:
    """Puts a record in the place of the one of the same recipe and seed."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    others = [old for old in known if (recipe(old), old["seed"]) != (recipe(record), record["seed"])]
    records = sorted([*others, record], key=lambda record: (recipe(record), record["seed"]))
    RESULTS.write_text(json.dumps(records, indent=1) + "\n")


def recipe(record: dict) -> str:
    """A row's name: what was trained, without the place of data and results."""
    return " ".join([record["experiment"], *sorted(o for o in record["overrides"] if not o.startswith(OUTSIDE))])


def tables(records: list[dict]) -> str:
    """One line for each recipe: mean and, over several seeds, standard deviation of every number."""
    groups = defaultdict(list)
    for record in records:
        groups[recipe(record)].append(record)
    names = [name for name in SHOWN if any(name in record["evaluation"]["values"] for record in records)]
    head = ["experiment", "seeds", "images", "minutes", *(SHOWN[name] for name in names)]
    lines = [head, ["---"] * len(head)]
    for name, group in groups.items():
        rows = [record["evaluation"] for record in group]
        images = statistics.mean(row["images"] for row in rows)
        minutes = statistics.mean(row["seconds"] for row in rows) / 60
        cells = [f"`{name}`", str(len(group)), f"{images / 1e6:.2f} M", f"{minutes:.1f}"]
        lines.append([*cells, *(spread([row["values"][n] for row in rows if n in row["values"]]) for n in names)])
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
    parser.add_argument("--evaluate", nargs="+", type=Path, default=[], help="run folders that were trained before")
    parser.add_argument("--curve", type=Path, help="run folder that kept many checkpoints: checkpoint.keep=100")
    parser.add_argument("--write", action="store_true", help="only put the tables into README.md")
    options = parser.parse_args(arguments)
    folder = (options.runs or Path(tempfile.mkdtemp(prefix="gancli-"))).resolve()
    for run in options.evaluate:
        keep(measured(run))
    if options.curve:
        print(curve(options.curve))
    for experiment in options.experiments:
        for seed in options.seeds:
            keep(measured(trained(experiment, seed, overrides, folder / f"{experiment}-{seed}")))
    if RESULTS.exists():
        print(tables(json.loads(RESULTS.read_text())))
        if options.write:
            write(json.loads(RESULTS.read_text()))


if __name__ == "__main__":
    main()
