"""Does a folder of images feed the step? Reads batches from the cache on disk, against training steps on them.

    python scripts/benchmark_data.py photos10k.zip photos60k.zip --resolution 32

For each folder or zip, in a process of its own: images per second read in a training run's order, images per second
that a dcgan step takes, their ratio, and the peak of the memory that is the process's own (the cache is mapped, not
read into it). Linux only.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

BATCH = 128
ROUNDS = 5


def own_memory() -> float:
    """MiB of anonymous memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def measure(path: str, resolution: int, threads: int) -> None:
    import tempfile

    from gancli import train
    from gancli.theory import compose

    words = ["dataset=folder", f"dataset.path={path}", f"dataset.resolution={resolution}", f"device.threads={threads}"]
    words += ["device=cpu", "evaluation.every=null", f"train.batch_size={BATCH}"]
    with tempfile.TemporaryDirectory() as folder:
        trainer = train.assemble(compose("train", words), folder=Path(folder))
        trainer.dataset.resident_bytes = 0  # as if it were too large for memory
        step, peak, ratios = 0, own_memory(), []
        for _ in range(3):
            trainer.train_step()
        for _ in range(ROUNDS):
            began = time.monotonic()
            for _ in range(300):
                trainer.dataset.batch(step, size=BATCH, seed=0)
                step += 1
            read = 300 * BATCH / (time.monotonic() - began)
            began = time.monotonic()
            for _ in range(10):
                trainer.train_step()
            taken = 10 * BATCH / (time.monotonic() - began)
            ratios.append((read / taken, read, taken))
            peak = max(peak, own_memory())
    ratio, read, taken = sorted(ratios)[ROUNDS // 2]
    print(
        f"{Path(path).name}: {len(trainer.dataset):,} images, read {read:,.0f} images/s, a step takes {taken:,.0f}, "
        f"ratio {ratio:.1f}, own memory {peak:,.0f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    if len(options.paths) == 1:
        measure(options.paths[0], options.resolution, options.threads)
        return
    for path in options.paths:
        words = [path, "--resolution", str(options.resolution), "--threads", str(options.threads)]
        subprocess.run([sys.executable, __file__, *words], check=True)


if __name__ == "__main__":
    main()
