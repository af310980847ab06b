"""Parts that several network families share."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils import parametrizations

from gancli.errors import SettingError
from gancli.networks.base import CrossSampleLayer

Minibatch = Literal["none", "std", "discrimination"]
Norm = Literal["batch", "group", "none"]
Module = TypeVar("Module", bound=nn.Module)


def make_norm(kind: Norm, channels: int) -> nn.Module:
    """The normalisation layer for maps (B, channels, H, W). Raises ValueError on another kind.

    group: at most 32 groups of at least 4 channels (Wu & He, ECCV 2018); one group for less than 8.
    """
    if kind == "batch":
        return BatchNorm2d(channels)
    if kind == "group":
        groups = [count for count in range(1, 33) if channels % count == 0 and channels // count >= 4]
        return nn.GroupNorm(max(groups, default=1), channels)
    if kind == "none":
        return nn.Identity()
    raise SettingError(f"norm={kind}: one of batch, group, none")


class BatchNorm2d(CrossSampleLayer, nn.BatchNorm2d):
    """Batch normalisation by the statistics of the whole batch, also where several processes share it.

    Twice differentiable, as gradient penalties need, and on any device, which torch's SyncBatchNorm is not.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to the same."""
        group = self.active_group
        if group.world_size == 1:
            return super().forward(x)
        x, dtype = x.float(), x.dtype
        local_var, local_mean = torch.var_mean(x, (0, 2, 3), unbiased=False)
        means, variances = group.all_gather(torch.stack([local_mean, local_var])[None]).unbind(1)  # (processes, C)
        # The variance of all from those of equal parts (Chan et al., 1979): no difference of large squares.
        mean = means.mean(0)
        var = (variances + (means - mean).square()).mean(0)
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None
            assert self.num_batches_tracked is not None and self.momentum is not None
            count = group.world_size * x.numel() / x.shape[1]
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
        gain = self.weight * (var + self.eps).rsqrt()
        normalized = (x - mean[:, None, None]) * gain[:, None, None]
        return (normalized + self.bias[:, None, None]).to(dtype)


def apply_spectral_norm(network: Module) -> Module:
    """Divides the weight of each convolution, linear layer and embedding by its largest singular value.

    One power iteration per forward pass in training (Miyato et al., ICLR 2018, algorithm 1). To be
    applied after initialisation, from which the iteration starts.
    """
    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear, nn.Embedding))]
    for layer in layers:
        parametrizations.spectral_norm(layer)
    return network


def he_(network: Module, slope: float) -> Module:
    """Initialises weights so that the layers keep the scale of what they are given; biases are zero.

    slope: of the leaky ReLU that made a layer's input; 0 for ReLU, 1 for none (He et al., ICCV 2015, eq. 15).
    """
    for layer in network.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            fan_in = layer.weight[0].numel()
            if isinstance(layer, nn.ConvTranspose2d):  # weight (in, out, k, k), and a pixel sees k / stride of the taps
                (kernel, _), (stride, _) = layer.kernel_size, layer.stride
                fan_in = layer.in_channels * kernel**2 // stride**2
            nn.init.normal_(layer.weight, std=sqrt(2 / (1 + slope**2) / fan_in))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return network


def dcgan_(network: Module) -> Module:
    """N(0, 0.02) weights, N(1, 0.02) gains (Radford et al., ICLR 2016): right where normalisation sets the scale."""
    for layer in network.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, (nn.BatchNorm2d, nn.GroupNorm)):
            nn.init.normal_(layer.weight, mean=1.0, std=0.02)
    return network


class ClassEmbedding(nn.Module):
    """Noise (B, latent_dim), followed by an embedding of the class where there are classes: (B, features).

    The embedding has as many dimensions as the noise and its distribution, so that neither drowns the other.
    """

    def __init__(self, latent_dim: int, num_classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_classes, latent_dim) if num_classes else None
        self.features = latent_dim * (2 if num_classes else 1)

    def forward(self, z: Tensor, labels: Tensor | None) -> Tensor:
        return z if self.embedding is None else torch.cat([z, self.embedding(given(labels))], dim=1)


class ProjectionHead(nn.Module):
    """Features h (B, features) to logits (B,): w.h + b, plus embed(y).h where there are classes.

    Miyato & Koyama, ICLR 2018, eq. 4.
    """

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        self.linear = he_(nn.Linear(features, 1), slope=1)
        self.embedding = nn.Embedding(num_classes, features) if num_classes else None
        if self.embedding is not None:
            nn.init.normal_(self.embedding.weight, std=features**-0.5)  # the scale of the linear part

    def forward(self, h: Tensor, labels: Tensor | None) -> Tensor:
        logits: Tensor = self.linear(h).squeeze(1)
        return logits if self.embedding is None else logits + (self.embedding(given(labels)) * h).sum(1)


