"""Counts the work of one training step: convolutions, kernels, floating-point operations.

    python scripts/count_operations.py                      the table of docs/performance.md
    python scripts/count_operations.py --convolution torch  the same networks with torch's own convolutions
    python scripts/count_operations.py --network "r3gan 32x32"

The step is computed on tensors without values, so that this takes seconds and no GPU. Convolutions are calls of
aten::convolution and aten::convolution_backward; kernels are all operations but views and allocations; floating-point
operations are those of convolutions and matrix products, two per multiply-add.
"""

from __future__ import annotations

import argparse
from collections import Counter
from math import prod
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from gancli.game import Game, Penalty
from gancli.losses import NonSaturating
from gancli.networks.base import Discriminator, Generator
from gancli.networks.convolution import Conv2d, ConvTranspose2d
from gancli.networks.dcgan import DCGANDiscriminator, DCGANGenerator
from gancli.networks.r3gan import R3GANDiscriminator, R3GANGenerator
from gancli.networks.resnet import ResNetDiscriminator, ResNetGenerator
from gancli.penalties import R1, R2, WGANGP
from gancli.priors import Gaussian
from gancli.randomness import Stream, seeded
from gancli.updates import Simultaneous

Pair = tuple[Generator, Discriminator]
LATENT = 64  # dimensions of the noise
NETWORKS: dict[str, tuple[Any, Any, int, dict[str, int]]] = {  # generator, discriminator, side in pixels, settings
    "dcgan 64x64": (DCGANGenerator, DCGANDiscriminator, 64, {"channels": 64}),
    "resnet 32x32": (ResNetGenerator, ResNetDiscriminator, 32, {"channels": 64}),
    "r3gan 32x32": (R3GANGenerator, R3GANDiscriminator, 32, {"channels": 96, "max_channels": 384}),
    "r3gan 64x64": (R3GANGenerator, R3GANDiscriminator, 64, {"channels": 96, "max_channels": 384}),
}
PENALTIES: dict[str, list[type[Penalty]]] = {
    "none": [],
    "r1": [R1],
    "r2": [R2],
    "r1, r2": [R1, R2],
    "wgan_gp": [WGANGP],
}
_aten = torch.ops.aten
_ALLOCATIONS = {_aten.empty, _aten.empty_like, _aten.new_empty, _aten.empty_strided, _aten.new_empty_strided}
_CONVOLUTIONS = {_aten.convolution, _aten.convolution_backward}


class Operations(TorchDispatchMode):
    """Counts, as a context, what torch is told to compute. calls: number of each operation, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = Counter[str]()
        self.convolutions = self.kernels = self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        operation = func.overloadpacket
        self.calls[operation.__name__] += 1
        self.convolutions += operation in _CONVOLUTIONS
        self.kernels += not (func.is_view or operation in _ALLOCATIONS or operation is _aten.detach)
        if operation is _aten.convolution_backward:
            self.flops += _backward_flops(*args)
        elif operation in flop_registry:
            self.flops += flop_registry[operation](*args, **(kwargs or {}), out_val=result)
        return result


def _backward_flops(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> int:
    """Returns 2 times the convolution's multiply-adds for each of both gradients, which torch takes for ungrouped."""
    transposed, (for_x, for_weight, _) = rest[4], rest[-1]
    positions: int = prod((x if transposed else grad).shape[2:])
    return 2 * len(x) * positions * weight.numel() * (bool(for_x) + bool(for_weight))


def networks(name: str, **more: int) -> Pair:
    """Returns generator and discriminator of `NETWORKS[name]`, with settings of their own, for images in colour."""
    make_g, make_d, side, settings = NETWORKS[name]
    settings = {**settings, **more}
    shape = (3, side, side)
    return make_g(latent_dim=LATENT, image_shape=shape, **settings), make_d(image_shape=shape, **settings)


def with_torchs_convolutions(pair: Pair) -> Pair:
    """Gives the convolutions of both networks torch's own forward pass, and with it torch's own derivatives."""
    for layer in (layer for network in pair for layer in network.modules()):
        if isinstance(layer, Conv2d):
            layer._conv_forward = MethodType(nn.Conv2d._conv_forward, layer)  # type: ignore[method-assign]
            layer.forward = MethodType(nn.Conv2d.forward, layer)  # type: ignore[method-assign]
        elif isinstance(layer, ConvTranspose2d):
            layer.forward = MethodType(nn.ConvTranspose2d.forward, layer)  # type: ignore[method-assign]
    return pair


def count(pair: Pair, penalties: list[type[Penalty]], *, batch: int = 8) -> Operations:
    """Returns the operations of one simultaneous step with `penalties`."""
    generator, discriminator = pair[0].to("meta"), pair[1].to("meta")
    game = Game(
        generator=generator,
        discriminator=discriminator,
        loss=NonSaturating(),
        prior=Gaussian(dim=generator.latent_dim),
        stream=Stream(seeded(0, "noise"), device=torch.device("meta")),
        penalties={make.__name__: make(weight=1.0) for make in penalties},
    )
    samples = torch.empty(batch, *generator.image_shape, device="meta")
    operations = Operations()
    with operations:
        list(Simultaneous().player_updates(game, lambda _: (samples, None), step=0, progress=0.0))
    return operations


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--convolution", choices=["gancli", "torch"], default="gancli", help="whose derivatives")
    words.add_argument("--network", choices=list(NETWORKS), help="this one only")
    words.add_argument("--batch", type=int, default=8, help="operations are given per real image")
    options = words.parse_args()
    print("| network | penalties | convolutions | kernels | GFLOP per image | times that without |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in [options.network] if options.network else NETWORKS:
        plain = 0
        for penalties, makers in PENALTIES.items():
            pair = networks(name)
            if options.convolution == "torch":
                pair = with_torchs_convolutions(pair)
            found = count(pair, makers, batch=options.batch)
            plain = plain or found.flops
            print(
                f"| {name} | {penalties} | {found.convolutions:,} | {found.kernels:,} | "
                f"{found.flops / options.batch / 1e9:.2f} | {found.flops / plain:.2f} |"
            )


if __name__ == "__main__":
    main()
