"""Kills commands with SIGKILL at random moments, repeats them, and looks at what is left.

A training, also one that builds its cache of decoded images and one on two processes of torchrun, is started again by
the same command until it ends; its end must be that of an undisturbed run, tensor by tensor and bit by bit. `evaluate`
and `sample` are started again until one ends. Every line of JSON must be whole, every picture readable, and no
temporary file may stay anywhere.

    python scripts/kill_and_resume.py --kills 20        # of each of the five; half an hour on two cores
    python scripts/kill_and_resume.py --kills 5 sample  # of one
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gancli.training.checkpoint import Checkpoints

GANCLI = [sys.executable, "-m", "gancli"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29517", "-m", "gancli"]
LENGTH = ["train.images=30_000", "checkpoint.every=1_000", "evaluation.every=10_000", "evaluation.count=200"]
THREAD = "device.threads=1"
COMMANDS = [
    "cache",
    "processes",
    "train",
    "evaluate",
    "sample",
]  # the first trains and decodes, the second has two ranks


class Killer:
    """Starts commands in `work` and kills them at random moments."""

    def __init__(self, work: Path, seed: int) -> None:
        self.work, self.random = work, random.Random(seed)
        self.log = open(work / "log.txt", "a")  # noqa: SIM115  # open as long as this process

    def complete(self, command: list[str]) -> float:
        """Runs the command to its end and returns the seconds it took."""
        began = time.monotonic()
        subprocess.run(command, check=True, cwd=self.work, stdout=self.log, stderr=self.log)
        return time.monotonic() - began

    def kill(self, command: list[str], seconds: float) -> bool:
        """Kills the command, or one of its processes, at a moment of its first `seconds`; False where it had ended."""
        process = subprocess.Popen(command, cwd=self.work, stdout=self.log, stderr=self.log, start_new_session=True)
        try:
            process.wait(self.random.uniform(0.2 * seconds, seconds))
        except subprocess.TimeoutExpired:
            children = _children(process.pid)
            one = self.random.choice(children) if children and self.random.random() < 0.5 else None
            # Where one rank is lost, torchrun ends the other; else all are killed, as by the end of a machine.
            for pid in [process.pid, *children] if one is None else [one]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
            return True
        if process.returncode:
            sys.exit(f"{' '.join(command)}: status {process.returncode}; see {self.work / 'log.txt'}")
        return False


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def kill_training(
    killer: Killer, kills: int, program: list[str], settings: list[str], before: Callable[[], object] = lambda: None
) -> list[str]:
    """Returns what is wrong with a training that was killed so often. before: called before each start."""
    command = [*program, "train", *LENGTH, THREAD, *settings, "resume=auto"]
    undisturbed, killed = killer.work / "undisturbed", killer.work / "killed"
    for folder in (undisturbed, killed):
        shutil.rmtree(folder, ignore_errors=True)
    whole = killer.complete([*command, f"hydra.run.dir={undisturbed}"])
    training = Checkpoints(undisturbed / "checkpoints").pick("last")[1]["seconds"]
    done = 0
    while done < kills:
        before()
        if not killer.kill([*command, f"hydra.run.dir={killed}"], whole - 0.8 * training):
            shutil.rmtree(killed)  # it reached its end before all the kills were due
            continue
        done += 1
    killer.complete([*command, f"hydra.run.dir={killed}"])
    return compare(undisturbed, killed) + broken_files(killer.work)


def train_undisturbed(killer: Killer) -> None:
    """Trains the run that is evaluated and sampled, if there is none yet."""
    if not (killer.work / "undisturbed").exists():
        killer.complete([*GANCLI, "train", *LENGTH, THREAD, "hydra.run.dir=undisturbed"])


def kill_evaluation(killer: Killer, kills: int) -> list[str]:
    """Returns what is wrong with the evaluations of a run that were killed so often."""
    train_undisturbed(killer)
    command = [*GANCLI, "evaluate", "run=undisturbed", THREAD, "metric=[fid,precision_recall]", "count=500"]
    seconds = killer.complete(command)
    rows = len((killer.work / "undisturbed" / "evaluations.jsonl").read_text().splitlines())
    ended = kills - sum(killer.kill(command, seconds) for _ in range(kills))
    killer.complete(command)
    now = len((killer.work / "undisturbed" / "evaluations.jsonl").read_text().splitlines())
    lost = [] if now >= rows + ended + 1 else [f"{now} rows, expected {rows + ended + 1} or more"]
    return lost + broken_files(killer.work)


def kill_sampling(killer: Killer, kills: int) -> list[str]:
    """Returns what is wrong with a folder of samples that was replaced and killed so often."""
    train_undisturbed(killer)
    found = list[str]()
    command = [*GANCLI, "sample", "run=undisturbed", THREAD, "format=png", "count=400", "out=samples", "overwrite=true"]
    seconds = killer.complete(command)
    for _ in range(kills):
        killer.kill(command, seconds)
        count = len(list((killer.work / "samples").glob("*.png")))
        found += [] if count == 400 else [f"{count} samples of 400"]
    killer.complete(command)
    return found + broken_files(killer.work)


def compare(undisturbed: Path, killed: Path) -> list[str]:
    """Returns the names of the values and tensors in which the last checkpoints of two runs differ."""
    (file, a), (other, b) = (Checkpoints(folder / "checkpoints").pick("last") for folder in (undisturbed, killed))
    if file.name != other.name:
        return [f"{file.name} and {other.name}"]
    values, others = leaves(a), leaves(b)
    assert len(values) > 50
    return [
        name
        for name in values | others
        if not name.endswith("seconds")
        and not (name in values and name in others and _equal(values[name], others[name]))
    ]


def leaves(value: object, name: str = "") -> dict[str, object]:
    """Returns the values and tensors of a nested state by dotted name."""
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in leaves(item, f"{name}.{key}").items()}
    if isinstance(value, (list, tuple)):
        return {k: v for key, item in enumerate(value) for k, v in leaves(item, f"{name}.{key}").items()}
    return {name: value}


def _equal(one: object, other: object) -> bool:
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other  # type: ignore[arg-type]


def broken_files(work: Path) -> list[str]:
    """Returns lines of JSON that are cut short, rows that come twice, pictures that cannot be read, temporary files."""
    found = [f"left behind: {file}" for file in work.rglob("*") if file.name.endswith(".tmp")]
    for file in work.rglob("*.jsonl"):
        try:
            rows = [json.loads(line) for line in file.read_text().splitlines()]
        except ValueError as error:
            found.append(f"{file}: {error}")
            continue
        images = [row["images"] for row in rows if row.get("by", "train") == "train"]
        found += [] if images == sorted(set(images)) else [f"{file}: rows of {images}"]
    for file in work.rglob("*.png"):
        with Image.open(file) as image:
            image.load()
    return found


def write_pictures(folder: Path, count: int) -> None:
    """Writes pictures of noise, which take about a second to decode."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(folder / f"{number}.png")


def main() -> None:
    """Kills, compares, prints a line for each command, and ends with status 1 where anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("commands", nargs="*", choices=COMMANDS, default=COMMANDS, help="all, or some of them")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        killer, cache = Killer(work, options.seed), work / "cache"
        write_pictures(work / "pictures", 400)
        pictures = ["dataset=folder", "dataset.path=pictures", "dataset.resolution=16", f"dataset.cache={cache}"]
        kills, wrong = options.kills, False
        attempts: dict[str, Callable[[], list[str]]] = {
            "cache": lambda: kill_training(
                killer, kills, GANCLI, pictures, lambda: shutil.rmtree(cache, ignore_errors=True)
            ),
            "processes": lambda: kill_training(killer, kills, TORCHRUN, []),
            "train": lambda: kill_training(killer, kills, GANCLI, []),
            "evaluate": lambda: kill_evaluation(killer, kills),
            "sample": lambda: kill_sampling(killer, kills),
        }
        for name in options.commands:
            found = attempts[name]()
            wrong = wrong or bool(found)
            print(f"{name}: {kills} starts killed; wrong: {', '.join(found) or 'nothing'}", flush=True)
    sys.exit(wrong)


if __name__ == "__main__":
    main()
