"""Measures gancli on one GPU, in one command and at most `--budget` seconds, and writes all it finds to a JSON file.

    python3 scripts/measure_gpu.py                       everything, to docs/gpu.json
    python3 scripts/measure_gpu.py --cifar cifar10.zip   the recipe on these images (a zip of class folders)
    python3 scripts/measure_gpu.py --device cpu --parts steps --budget 30   tries the script out in small

Parts, in this order; the file is written after each, so that a run that is cut off keeps what it has:

tests    the tests that need a GPU
steps    images/s of a step, peak memory and the share of the time in which the GPU computes: gancli by CUDA graphs and
         eager, a plain two-stage loop with torch's own convolutions, and the bare arithmetic of gancli's step; the
         comparisons that matter most come first
recipe   experiment=cifar10 for 100 seconds
losses   of 100 steps by CUDA graphs against those without
resume   a run killed with SIGKILL and resumed against an undisturbed one, bit by bit
ranks    two processes on the one GPU, over gloo, against one process
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark_step import bare, plain, trainer_of
from count_operations import LATENT, NETWORKS, networks, with_torchs_convolutions
from PIL import Image
from torch import Tensor
from torch.autograd import DeviceType

from gancli.game import Penalty
from gancli.penalties import R1, R2
from gancli.training.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent
BATCHES = {"dcgan 64x64": 128, "resnet 32x32": 128, "r3gan 32x32": 256, "r3gan 64x64": 64}
PENALTIES: dict[str, dict[str, Penalty]] = {"none": {}, "r1, r2": {"r1": R1(weight=0.05), "r2": R2(weight=0.05)}}
WAYS = ("gancli, graphs", "plain, torch's convolutions", "gancli", "bare")
MAIN = [("dcgan 64x64", "none"), ("r3gan 32x32", "r1, r2")]  # the cases to measure first, whatever the precision
WIDTHS = ("channels", "max_channels")
# Two processes on one GPU cannot talk over NCCL.
OVER_GLOO = (
    "import sys, torch.distributed as dist; start = dist.init_process_group; "
    "dist.init_process_group = lambda backend, **more: start('gloo', **more); "
    "from gancli.cli import run; sys.exit(run(sys.argv[1:]))"
)
Found = dict[str, Any]


def tests(options: Namespace, seconds: float) -> Found:
    command = [sys.executable, "-m", "pytest", "-p", "no:benchmark", "-p", "no:cacheprovider", "-k", "on_a_gpu"]
    files = [
        "tests/training/test_cuda_graphs.py",
        "tests/networks/test_convolution.py",
        "tests/training/test_guard.py",
        "tests/test_optimizers.py",
        "tests/test_device.py",
    ]
    found = _run([*command, "-o", "filterwarnings=", *files], seconds)
    return {"status": found["status"], "output": found["output"][-3000:] if found["status"] else ""}


def steps(options: Namespace, seconds: float) -> Iterator[Found]:
    """Yields one measurement after the other, until `seconds` have passed."""
    began = time.monotonic()
    precisions = ["bf16", "tf32"] if options.device == "cuda" else ["float32"]
    cases = [
        (name, precision, penalties, way)
        for precision in precisions
        for name in options.networks
        for penalties in PENALTIES
        for way in WAYS
        if options.device == "cuda" or "graphs" not in way
    ]
    cases.sort(key=lambda case: (case[0], case[2]) not in MAIN)
    for name, precision, penalties, way in cases:
        case = {"network": name, "precision": precision, "penalties": penalties, "way": way}
        if time.monotonic() - began > seconds:
            yield {**case, "error": "no time left"}
            continue
        try:
            yield {**case, **_measure_step(options, name, precision, penalties, way)}
        except Exception as error:  # out of memory, among others
            yield {**case, "error": f"{type(error).__name__}: {error}".partition("\n")[0]}
        gc.collect()
        if options.device == "cuda":
            torch.cuda.empty_cache()


def _measure_step(options: Namespace, name: str, precision: str, penalties: str, way: str) -> Found:
    batch = options.batch or BATCHES[name]
    settings = _step_settings(options, precision=precision, batch=batch, cuda_graph="graphs" in way)
    torch.manual_seed(0)
    pair, data = networks(name, **options.widths), _data(name, 8 * batch)
    step: Callable[[], object]
    if way == "bare":
        step = bare(pair, data, settings, PENALTIES[penalties])
    elif way.startswith("plain"):
        step = plain(with_torchs_convolutions(pair), data, settings, PENALTIES[penalties])
    else:
        step = trainer_of(pair, data, settings, PENALTIES[penalties]).train_step
    for _ in range(6 if settings.cuda_graph else options.warm_up):  # graphs are captured in the fourth
        step()
    _wait(options)
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began, count = time.perf_counter(), 0
    while count < options.least or time.perf_counter() - began < options.seconds:
        step()
        count += 1
        if count % options.least == 0:
            _wait(options)
    _wait(options)
    per_step = (time.perf_counter() - began) / count
    found = {"batch": batch, "steps": count, "ms_per_step": 1e3 * per_step, "images_per_second": batch / per_step}
    if options.device == "cuda":
        found["peak_gib"] = torch.cuda.max_memory_reserved() / 2**30
        found["gpu_busy"] = _kernel_seconds(step) / per_step
    return {key: round(value, 4) for key, value in found.items()}


def _kernel_seconds(step: Callable[[], object], count: int = 3) -> float:
    """Returns the seconds in which at least one kernel or copy runs, per step."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(count):
            step()
        torch.cuda.synchronize()
    total, end = 0.0, 0.0
    spans = [
        event.time_range
        for event in profile.events()
        if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
    ]
    for span in sorted(spans, key=lambda span: span.start):
        total += max(0.0, span.end - max(span.start, end))
        end = max(end, span.end)
    return total * 1e-6 / count


