"""Layers and initialisation that several network families share."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from math import sqrt
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils import parametrizations

from gancli.errors import SettingError, require_at_least
from gancli.networks.base import CrossSampleLayer

MAX_DEPTH = 1_000  # layers or blocks that one setting can ask for
Minibatch = Literal["none", "std", "discrimination"]
Norm = Literal["batch", "group", "none"]
Module = TypeVar("Module", bound=nn.Module)


def make_norm(kind: Norm, channels: int) -> nn.Module:
    """Returns the normalisation layer `kind` for maps (B, channels, H, W). Raises SettingError for an unknown kind.

    "group" takes at most 32 groups of at least 4 channels (Wu & He, ECCV 2018), one group below 8 channels.
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
    """Batch normalisation with the statistics of the whole batch, also where several processes share it.

    Unlike torch's SyncBatchNorm it is twice differentiable, as gradient penalties need, and runs on any device.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Returns the normalised maps (B, channels, H, W) of this process's maps of the same shape."""
        group = self.active_group
        if group.world_size == 1:
            return super().forward(x)
        x, dtype = x.float(), x.dtype
        local_var, local_mean = torch.var_mean(x, (0, 2, 3), unbiased=False)
        means, variances = group.all_gather(torch.stack([local_mean, local_var])[None]).unbind(1)  # (world_size, C)
        # The variance of the whole batch from those of equal parts (Chan et al., 1979). Unlike E[x^2] - E[x]^2 it does
        # not subtract large, nearly equal numbers.
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
    """Divides the weight of each convolution, linear layer and embedding by its largest singular value, in place.

    Each forward pass in training mode makes one power iteration (Miyato et al., ICLR 2018, algorithm 1). Call this
    after initialising the weights, because the iteration starts from them. Returns `network`.
    """
    # A list, because registering a parametrization adds modules.
    for layer in [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear, nn.Embedding))]:
        parametrizations.spectral_norm(layer)
    return network


def he_(network: Module, slope: float) -> Module:
    """Initialises weights so that each layer keeps the scale of its input, and biases to zero. Returns `network`.

    slope: negative slope of the leaky ReLU before each layer; 0 for ReLU, 1 for no activation (He et al., ICCV 2015,
    eq. 15).
    """
    for layer in network.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            fan_in = layer.weight[0].numel()
            if isinstance(layer, nn.ConvTranspose2d):  # (in, out, k, k); k / stride taps per output pixel and side
                (kernel, _), (stride, _) = layer.kernel_size, layer.stride
                fan_in = layer.in_channels * kernel**2 // stride**2
            nn.init.normal_(layer.weight, std=sqrt(2 / (1 + slope**2) / fan_in))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return network


def dcgan_(network: Module) -> Module:
    """Initialises weights from N(0, 0.02), gains of normalisations from N(1, 0.02), biases to zero. Returns `network`.

    For networks whose normalisation layers set the scale of the activations (Radford et al., ICLR 2016).
    """
    for layer in network.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, (nn.BatchNorm2d, nn.GroupNorm)):
            nn.init.normal_(layer.weight, mean=1.0, std=0.02)
    return network