class MinibatchStd(CrossSampleLayer):
    """Appends to maps or features (B, F, ...) how much they vary within `group` samples: (B, F + 1, ...).

    One channel with the mean over channels and pixels of their standard deviation (Karras et al., ICLR 2018,
    section 3). A group is as large as the largest divisor of B up to `group`, and takes every
    (B / group)-th sample; of a prime B above `group` each sample is alone, and the channel says nothing.
    """

    def __init__(self, *, group: int = 4) -> None:
        super().__init__()
        if group < 1:
            raise SettingError(f"group={group}: at least 1 sample")
        self.group = group

    def forward(self, h: Tensor) -> Tensor:
        processes = self.active_group
        whole = processes.all_gather(h.float())
        size = max(size for size in range(1, self.group + 1) if len(whole) % size == 0)
        grouped = whole.unflatten(0, (size, -1))
        # The small number keeps the square root's derivatives finite for identical samples.
        std = (grouped.var(0, unbiased=False) + 1e-8).sqrt().flatten(1).mean(1)
        channel = processes.local_shard(std.repeat(size)).to(h.dtype).view(-1, 1, *[1] * (h.ndim - 2))
        return torch.cat([h, channel.expand(-1, 1, *h.shape[2:])], dim=1)


class MinibatchDiscrimination(CrossSampleLayer):
    """Appends to features (B, F) the closeness to the other samples: (B, F + kernels).

    o(i)_b = sum over j of exp(-|M_ib - M_jb|_1), less the 1 of j = i, where M_i = T h_i has `dims` numbers
    for each kernel b (Salimans et al., NeurIPS 2016, eq. 1 and 2).
    """

    def __init__(self, features: int, *, kernels: int = 32, dims: int = 8) -> None:
        super().__init__()
        self.kernels = kernels
        self.tensor = he_(nn.Linear(features, kernels * dims, bias=False), slope=1)

    def forward(self, h: Tensor) -> Tensor:
        rows = self.tensor(h).float().unflatten(1, (self.kernels, -1))
        distance = (rows[:, None] - self.active_group.all_gather(rows)).abs().sum(3)
        return torch.cat([h, (torch.exp(-distance).sum(1) - 1).to(h.dtype)], dim=1)  # without itself


def minibatch_layer(kind: Minibatch, features: int) -> tuple[nn.Module, int]:
    """What looks at several samples together, for features (B, `features`), and how many features come out.

    Raises ValueError on another kind.
    """
    if kind == "none":
        return nn.Identity(), features
    if kind == "std":
        return MinibatchStd(), features + 1
    if kind == "discrimination":
        layer = MinibatchDiscrimination(features)
        return layer, features + layer.kernels
    raise SettingError(f"minibatch={kind}: one of none, std, discrimination")


def given(labels: Tensor | None) -> Tensor:
    """The labels. Raises ValueError where there are none."""
    if labels is None:
        raise ValueError("labels=None: this network has classes and needs an int64 label for each sample")
    return labels


def stages_for(image_shape: Sequence[int]) -> tuple[int, tuple[int, int]]:
    """How many halvings bring the smaller side to 4 .. 7 pixels, and the (height, width) that is left.

    Raises ValueError where the shape is no image, is below 8 pixels, or does not halve evenly.
    """
    shape = tuple(image_shape)
    if len(shape) != 3:
        raise SettingError(f"image_shape={shape}: convolutions need images (channels, height, width); try network=mlp")
    _, height, width = shape
    stages = (min(height, width) // 4).bit_length() - 1
    if stages < 1:
        raise SettingError(
            f"image_shape={shape}: {height}x{width} pixels are too few to halve down to 4; "
            "set dataset.resolution to 8 or more, or try network=mlp"
        )
    unit = 2**stages
    if height % unit or width % unit:
        below = min(height, width) // unit * unit
        raise SettingError(
            f"image_shape={shape}: {height}x{width} pixels do not halve evenly {stages} times; "
            f"set dataset.resolution to a size that does, such as {below} or {below + unit}, or try network=mlp"
        )
    return stages, (height // unit, width // unit)


def next_divisible_shape(image_shape: Sequence[int]) -> tuple[int, ...]:
    """The smallest shape from `image_shape` up that halves evenly; others than images as they are."""
    shape = tuple(image_shape)
    while len(shape) == 3 and min(shape[1:]) >= 8:
        unit = 2 ** ((min(shape[1:]) // 4).bit_length() - 1)
        larger = (shape[0], *(-(-side // unit) * unit for side in shape[1:]))
        if larger == shape:
            break
        shape = larger
    return shape


class CenterCropOrPad(nn.Module):
    """Maps (B, C, H, W) cropped, or padded with zeros, about their middle to `sides` (height, width)."""

    def __init__(self, sides: Sequence[int]) -> None:
        super().__init__()
        self.sides = tuple(sides)

    def forward(self, x: Tensor) -> Tensor:
        more_h, more_w = (side - now for side, now in zip(self.sides, x.shape[2:], strict=True))
        if more_h == more_w == 0:
            return x
        return pad(x, (more_w // 2, more_w - more_w // 2, more_h // 2, more_h - more_h // 2))


def widths_for(stages: int, *, channels: int, max_channels: int) -> list[int]:
    """Channels of each stage from the finest to the coarsest: doubled at each, up to `max_channels`."""
    if channels < 1:
        raise SettingError(f"channels={channels}: at least 1")
    if max_channels < channels:
        raise SettingError(f"max_channels={max_channels}: must not be below channels={channels}")
    return [min(channels * 2**stage, max_channels) for stage in range(stages)]
