"""What tests of several processes have each of them do."""

import atexit
import json
import os
from pathlib import Path

from forked import command_line

from gancli.cli import run
from gancli.commands import doctor, train
from gancli.config import compose


def train_all(orders: Path) -> None:
    """Trains each of the runs that a file names."""
    for name, order in json.loads(orders.read_text()).items():
        settings = compose("train", order["overrides"])
        folder = Path(order["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        try:
            train.run(settings, folder=folder, overrides=order["overrides"])
        except ValueError as error:  # pragma: no cover
            raise AssertionError(name) from error


def train_under_torchrun(numbers: Path, words: list[str]) -> None:
    """`gancli train`, whose process leaves its number in a file called by its rank."""
    (numbers / os.environ["RANK"]).write_text(str(os.getpid()))
    assert run(["train", *words]) == 0
    atexit._run_exitfuncs()  # torchrun ends the process of a function without them


def measure_shortly(*words: str) -> None:
    doctor.TIMED_SECONDS = 0.1
    command_line("doctor", *words)
