"""Does a folder of images feed the step, and does memory stay flat? Makes folders of smooth random JPEGs by itself.

    python scripts/benchmark_data.py                          # 10,000 and 60,000 pictures of 64x64
    python scripts/benchmark_data.py --counts 1_000 3_000 --zip

For each count, in a process of its own: pictures decoded per second, and the most memory of the process's own from
its start to its end, the building of the cache included (the cache is mapped, not read into it); images per second
that batches are fed at, from a cache that the system was told to forget and from one in memory; and images per second
that a dcgan step takes, in turn with the reading. The last line plans a million images by these rates. Linux only.
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
    """MiB of anonymous memory now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


class Peak(threading.Thread):
    """Looks at the memory all the time."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0.0

    def run(self) -> None:
        while True:
            self.most = max(self.most, own_memory())
            time.sleep(0.01)


def picture(number: int) -> bytes:
    """A JPEG of 64x64: 8x8 random colours, made smooth."""
    import numpy as np
    from PIL import Image

    small = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC).save(file, "jpeg", quality=90)
    return file.getvalue()


def pictures(count: int) -> Iterator[tuple[str, bytes]]:
    with ThreadPoolExecutor() as pool:
        for start in range(0, count, 1000):
            numbers = range(start, min(count, start + 1000))
            for number, content in zip(numbers, pool.map(picture, numbers), strict=True):
                yield f"{number // 1000:03}/{number:07}.jpg", content


def made(count: int, folder: Path, *, zipped: bool) -> Path:
    """A folder or a zip of so many."""
    path = folder / f"{count}{'.zip' if zipped else ''}"
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in pictures(count):
                archive.writestr(name, content)
        return path
    for name, content in pictures(count):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def forgotten(cache: Path) -> None:
    """The system drops what it holds of the cache; nothing may have it mapped."""
    gc.collect()
    for file in cache.glob("*/images.u8"):
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(path: Path, cache: Path, threads: int) -> dict[str, float]:
    """In a process of its own."""
    peak = Peak()
    peak.start()
    from gancli.commands import train
    from gancli.commands.theory import compose
    from gancli.datasets.folder import Folder

    before = own_memory()
    began = time.monotonic()
    count = len(Folder(path=str(path), cache=str(cache)).images)
    decoded = count / (time.monotonic() - began)
    built = peak.most - before
    forgotten(cache)
    words = ["dataset=folder", f"dataset.path={path}", f"dataset.cache={cache}", "dataset.resolution=64"]
    words += ["device=cpu", f"device.threads={threads}", "evaluation.every=null", f"train.batch_size={BATCH}"]
    trainer = train.assemble(compose("train", words), folder=cache)
    data, step = trainer.dataset, 0
    data.resident_bytes = 0  # as if it were too large for memory

    def fed(batches: int) -> float:
        nonlocal step
        began = time.monotonic()
        for _ in range(batches):
            data.batch(step, size=BATCH, seed=0)
            step += 1
        return batches * BATCH / (time.monotonic() - began)

    def taken(steps: int) -> float:
        began = time.monotonic()
        for _ in range(steps):
            trainer.train_step()
        return steps * BATCH / (time.monotonic() - began)

    epoch = max(1, len(data) // BATCH)
    cold = fed(min(300, epoch // 2))  # each image for the first time
    fed(epoch)
    taken(3)
    rounds = sorted((fed(300) / taken(5), number) for number in range(ROUNDS))
    return {
        "images": count,
        "decoded": decoded,
        "built": built,
        "peak": peak.most,
        "cold": cold,
        "warm": fed(300),
        "taken": taken(5),
        "ratio": rounds[ROUNDS // 2][0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", nargs="+", type=int, default=[10_000, 60_000])
    parser.add_argument("--zip", action="store_true", help="zips in place of folders")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the step")
    parser.add_argument("--measure", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure, options.threads)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for count in options.counts:
            path, cache = made(count, Path(folder), zipped=options.zip), Path(folder) / f"cache-{count}"
            command = [sys.executable, __file__, "--threads", str(options.threads), "--measure", str(path), str(cache)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{path.name}: {found['images']:,} images, {found['decoded']:,.0f} decoded/s; own memory "
                f"{found['peak']:,.0f} MiB at its peak, {found['built']:,.0f} of them to build the cache; "
                f"fed {found['cold']:,.0f} images/s from disk, {found['warm']:,.0f} from memory; a step takes "
                f"{found['taken']:,.0f}: fed/taken {found['cold'] / found['taken']:.1f} and {found['ratio']:.1f}",
                flush=True,
            )
    size, minutes = MILLION * 3 * 64 * 64 / 1e9, MILLION / found["decoded"] / 60
    print(
        f"{MILLION:,} images of 64x64: a cache of {size:.1f} GB, {minutes:.0f} minutes to decode, then fed at "
        f"{found['cold']:,.0f} images/s, an epoch in {MILLION / found['cold'] / 60:.1f} minutes where the step keeps up"
    )


if __name__ == "__main__":
    main()