def losses(options: Namespace, seconds: float) -> Found:
    """Returns for each network the largest relative difference of a loss by graphs from the one without."""
    found, began = Found(), time.monotonic()
    for name in options.networks:
        trainers: list[Trainer] = []
        for graph in (False, True):
            torch.manual_seed(0)
            settings = _step_settings(options, precision="tf32", batch=options.batch or 64, cuda_graph=graph)
            penalties: dict[str, Penalty] = {"r1": R1(weight=1.0, interval=4), "r2": R2(weight=1.0)}
            pair = networks(name, **options.widths)
            trainers.append(trainer_of(pair, _data(name, 8 * settings.batch), settings, penalties))
        worst = taken = 0.0
        while taken < options.compared and time.monotonic() - began < seconds:
            eager, replayed = (trainer.train_step() for trainer in trainers)
            for key in ("loss/discriminator", "loss/generator"):
                a, b = float(eager[key]), float(replayed[key])
                worst = max(worst, abs(a - b) / max(abs(a), 1e-6))
            taken += 1
        found[name] = {"steps": int(taken), "largest_relative_difference": worst}
    return found


def resume(options: Namespace, seconds: float) -> Found:
    """Kills a run that is not yet at its end, resumes it, and compares the two ends."""
    images, kills = (20_000, 2) if options.device == "cuda" else (1_000, 1)
    words = [*_words(options, _folder(options)), f"train.images={images}", f"checkpoint.every={images // 10}"]
    script = [sys.executable, "scripts/kill_and_resume.py", f"--kills={kills}", *words]
    found = _run(script, seconds)
    return {"status": found["status"], "output": found["output"][-1500:]}


def ranks(options: Namespace, seconds: float) -> Found:
    """Returns the losses of one process and of two, in float32, since short floats differ with the size of a part."""
    found = Found()
    words = ["train", *_words(options, _folder(options)), "train.images=1024", "log.every=64", "train.batch_size=64"]
    words += ["device.precision=float32"]
    for world_size in (1, 2):
        folder = Path(tempfile.mkdtemp()) / "run"
        environments = [
            {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank), "MASTER_PORT": "29511"}
            for rank in range(world_size)
        ]
        command = [sys.executable, "-c", OVER_GLOO, *words, "device.cuda_graph=false", f"hydra.run.dir={folder}"]
        processes = [_start(command, more) for more in (environments if world_size > 1 else [{}])]
        outputs = [_output_of(process, seconds / 2) for process in processes]
        rows = _rows(folder)
        found[f"{world_size} processes"] = {
            "status": [process.returncode for process in processes],
            "output": [text[-1000:] for text in outputs] if any(process.returncode for process in processes) else "",
            "losses": [[row["loss/discriminator"], row["loss/generator"]] for row in rows],
        }
    pairs = zip(found["1 processes"]["losses"], found["2 processes"]["losses"], strict=False)
    differences = [max(abs(a - b) / max(abs(a), 1e-6) for a, b in zip(one, two, strict=True)) for one, two in pairs]
    return {**found, "relative_differences": differences}


