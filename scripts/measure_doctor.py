"""Compares the time that `gancli doctor` predicts for a run with the time that the run takes.

    python scripts/measure_doctor.py                        # digits, about three minutes
    python scripts/measure_doctor.py experiment=gaussian_ring train.images=800_000

Exits with 1 where the prediction is more than 15 % off. Both are whole command lines, from start to end.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time

WORDS = ["train.images=600_000", "device.threads=1"]
TOLERANCE = 0.15


def predicted(words: list[str]) -> float:
    """Returns the seconds that doctor's line on the length predicts."""
    command = [sys.executable, "-m", "gancli", "doctor", *words]
    output = subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True).stderr
    print(output, end="")
    days, hours, minutes, seconds = re.search(r"length .*?(?:(\d+) days?, )?(\d+):(\d\d):(\d\d)", output).groups()
    return 86_400 * int(days or 0) + 3_600 * int(hours) + 60 * int(minutes) + int(seconds)


def measured(words: list[str]) -> float:
    """Returns the seconds of the run itself, from command line to end."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "gancli", "train", *words, f"hydra.run.dir={folder}/run"]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        return time.monotonic() - began


def main() -> None:
    if {"-h", "--help"} & set(sys.argv):
        print(__doc__)
        return
    words = sys.argv[1:] or WORDS
    prediction, seconds = predicted(words), measured(words)
    print(f"doctor predicted {prediction:.0f} s, the run took {seconds:.0f} s: {prediction / seconds - 1:+.1%}")
    sys.exit(abs(prediction / seconds - 1) > TOLERANCE)


if __name__ == "__main__":
    main()
