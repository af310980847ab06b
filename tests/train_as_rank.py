"""Trains in this process, one of several, each of the runs that a file names; tests start it once per rank."""

import json
import sys
from pathlib import Path

from gancli.commands import train
from gancli.config import compose


def main(orders: Path) -> None:
    for name, order in json.loads(orders.read_text()).items():
        settings = compose("train", order["overrides"])
        folder = Path(order["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        try:
            train.run(settings, folder=folder, overrides=order["overrides"])
        except ValueError as error:  # pragma: no cover
            raise AssertionError(name) from error


if __name__ == "__main__":
    main(Path(sys.argv[1]))
