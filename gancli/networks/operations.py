"""The arithmetic of a network, counted in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


@torch.no_grad()
def multiply_adds(network: nn.Module, *inputs: Tensor | None) -> int:
    """Returns how many multiply-adds the linear layers and convolutions of `network` make for `inputs`."""
    total = 0

    def count(layer: Any, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        # Each number that goes into a transposed convolution, or comes out of another layer, meets one such filter.
        numbers = arguments[0] if isinstance(layer, _ConvTransposeNd) else output
        total += numbers.numel() * layer.weight[0].numel()

    layers = [layer for layer in network.modules() if isinstance(layer, (nn.Linear, _ConvNd))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        network(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return total
