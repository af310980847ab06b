"""Compares a search with the recipe: Optuna over learning rate and penalty weight on the ring of Gaussians.

    python scripts/measure_search.py                        # 12 trials of 200,000 images
    python scripts/measure_search.py --trials 4 --images 20_000

Both players share the learning rate, and R1 and R2 the weight, by interpolation. The best trial was chosen among
many by the number that it is shown with, so it and the recipe also run once more from another seed. All runs take one
thread and end with one evaluation. What follows `--` is passed to every run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

OBJECTIVE = "reverse_kl"
SPACE = {  # start of each schedule; the recipe's are 2e-3 and 1e-2
    "optimizer.generator.lr.start": "tag(log,interval(3e-4,1e-2))",
    "penalty.r1.weight.start": "tag(log,interval(1e-3,3e-1))",
}
SHARED = [
    "optimizer.discriminator.lr.start='${optimizer.generator.lr.start}'",
    "penalty.r2.weight.start='${penalty.r1.weight.start}'",
]


def train(words: list[str]) -> None:
    """Trains by these words; ends with the command's own error where it fails."""
    command = [sys.executable, "-m", "gancli", "train", *words]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.stderr)


def score(run: Path) -> float:
    """Returns the number that a search compares, of the run's last evaluation."""
    return json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])["values"][OBJECTIVE]


def main() -> None:
    arguments, overrides = sys.argv[1:], []
    if "--" in arguments:
        at = arguments.index("--")
        arguments, overrides = arguments[:at], arguments[at + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, help="folder for the run folders; a temporary one where not given")
    options = parser.parse_args(arguments)
    folder = (options.runs or Path(tempfile.mkdtemp(prefix="gancli-"))).resolve()
    words = ["experiment=gaussian_ring", f"train.images={options.images}", f"evaluation.every={options.images}"]
    words += ["device=cpu", "device.threads=1", f"objective={OBJECTIVE}", "diagnostic=none", *overrides]
    search = ["-m", "hydra/sweeper=tpe", f"hydra.sweeper.n_trials={options.trials}", f"hydra.sweep.dir={folder}/search"]
    train([*search, *words, *SHARED, f"seed={options.seed}", *(f"{key}={value}" for key, value in SPACE.items())])
    best = yaml.safe_load((folder / "search" / "optimization_results.yaml").read_text())
    chosen = [f"{key}={best['best_params'][key]}" for key in SPACE]
    scores = [score(folder / "search" / str(number)) for number in range(options.trials)]
    for number, value in enumerate(scores):
        text = (folder / "search" / str(number) / ".hydra" / "overrides.yaml").read_text()
        tuned = [word for word in yaml.safe_load(text) if word.partition("=")[0] in SPACE]
        print(f"trial {number:2}  {OBJECTIVE} {value:.4g}  {' '.join(tuned)}")
    scores_by_seed = {("best trial", options.seed): best["best_value"]}
    for name, seed in [("default", options.seed), ("best trial", options.seed + 1), ("default", options.seed + 1)]:
        run = folder / f"{name.replace(' ', '-')}-{seed}"
        train([*words, *([*SHARED, *chosen] if name == "best trial" else []), f"seed={seed}", f"hydra.run.dir={run}"])
        scores_by_seed[name, seed] = score(run)
    for seed in (options.seed, options.seed + 1):
        tuned, default = scores_by_seed["best trial", seed], scores_by_seed["default", seed]
        print(
            f"seed {seed}: best trial {tuned:.4g}, default {default:.4g}: "
            f"{'the search' if tuned < default else 'the default'} is better"
        )
    print(f"best trial: {' '.join(chosen)}\nruns in {folder}")


if __name__ == "__main__":
    main()
