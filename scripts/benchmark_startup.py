"""Times the start of commands, each in a fresh process, interleaved.

Compares `gancli train` on digits up to the end of its first step with a script that imports torch and builds one
Adam, which is torch's own share. Prints the median and the range of each, and of the difference within a round.

    python scripts/benchmark_startup.py
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time

# Both end without teardown.
ADAM = "import os, torch; torch.optim.Adam(torch.nn.Linear(2, 2).parameters()); os._exit(0)"
FIRST_STEP = """
import os, tempfile
from gancli.training import trainer
from gancli import cli
train_step = trainer.Trainer.train_step
def first_step(self):
    train_step(self)
    os._exit(0)
trainer.Trainer.train_step = first_step
cli.run(["train", "hydra.run.dir=" + tempfile.mkdtemp()])
os._exit(1)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    commands = {
        "gancli --help": [sys.executable, "-m", "gancli", "--help"],
        "gancli train --help": [sys.executable, "-m", "gancli", "train", "--help"],
        "torch and one Adam": [sys.executable, "-c", ADAM],
        "gancli train to the first step": [sys.executable, "-c", FIRST_STEP],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    folder = tempfile.mkdtemp()
    for turn in range(options.rounds + 1):
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            if turn:  # the first round fills the disk's cache
                seconds[name].append(time.perf_counter() - began)
    *_, torch_alone, first_step = seconds.values()
    seconds["difference of the last two"] = [b - a for a, b in zip(torch_alone, first_step, strict=True)]
    for name, values in seconds.items():
        print(f"{name:32}{statistics.median(values):6.2f} s  [{min(values):.2f} .. {max(values):.2f}]")


if __name__ == "__main__":
    main()
