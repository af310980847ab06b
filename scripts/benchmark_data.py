"""Measures whether reading a folder of images keeps up with training, and its memory. Makes folders of random JPEGs.

    python scripts/benchmark_data.py                          # 10,000 and 60,000 images of 64x64
    python scripts/benchmark_data.py --counts 1_000 3_000 --zip

For each count, in a process of its own: images decoded per second, and the peak of the process's anonymous memory
from its start to its end, building the cache included (the cache is mapped, not read into memory); images per second
that batches are read at, from a cache that the system was told to drop from memory and from one in memory; and images
per second that a dcgan step trains on, measured in turn with the reading. The last line extrapolates these rates to
1.3 million images. Linux only.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BATCH = 128
ROUNDS = 5  # of reading and of steps, in turn
MILLION = 1_300_000  # about ImageNet's


def own_memory() -> float:
    """Returns the MiB of anonymous memory now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


class Peak(threading.Thread):
    """Samples the anonymous memory every 10 ms and keeps the largest value, in MiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.mib = 0.0

    def run(self) -> None:
        while True:
            self.mib = max(self.mib, own_memory())
            time.sleep(0.01)


def jpeg(number: int) -> bytes:
    """Returns a JPEG of 64x64: 8x8 random colours, enlarged smoothly."""
    import numpy as np
    from PIL import Image

    small = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC).save(file, "jpeg", quality=90)
    return file.getvalue()


def jpegs(count: int) -> Iterator[tuple[str, bytes]]:
    """Yields names and contents of `count` JPEGs."""
    with ThreadPoolExecutor() as pool:
        for start in range(0, count, 1000):
            numbers = range(start, min(count, start + 1000))
            for number, content in zip(numbers, pool.map(jpeg, numbers), strict=True):
                yield f"{number // 1000:03}/{number:07}.jpg", content


def write_images(count: int, folder: Path, *, zipped: bool) -> Path:
    """Writes `count` JPEGs below `folder`, as a folder or a zip, and returns its path."""
    path = folder / f"{count}{'.zip' if zipped else ''}"
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in jpegs(count):
                archive.writestr(name, content)
        return path
    for name, content in jpegs(count):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def drop_from_memory(cache: Path) -> None:
    """Tells the system to drop the cache from its memory; no process may have the file mapped."""
    gc.collect()
    for file in cache.glob("*/images.u8"):
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(path: Path, cache: Path, threads: int) -> dict[str, float]:
    """Returns all that is measured for one folder; to be called in a process of its own."""
    peak = Peak()
    peak.start()
    from gancli.commands import train
    from gancli.config import compose
    from gancli.datasets.folder import Folder
    from gancli.training.run_folder import RunFolder

    before = own_memory()
    began = time.monotonic()
    count = len(Folder(path=str(path), cache=str(cache)).images)
    decoded = count / (time.monotonic() - began)
    built = peak.mib - before
    drop_from_memory(cache)
    words = ["dataset=folder", f"dataset.path={path}", f"dataset.cache={cache}", "dataset.resolution=64"]
    words += ["device=cpu", f"device.threads={threads}", "evaluation.every=null", f"train.batch_size={BATCH}"]
    trainer = train.assemble(compose("train", words), folder=RunFolder(cache))
    data, step = trainer.dataset, 0
    data.resident_bytes = 0  # as if it were too large for memory

    def read_rate(batches: int) -> float:
        nonlocal step
        began = time.monotonic()
        for _ in range(batches):
            data.batch(step, size=BATCH, seed=0)
            step += 1
        return batches * BATCH / (time.monotonic() - began)

    def step_rate(steps: int) -> float:
        began = time.monotonic()
        for _ in range(steps):
            trainer.train_step()
        return steps * BATCH / (time.monotonic() - began)

    epoch = max(1, len(data) // BATCH)
    cold = read_rate(min(300, epoch // 2))  # each image for the first time
    read_rate(epoch)
    step_rate(3)
    rounds = sorted((read_rate(300) / step_rate(5), number) for number in range(ROUNDS))
    return {
        "images": count,
        "decoded": decoded,
        "built": built,
        "peak": peak.mib,
        "cold": cold,
        "warm": read_rate(300),
        "trained": step_rate(5),
        "ratio": rounds[ROUNDS // 2][0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", nargs="+", type=int, default=[10_000, 60_000])
    parser.add_argument("--zip", action="store_true", help="zips instead of folders")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads of the training step")
    parser.add_argument("--measure", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure, options.threads)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for count in options.counts:
            path, cache = write_images(count, Path(folder), zipped=options.zip), Path(folder) / f"cache-{count}"
            command = [sys.executable, __file__, "--threads", str(options.threads), "--measure", str(path), str(cache)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            result = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{path.name}: {result['images']:,} images, {result['decoded']:,.0f} decoded/s; own memory "
                f"{result['peak']:,.0f} MiB at its peak, {result['built']:,.0f} of them to build the cache; "
                f"read at {result['cold']:,.0f} images/s from disk, {result['warm']:,.0f} from memory; a step trains "
                f"on {result['trained']:,.0f}: read/trained {result['cold'] / result['trained']:.1f} from disk and "
                f"{result['ratio']:.1f} from memory",
                flush=True,
            )
    size, minutes = MILLION * 3 * 64 * 64 / 1e9, MILLION / result["decoded"] / 60
    print(
        f"{MILLION:,} images of 64x64: a cache of {size:.1f} GB, {minutes:.0f} minutes to decode, then read at "
        f"{result['cold']:,.0f} images/s, an epoch in {MILLION / result['cold'] / 60:.1f} minutes at that rate"
    )


if __name__ == "__main__":
    main()
