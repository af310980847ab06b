"""Times a training step on a GPU: gancli eager and by CUDA graphs, against two loops over the same networks.

(a) gancli: Trainer.train_step, with data, noise, the check for divergence and the moving average; (g) the same with
    device.cuda_graph=true.
(b) plain: the two-stage loop of the common tutorials, with torch's defaults, under autocast in bf16.
(c) bare: the one-stage arithmetic of (a) and nothing around it.

    python scripts/benchmark_gpu.py                      DCGAN at 64x64 and R3GAN at 32x32, in float32 and bf16

Prints images per second (median over rounds), the share of the speed of large matrix products that this is, counted
in the products and convolutions of (a)'s step, and the ratios taken within each round, the ways interleaved. Then it
compares the losses of 100 steps with and without graphs, with R1 at every fourth step and R2.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time

import torch
from benchmark_step import WAYS, interleaved, networks, ours, parser, ratio, trainer_of
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gancli.penalties import R1, R2

CASES = {
    "dcgan 64x64": {"network": "dcgan", "size": 64, "channels": 64, "latent": 128},
    "r3gan 32x32": {"network": "r3gan", "size": 32, "channels": 64, "latent": 64},
}
TEXTS = {
    "a": "gancli",
    "g": "gancli, cuda_graph",
    "b": "plain two-stage loop",
    "c": "bare one-stage arithmetic",
}


def peak(device: str, precision: str, side: int) -> float:
    """Returns the floating-point operations per second of a large matrix product, the best of ten trials."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        _wait(device)
        began = time.perf_counter()
        for _ in range(5):
            a @ b
        _wait(device)
        best = min(best, (time.perf_counter() - began) / 5)
    return 2 * side**3 / best


def measure(name: str, options: argparse.Namespace) -> None:
    """Times one network in one precision."""
    pair, data = networks(options), _data(options)
    with FlopCounterMode(display=False) as counter:
        ours(copy.deepcopy(pair), data, options)()
    steps = {way: make(copy.deepcopy(pair), data, options) for way, make in WAYS.items()}
    graph = argparse.Namespace(**{**vars(options), "cuda_graph": True})
    steps["g"] = ours(copy.deepcopy(pair), data, graph)
    for _ in range(8):  # until the graphs are recorded
        steps["g"]()
    peak_flops = peak(options.device, options.precision, options.matrix)
    seconds = interleaved(steps, options)
    print(f"\n{name}, batch {options.batch}, {options.precision}: matrix products at {peak_flops / 1e12:.1f} TFLOP/s")
    for way, text in TEXTS.items():
        median = statistics.median(seconds[way]) / options.steps
        share = counter.get_total_flops() / median / peak_flops
        print(f"({way}) {text:27} {options.batch / median:9,.0f} images/s, {share:6.1%} of that")
    for first, second in (("g", "a"), ("g", "b"), ("g", "c"), ("a", "b"), ("a", "c")):
        print(f"{ratio(seconds, first, second)} over {options.rounds} rounds")


def compare(name: str, options: argparse.Namespace) -> None:
    """Compares the losses of (a) and (g), step by step from the same start."""
    pair, data = networks(options), _data(options)
    trainers = [
        trainer_of(
            copy.deepcopy(pair),
            data,
            argparse.Namespace(**{**vars(options), "cuda_graph": graph}),
            {"r1": R1(weight=1.0, interval=4), "r2": R2(weight=1.0)},
        )
        for graph in (False, True)
    ]
    worst = 0.0
    for _ in range(100):
        eager, replayed = (trainer.train_step() for trainer in trainers)
        for key in ("loss/discriminator", "loss/generator"):
            worst = max(worst, abs(eager[key] - replayed[key]) / max(abs(eager[key]), 1e-6))
    print(f"{name}, {options.precision}: losses of 100 steps with graphs within {worst:.1e} of those without")


def main() -> None:
    words = parser()
    words.description = __doc__
    words.add_argument("--matrix", type=int, default=8192, help="side of the matrices of the product")
    words.set_defaults(device="cuda", image_channels=3, rounds=15, steps=20)
    given = words.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device is visible here, so there is nothing to measure (--device cpu tries the script out)")
    print(torch.cuda.get_device_name() if given.device == "cuda" else "CPU", "torch", torch.__version__)
    for name, case in CASES.items():
        for precision in ("float32", "bf16"):
            torch.manual_seed(0)
            options = argparse.Namespace(**{**vars(given), **case, "precision": precision})
            if given.device == "cpu":
                options.channels, options.steps = 4, 1
            measure(name, options)
            compare(name, options)


def _data(options: argparse.Namespace) -> Tensor:
    shape = (options.image_channels, options.size, options.size)
    return torch.randint(0, 256, (20 * options.batch, *shape), dtype=torch.uint8)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