class ClassEmbedding(nn.Module):
    """Concatenates noise (B, latent_dim) with a learned embedding of the class, if there are classes: (B, features).

    The embedding has as many dimensions as the noise and starts from N(0, 0.1^2), small beside the noise: at the same
    scale generators come to ignore the noise, so that the samples of a class are all alike.
    """

    def __init__(self, latent_dim: int, num_classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_classes, latent_dim) if num_classes else None
        if self.embedding is not None:
            nn.init.normal_(self.embedding.weight, std=0.1)
        self.features = latent_dim * (2 if num_classes else 1)

    def forward(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """labels: int64 (B,), or float (B, num_classes), the shares of the classes in a mixture of their embeddings."""
        if self.embedding is None:
            return z
        labels = require_labels(labels)
        embedded = labels @ self.embedding.weight if labels.is_floating_point() else self.embedding(labels)
        return torch.cat([z, embedded], dim=1)


class ProjectionHead(nn.Module):
    """Maps features h (B, features) to logits (B,): w.h + b, plus embed(y).h if there are classes.

    Projection discriminator (Miyato & Koyama, ICLR 2018, eq. 4). Logits are at least float32 under autocast too, since
    losses depend on differences of theirs that bf16 rounds away.
    """

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        self.linear = he_(nn.Linear(features, 1), slope=1)
        self.embedding = nn.Embedding(num_classes, features) if num_classes else None
        if self.embedding is not None:
            nn.init.normal_(self.embedding.weight, std=features**-0.5)  # the scale of the linear part

    def forward(self, h: Tensor, labels: Tensor | None) -> Tensor:
        h = h.to(torch.promote_types(h.dtype, torch.float32))
        known = torch.amp.is_autocast_available(h.device.type)
        with torch.autocast(h.device.type, enabled=False) if known else nullcontext():
            logits: Tensor = self.linear(h).squeeze(1)
        return logits if self.embedding is None else logits + (self.embedding(require_labels(labels)) * h).sum(1)


class MinibatchStd(CrossSampleLayer):
    """Appends one channel with the standard deviation across samples: (B, F, ...) -> (B, F + 1, ...).

    The channel holds the standard deviation over a group of samples, averaged over channels and pixels (Karras et al.,
    ICLR 2018, section 3). The group size is the largest divisor of B up to `group`, and a group takes every
    (B / size)-th sample; if B is a prime above `group`, groups have one sample and the channel is constant.
    Raises SettingError.
    """

    def __init__(self, *, group: int = 4) -> None:
        super().__init__()
        require_at_least(1, group=group)
        self.group = group

    def forward(self, h: Tensor) -> Tensor:
        processes = self.active_group
        whole_batch = processes.all_gather(h.float())
        size = max(size for size in range(1, self.group + 1) if len(whole_batch) % size == 0)
        grouped = whole_batch.unflatten(0, (size, -1))
        # 1e-8 keeps the square root's derivatives finite for identical samples.
        std = (grouped.var(0, unbiased=False) + 1e-8).sqrt().flatten(1).mean(1)
        channel = processes.local_shard(std.repeat(size)).to(h.dtype).view(-1, 1, *[1] * (h.ndim - 2))
        return torch.cat([h, channel.expand(-1, 1, *h.shape[2:])], dim=1)


class MinibatchDiscrimination(CrossSampleLayer):
    """Appends each sample's closeness to the other samples of its batch: features (B, F) -> (B, F + kernels).

    o(i)_b = sum over j != i of exp(-|M_ib - M_jb|_1), where M_i = T h_i has `dims` numbers for each kernel b
    (Salimans et al., NeurIPS 2016, eq. 1 and 2).
    """

    def __init__(self, features: int, *, kernels: int = 32, dims: int = 8) -> None:
        super().__init__()
        self.kernels = kernels
        self.tensor = he_(nn.Linear(features, kernels * dims, bias=False), slope=1)

    def forward(self, h: Tensor) -> Tensor:
        rows = self.tensor(h).float().unflatten(1, (self.kernels, -1))
        distance = (rows[:, None] - self.active_group.all_gather(rows)).abs().sum(3)
        return torch.cat([h, (torch.exp(-distance).sum(1) - 1).to(h.dtype)], dim=1)  # - 1 for j = i


def minibatch_layer(kind: Minibatch, features: int) -> tuple[nn.Module, int]:
    """Returns the layer `kind` that compares the samples of a batch, for features (B, features), and its output width.

    Raises SettingError for an unknown kind.
    """
    if kind == "none":
        return nn.Identity(), features
    if kind == "std":
        return MinibatchStd(), features + 1
    if kind == "discrimination":
        layer = MinibatchDiscrimination(features)
        return layer, features + layer.kernels
    raise SettingError(f"minibatch={kind}: one of none, std, discrimination")


def require_labels(labels: Tensor | None) -> Tensor:
    """Returns `labels`. Raises ValueError if they are None."""
    if labels is None:
        raise ValueError("labels=None: this network has classes and needs an int64 label for each sample")
    return labels


def stages_for(image_shape: Sequence[int]) -> tuple[int, tuple[int, int]]:
    """Returns the number of halvings that bring the smaller side to 4 .. 7 pixels, and the (height, width) after them.

    Raises SettingError if `image_shape` is not (C, H, W), a side is below 8 pixels, or the sides do not halve evenly.
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
    """Returns the smallest shape not below `image_shape` whose sides halve evenly as `stages_for` needs.

    Shapes that `stages_for` refuses for other reasons are returned unchanged.
    """
    shape = tuple(image_shape)
    while len(shape) == 3 and min(shape[1:]) >= 8:
        unit = 2 ** ((min(shape[1:]) // 4).bit_length() - 1)
        larger = (shape[0], *(-(-side // unit) * unit for side in shape[1:]))
        if larger == shape:
            break
        shape = larger
    return shape


class CenterCropOrPad(nn.Module):
    """Crops maps (B, C, H, W), or pads them with zeros, around their centre to `sides` (height, width)."""

    def __init__(self, sides: Sequence[int]) -> None:
        super().__init__()
        self.sides = tuple(sides)

    def forward(self, x: Tensor) -> Tensor:
        pad_h, pad_w = (after - before for after, before in zip(self.sides, x.shape[2:], strict=True))  # < 0: crop
        if pad_h == pad_w == 0:
            return x
        return pad(x, (pad_w // 2, pad_w - pad_w // 2, pad_h // 2, pad_h - pad_h // 2))


def widths_for(stages: int, *, channels: int, max_channels: int) -> list[int]:
    """Returns the channels of each stage from the finest to the coarsest: doubled at each, up to `max_channels`.

    Raises SettingError.
    """
    require_at_least(1, channels=channels)
    if max_channels < channels:
        raise SettingError(f"max_channels={max_channels}: at least channels={channels}")
    return [min(channels * 2**stage, max_channels) for stage in range(stages)]
