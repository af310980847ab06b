"""Kills one run with SIGKILL at random moments, resumes it by the same command, and compares its end with an
undisturbed run's, tensor by tensor and bit by bit.

    python scripts/kill_and_resume.py --kills 10
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from gancli.training.checkpoint import Checkpoints


def leaves(value: object, name: str = "") -> dict[str, object]:
    """Returns the values and tensors of a nested state by dotted name."""
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in leaves(item, f"{name}.{key}").items()}
    if isinstance(value, (list, tuple)):
        return {k: v for key, item in enumerate(value) for k, v in leaves(item, f"{name}.{key}").items()}
    return {name: value}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", default=["train.images=100_000", "checkpoint.every=2_000"])
    options = parser.parse_args()
    kill_times = random.Random(options.seed)
    work = Path(tempfile.mkdtemp())
    command = [sys.executable, "-m", "gancli", "train", *options.overrides, "resume=auto"]
    undisturbed, killed = work / "undisturbed", work / "killed"
    began = time.monotonic()
    with open(work / "log.txt", "w") as log:
        subprocess.run([*command, f"hydra.run.dir={undisturbed}"], check=True, stdout=log, stderr=log)
        final, state = Checkpoints(undisturbed / "checkpoints").pick("last")
        training = state["seconds"]
        starting = time.monotonic() - began - training
        kills = 0
        while kills < options.kills:
            process = subprocess.Popen([*command, f"hydra.run.dir={killed}"], stdout=log, stderr=log)
            try:
                process.wait(kill_times.uniform(0.5 * starting, starting + 0.18 * training))
                break  # it reached its end before all the kills were due
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
                files = Checkpoints(killed / "checkpoints").files()
                print(f"kill {kills}: newest checkpoint {files[-1].name if files else 'none yet'}", flush=True)
        subprocess.run([*command, f"hydra.run.dir={killed}"], check=True, stdout=log, stderr=log)
    assert (killed / "checkpoints" / final.name).exists(), "both ended after as many images"
    (_, a), (_, b) = (Checkpoints(folder / "checkpoints").pick("last") for folder in (undisturbed, killed))
    a, b = leaves(a), leaves(b)
    assert a.keys() == b.keys()
    different = [
        name
        for name in a
        if name != ".seconds"
        and not (torch.equal(a[name], b[name]) if torch.is_tensor(a[name]) else a[name] == b[name])
    ]
    print(f"{kills} kills; {len(a) - 1} values and tensors compared; different: {different or 'none'}")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
