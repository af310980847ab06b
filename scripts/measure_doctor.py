"""Does `gancli doctor` tell the time of a run? Asks it, then trains by the same words, and compares.

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
MOST = 0.15


def predicted(words: list[str]) -> float:
    """Seconds, by doctor's line on the length."""
    command = [sys.executable, "-m", "gancli", "doctor", *words]
    said = subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True).stderr
    print(said, end="")
    days, hours, minutes, seconds = re.search(r"length .*?(?:(\d+) days?, )?(\d+):(\d\d):(\d\d)", said).groups()
    return 86_400 * int(days or 0) + 3_600 * int(hours) + 60 * int(minutes) + int(seconds)


def taken(words: list[str]) -> float:
    """Seconds of the run itself."""
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
    said, took = predicted(words), taken(words)
    print(f"doctor said {said:.0f} s, the run took {took:.0f} s: {said / took - 1:+.1%}")
    sys.exit(abs(said / took - 1) > MOST)


if __name__ == "__main__":
    main()