def recipe(options: Namespace, seconds: float) -> Found:
    """Returns the speed of the recipe with everything around it, as the run's own log says."""
    folder = Path(tempfile.mkdtemp()) / "run"
    minutes = max((seconds - 40) / 60, 0.1)
    words = _words(options, options.cifar or _folder(options))
    words += ["experiment=cifar10", "evaluation.every=null", "log.every=2_560", f"train.minutes={minutes:.2f}"]
    if options.device == "cpu":
        words += ["train.batch_size=8", "train.images=64", "log.every=16"]
    found = _run([sys.executable, "-m", "gancli", "train", *words, f"hydra.run.dir={folder}"], seconds)
    rows = _rows(folder)
    speeds = sorted(row["speed/images_per_second"] for row in rows[len(rows) // 4 :])
    return {
        "status": found["status"],
        "data": "CIFAR-10" if options.cifar else "synthetic",
        "images": rows[-1]["images"] if rows else 0,
        "images_per_second": speeds[len(speeds) // 2] if speeds else None,
        "output": found["output"][-1500:] if found["status"] else "",
    }


PARTS: dict[str, tuple[Callable[..., Any], float]] = {  # and the most seconds that each may take
    "tests": (tests, 90),
    "steps": (steps, 150),
    "recipe": (recipe, 140),
    "losses": (losses, 40),
    "resume": (resume, 90),
    "ranks": (ranks, 60),
}


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--budget", type=float, default=420, help="seconds for everything")
    words.add_argument("--out", type=Path, default=ROOT / "docs" / "gpu.json")
    words.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    words.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    words.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    words.add_argument("--cifar", type=Path, help="zip of CIFAR-10 as class folders; synthetic images without")
    words.add_argument("--seconds", type=float, default=1.0, help="for which each step is timed")
    words.add_argument("--batch", type=int, help="images per step; each network's own without")
    words.add_argument("--channels", type=int, help="of the finest map; each network's own without")
    options = words.parse_args()
    options.widths = {"channels": options.channels} if options.channels else {}
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device is visible here, so there is nothing to measure (--device cpu tries the script out)")
    small = options.device == "cpu"
    options.warm_up, options.least, options.compared = (1, 1, 3) if small else (3, 5, 100)
    options.batch = options.batch or (4 if small else None)
    began = time.monotonic()
    commit = _run(["git", "describe", "--always", "--dirty"], 10)
    found: Found = {
        "card": "CPU" if small else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "commit": commit["output"].strip() if commit["status"] == 0 else None,
    }
    for name in options.parts:
        part, most = PARTS[name]
        seconds = min(most, options.budget - (time.monotonic() - began) - 5)
        started = time.monotonic()
        if seconds < 5:
            found[name] = {"error": "no time left"}
        else:
            try:
                result = part(options, seconds)
                if isinstance(result, dict):
                    found[name] = result
                else:
                    for one in result:
                        found.setdefault(name, []).append(one)
                        _write(options.out, found)
                        print(one, flush=True)
            except Exception as error:  # one part that fails leaves the others
                found[name] = {"error": f"{type(error).__name__}: {error}"}
        found.setdefault("seconds", {})[name] = round(time.monotonic() - started, 1)
        _write(options.out, found)
        print(name, json.dumps(found[name])[:2000] if name != "steps" else "", found["seconds"][name], "s", flush=True)


def _write(out: Path, found: Found) -> None:
    out.write_text(json.dumps(found, indent=1) + "\n")


def _step_settings(options: Namespace, *, precision: str, batch: int, cuda_graph: bool) -> Namespace:
    return Namespace(
        device=options.device,
        precision=precision if options.device == "cuda" else "float32",
        channels_last=True,
        cuda_graph=cuda_graph and options.device == "cuda",
        batch=batch,
        latent=LATENT,
    )


def _data(name: str, count: int) -> Tensor:
    side = NETWORKS[name][2]
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)


def _folder(options: Namespace) -> Path:
    """Returns a folder of random pictures of 32x32 pixels in ten class folders, made once."""
    if "folder" not in options:
        options.folder = Path(tempfile.mkdtemp())
        rng = np.random.default_rng(0)
        for index in range(2_000 if options.device == "cuda" else 100):
            file = options.folder / f"class{index % 10}" / f"{index}.png"
            file.parent.mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((32, 32)).save(file)
    found: Path = options.folder
    return found


def _words(options: Namespace, images: Path) -> list[str]:
    """Returns the overrides that all runs share."""
    words = ["dataset=folder", f"dataset.path={images.resolve()}", "dataset.resolution=32"]
    words += [f"dataset.cache={tempfile.mkdtemp()}", f"device={options.device}", "evaluation.every=null"]
    if options.device == "cuda":
        return [*words, "device.precision=bf16", "device.cuda_graph=true"]
    small = [f"network.{player}.{key}=8" for player in ("generator", "discriminator") for key in WIDTHS]
    return [*words, *small, "device.threads=1", "train.batch_size=16"]


def _environment(more: dict[str, str] | None = None) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, **(more or {})}


def _run(command: list[str], seconds: float) -> Found:
    """Returns status and output of a command, which is killed after `seconds`."""
    process = _start(command)
    output = _output_of(process, seconds)
    return {"status": process.returncode, "output": output}


def _start(command: list[str], more: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    # A session of its own, so that what it started ends with it.
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=ROOT, env=_environment(more), start_new_session=True, **pipes)


def _output_of(process: subprocess.Popen[bytes], seconds: float) -> str:
    try:
        return process.communicate(timeout=seconds)[0].decode(errors="replace")
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()[0].decode(errors="replace") + f"\nkilled after {seconds:.0f} s"


def _rows(folder: Path) -> list[Found]:
    file = folder / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _wait(options: Namespace) -> None:
    if options.device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
