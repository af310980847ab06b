"""A light generator for photographs, after FastGAN (Liu et al., ICLR 2021), for sides that halve down to 4 .. 7."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from gancli.networks.base import Generator
from gancli.networks.convolution import Conv2d, ConvTranspose2d
from gancli.networks.layers import ClassEmbedding, dcgan_, make_norm, stages_for, widths_for
from gancli.networks.resampling import area

_GATE_STAGES = 4  # between the map that a gate is computed from and the one that it scales, as in the paper
_GATE_SIDE = 4  # pixels to which the former is averaged


class FastGANGenerator(Generator):
    """Stages of nearest-neighbour upsampling, a 3x3 convolution, batch normalisation and a GLU.

    Each map is scaled, channel by channel, by a gate computed from the map of a sixteenth of its size (skip-layer
    excitation, section 3.1 of the paper); in images below 64 pixels the finest map by one from the coarsest.

    The noise also scales the normalised maps of each stage (as in Chen et al., "On Self Modulation for GANs", ICLR
    2019), so that samples differ at all scales. The paper's noise for each pixel is left out: a sample depends on its z
    and label alone.

    channels: of the finest map, doubled at each coarser one up to `max_channels`.
    """

    def __init__(
        self,
        *,
        latent_dim: int,
        image_shape: Sequence[int],
        num_classes: int = 0,
        channels: int = 16,
        max_channels: int = 256,
    ) -> None:
        super().__init__(latent_dim=latent_dim, image_shape=image_shape, num_classes=num_classes)
        count, (height, width) = stages_for(self.image_shape)
        widths = widths_for(count + 1, channels=channels, max_channels=max_channels)[::-1]  # the coarsest first
        self.noise = ClassEmbedding(latent_dim, num_classes)
        self.linear = nn.Linear(self.noise.features, 2 * widths[0] * height * width, bias=False)
        self.coarsest = (2 * widths[0], height, width)
        self.norm = make_norm("batch", 2 * widths[0])
        self.stages = nn.ModuleList(_Stage(*pair, self.noise.features) for pair in pairwise(widths))
        reach = min(_GATE_STAGES, count)
        self.gates = nn.ModuleDict(
            {
                str(fine): _Gate(widths[coarse], widths[fine], side=(height * 2**coarse, width * 2**coarse))
                for coarse, fine in enumerate(range(reach, count + 1))
            }
        )
        self.reach = reach
        self.output = Conv2d(widths[-1], self.image_shape[0], 3, padding=1)
        dcgan_(self)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        noise = self.noise(z, labels)
        x = GLU.apply(self.norm(self.linear(noise).unflatten(1, self.coarsest)))
        maps = [x]
        for index, stage in enumerate(self.stages, start=1):
            x = stage(x, noise)
            if str(index) in self.gates:
                x = x * self.gates[str(index)](maps[index - self.reach])
            maps.append(x)
        images: Tensor = self.output(x).tanh()
        return images

    def first_weight(self) -> Tensor:
        gains = [stage.get_parameter("gain.weight") for stage in self.stages]
        return torch.cat([self.linear.weight, *gains])[:, : self.latent_dim]


class _Stage(nn.Module):
    """Maps (B, before, H, W) and noise (B, features) to (B, after, 2 H, 2 W)."""

    def __init__(self, before: int, after: int, features: int) -> None:
        super().__init__()
        self.upsample = UpsampledConv2d(before, 2 * after)
        self.norm = make_norm("batch", 2 * after)
        self.gain = nn.Linear(features, 2 * after)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        gain = 1 + self.gain(noise)[:, :, None, None]
        maps: Tensor = GLU.apply(self.norm(self.upsample(x)) * gain)
        return maps


class GLU(torch.autograd.Function):
    """The first half of the channels times the sigmoid of the second: (B, 2 C, H, W) to (B, C, H, W).

    The gradient of torch's own `glu` is not in channels_last, which makes the batch normalisation before it several
    times as slow on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        values, gates = x.chunk(2, dim=1)
        return values * gates.sigmoid()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        values, gates = x.chunk(2, dim=1)
        open_ = gates.sigmoid()
        of_values = grad * open_
        return torch.cat([of_values, of_values * values * (1 - open_)], dim=1)


class UpsampledConv2d(ConvTranspose2d):
    """Doubles a map by nearest neighbours and convolves it by 3x3: (B, before, H, W) to (B, after, 2 H, 2 W).

    Computed as one transposed convolution, whose 4x4 kernel is the 3x3 one summed over the 2x2 equal pixels: 4 instead
    of 9 products for each output pixel.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__(before, after, 3, stride=2, padding=1, bias=False)
        sums = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0]])  # of one side
        self.sums = nn.Buffer(torch.kron(sums, sums), persistent=False)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        rows = self.weight.permute(0, 2, 3, 1).flatten(1, 2)  # (before, 9, 2 after), as channels_last lies in memory
        kernel = (self.sums @ rows).unflatten(1, (4, 4)).permute(0, 3, 1, 2)
        return self.convolve_with(input, kernel, None)


class _Gate(nn.Module):
    """Skip-layer excitation: a map (B, before, H, W) to factors (B, after, 1, 1) between 0 and 1.

    side: (H, W).
    """

    def __init__(self, before: int, after: int, *, side: tuple[int, int]) -> None:
        super().__init__()
        self.average = area(side, (_GATE_SIDE, _GATE_SIDE))
        self.layers = nn.Sequential(Conv2d(before, after, _GATE_SIDE), nn.SiLU(), Conv2d(after, after, 1), nn.Sigmoid())

    def forward(self, coarse: Tensor) -> Tensor:
        gate: Tensor = self.layers(self.average(coarse))
        return gate
