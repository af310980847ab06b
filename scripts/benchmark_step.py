"""Times one training step of three ways to train the same networks, interleaved in one process.

(a) gancli: Trainer.train_step, with data, noise, the check for divergence and the moving average.
(b) plain: the two-stage loop of the common tutorials: D's step, then G's step through D, with torch's defaults.
(c) bare: gradients and optimizers of (a), and nothing around them.

    python scripts/benchmark_step.py                     28x28 grey, batch 128, 64 base channels
    python scripts/benchmark_step.py --size 64 --image-channels 3 --device cuda --precision bf16

Prints images per second (median over rounds) and the median of the ratios taken within each round.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from gancli.datasets.base import ImageDataset
from gancli.device import Runtime
from gancli.game import Game, Penalty
from gancli.losses import NonSaturating
from gancli.networks.dcgan import DCGANDiscriminator, DCGANGenerator
from gancli.networks.r3gan import R3GANDiscriminator, R3GANGenerator
from gancli.priors import Gaussian
from gancli.randomness import Stream, seeded
from gancli.training import cuda_graphs
from gancli.training.checkpoint import Checkpoints
from gancli.training.ema import EMA
from gancli.training.evaluation import PeriodicEvaluation
from gancli.training.health import HealthMonitor
from gancli.training.logging import NullLogger
from gancli.training.scheduled_optimizer import ScheduledOptimizer
from gancli.training.trainer import Trainer
from gancli.updates import Simultaneous

LR, BETAS = 2e-4, (0.5, 0.999)
FAMILIES = {"dcgan": (DCGANGenerator, DCGANDiscriminator), "r3gan": (R3GANGenerator, R3GANDiscriminator)}


def ours(pair: tuple[nn.Module, nn.Module], data: Tensor, options: argparse.Namespace) -> Callable[[], object]:
    return trainer_of(pair, data, options).train_step


def trainer_of(
    pair: tuple[nn.Module, nn.Module],
    data: Tensor,
    options: argparse.Namespace,
    penalties: dict[str, Penalty] | None = None,
) -> Trainer:
    runtime = runtime_of(options, cuda_graph=options.cuda_graph)
    generator, discriminator = (runtime.place(network) for network in pair)
    adam = partial(torch.optim.Adam, lr=LR, betas=BETAS, fused=True)
    logger = NullLogger()
    dataset = ImageDataset(data, train_indices=torch.arange(len(data)), holdout_indices=torch.arange(1))
    dataset = dataset.to(runtime.device)
    evaluation = PeriodicEvaluation(
        metric={},
        dataset=dataset,
        labelled=False,
        runtime=runtime,
        health=HealthMonitor(),
        logger=logger,
        every=None,
    )
    trainer = Trainer(
        game=Game(
            generator=generator,
            discriminator=discriminator,
            loss=NonSaturating(),
            prior=Gaussian(dim=options.latent),
            stream=Stream(seeded(0, "noise"), device=runtime.device),
            penalties=penalties or {},
            autocast=runtime.autocast,
        ),
        update=Simultaneous(),
        optimizers={
            "generator": ScheduledOptimizer(adam, generator.parameters()),
            "discriminator": ScheduledOptimizer(adam, discriminator.parameters()),
        },
        ema=EMA(generator),
        dataset=dataset,
        checkpoints=Checkpoints(Path(tempfile.mkdtemp())),
        logger=logger,
        evaluation=evaluation,
        process_group=runtime.process_group,
        seed=0,
        batch_size=options.batch,
        images=10**9,
    )
    if runtime.cuda_graph:
        cuda_graphs.apply(trainer, lambda: cuda_graphs.CudaRecorder(runtime.device))
    return trainer


def runtime_of(options: argparse.Namespace, **more: bool) -> Runtime:
    settings = {"precision": options.precision, "channels_last": options.channels_last}
    return Runtime(kind=options.device, **{**settings, **more})


def plain(
    pair: tuple[nn.Module, nn.Module],
    data: Tensor,
    options: argparse.Namespace,
    penalties: dict[str, Penalty] | None = None,
) -> Callable[[], object]:
    """penalties: those of R1 and R2, by their names."""
    penalties = penalties or {}
    runtime = runtime_of(options, channels_last=False)
    device = runtime.device
    generator, discriminator = (network.to(device) for network in pair)
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=LR, betas=BETAS)
    optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=LR, betas=BETAS)
    criterion = nn.BCEWithLogitsLoss()
    batches = data.split(options.batch)
    images = [batch.to(device).float() / 127.5 - 1 for batch in batches if len(batch) == options.batch]
    ones, zeros = torch.ones(options.batch, device=device), torch.zeros(options.batch, device=device)
    count = 0

    def step() -> None:
        nonlocal count
        real, count = images[count % len(images)], count + 1
        optimizer_d.zero_grad()
        with runtime.autocast():
            fake = generator(torch.randn(options.batch, options.latent, device=device)).float()
            samples = {"r1": real, "r2": fake.detach()}
            for name in penalties:
                samples[name] = samples[name].detach().requires_grad_()
            logits = {name: discriminator(inputs).float() for name, inputs in samples.items()}
            loss_d = criterion(logits["r1"], ones) + criterion(logits["r2"], zeros)
        for name, penalty in penalties.items():
            (gradient,) = torch.autograd.grad(logits[name].sum(), samples[name], create_graph=True)
            loss_d = loss_d + penalty.factor(0.0) * 0.5 * gradient.square().sum((1, 2, 3)).mean()
        loss_d.backward()
        optimizer_d.step()
        optimizer_g.zero_grad()
        with runtime.autocast():
            loss_g = criterion(discriminator(fake).float(), ones)
        loss_g.backward()
        optimizer_g.step()
        loss_d.item(), loss_g.item()

    return step


def bare(
    pair: tuple[nn.Module, nn.Module],
    data: Tensor,
    options: argparse.Namespace,
    penalties: dict[str, Penalty] | None = None,
) -> Callable[[], object]:
    trainer = trainer_of(pair, data, options, penalties)
    real = data[: options.batch].to(trainer.game.stream.device).float() / 127.5 - 1
    noise = torch.randn(options.batch, options.latent, device=real.device)
    game = replace(trainer.game, stream=_SameNoise(trainer.game.stream, noise))
    optimizers = [optimizer.optimizer for optimizer in trainer.optimizers.values()]

    def step() -> None:
        for _ in trainer.update.player_updates(game, lambda _: (real, None), step=0, progress=0.0):
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

    return step


class _SameNoise(Stream):
    """Gives the same noise every time, already on the device."""

    def __init__(self, stream: Stream, noise: Tensor) -> None:
        super().__init__(stream.generator, device=stream.device)
        self.noise = noise

    def take(self, draw: Callable[[int, torch.Generator], Tensor], count: int) -> Tensor:
        return self.noise


WAYS = {"a": ours, "b": plain, "c": bare}


def networks(options: argparse.Namespace) -> tuple[nn.Module, nn.Module]:
    """Returns generator and discriminator of the family that was asked for."""
    shape = (options.image_channels, options.size, options.size)
    make_g, make_d = FAMILIES[options.network]
    generator = make_g(latent_dim=options.latent, image_shape=shape, channels=options.channels)
    return generator, make_d(image_shape=shape, channels=options.channels)


def interleaved(steps: dict[str, Callable[[], object]], options: argparse.Namespace) -> dict[str, list[float]]:
    """Returns the seconds of each way in each round, after a round that warms up."""
    wait = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(options.rounds + 1):
        order = list(steps) if turn % 2 else list(steps)[::-1]
        for name in order:
            wait()
            began = time.perf_counter()
            for _ in range(options.steps):
                steps[name]()
            wait()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(seconds: dict[str, list[float]], first: str, second: str) -> str:
    """Returns how many times as fast the first way is as the second."""
    ratios = [slower / faster for faster, slower in zip(seconds[first], seconds[second], strict=True)]
    return f"({first})/({second}) {statistics.median(ratios):.3f}  [{min(ratios):.3f} .. {max(ratios):.3f}]"


def parser() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--network", choices=list(FAMILIES), default="dcgan")
    words.add_argument("--size", type=int, default=28)
    words.add_argument("--image-channels", type=int, default=1)
    words.add_argument("--channels", type=int, default=64, help="width of the finest hidden map")
    words.add_argument("--latent", type=int, default=64)
    words.add_argument("--batch", type=int, default=128)
    words.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    words.add_argument("--precision", choices=["float32", "tf32", "bf16"], default="float32")
    words.add_argument("--channels-last", action=argparse.BooleanOptionalAction, default=True, help="for (a) and (c)")
    words.add_argument("--cuda-graph", action="store_true", help="for (a)")
    words.add_argument("--rounds", type=int, default=15)
    words.add_argument("--steps", type=int, default=5, help="steps of each way in a round")
    return words


def main() -> None:
    options = parser().parse_args()
    torch.manual_seed(0)
    shape = (options.image_channels, options.size, options.size)
    data = torch.randint(0, 256, (50 * options.batch, *shape), dtype=torch.uint8)
    pair = networks(options)
    seconds = interleaved({name: way(copy.deepcopy(pair), data, options) for name, way in WAYS.items()}, options)
    images = options.batch * options.steps
    for name, text in {"a": "gancli", "b": "plain two-stage loop", "c": "bare one-stage arithmetic"}.items():
        print(f"({name}) {text:27} {images / statistics.median(seconds[name]):9,.0f} images/s")
    for second in ("b", "c"):
        print(f"{ratio(seconds, 'a', second)} over {options.rounds} rounds")


if __name__ == "__main__":
    main()
