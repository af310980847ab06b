"""Convolutions whose derivatives of every order are convolutions, for losses that contain gradients.

A gradient penalty differentiates the discriminator twice. torch's own second derivative of a convolution takes one
convolution per group, and computes weight gradients with kernels as large as the map. But a convolution is linear in
its input and linear in its weight, so that only three operations are ever needed: the convolution, its adjoint, which
is a (transposed) convolution too, and the gradient of the weight. Karras et al. (NeurIPS 2020, code of StyleGAN2-ADA)
met the same.

`scripts/count_operations.py` counts both: a step of R3GAN's networks at 32x32 with R1 and R2 takes 150 calls of
convolutions, and 1,212 with torch's derivatives; without penalties it takes 90.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function

_aten = torch.ops.aten


class _Geometry(NamedTuple):
    """What a convolution is besides its input and weight, in the order of aten::convolution's arguments."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    output_padding: list[int]
    groups: int

    def adjoint(self, weight: Tensor, inputs: torch.Size, outputs: torch.Size) -> _Geometry:
        """Returns the convolution with the same weight that maps gradients of outputs to gradients of inputs.

        inputs, outputs: (B, C, H, W).
        """
        if self.transposed:
            return self._replace(transposed=False, output_padding=[0, 0])
        smallest = [
            (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1
            for size, stride, padding, dilation, kernel in zip(
                outputs[2:], self.stride, self.padding, self.dilation, weight.shape[2:], strict=True
            )
        ]
        missing = [size - least for size, least in zip(inputs[2:], smallest, strict=True)]
        return self._replace(transposed=True, output_padding=missing)


class _Convolution(Function):
    """Inputs (B, in, H, W), weight, bias (out,) or None -> (B, out, H', W')."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        outputs: Tensor = _aten.convolution(x, weight, bias, *geometry)
        return outputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        needed = _needed(ctx)
        if not torch.is_grad_enabled():  # nothing differentiates these gradients, so that one call gives them all
            bias_sizes = [grad.shape[1]]
            return *_aten.convolution_backward(grad, x, weight, bias_sizes, *ctx.geometry, needed), None
        grad_x = grad_weight = grad_bias = None
        if needed[0]:
            grad_x = _Convolution.apply(grad, weight, None, ctx.geometry.adjoint(weight, x.shape, grad.shape))
        if needed[1]:
            grad_weight = _WeightGradient.apply(x, grad, weight, ctx.geometry)
        if needed[2]:
            grad_bias = grad.sum((0, 2, 3))
        return grad_x, grad_weight, grad_bias, None


class _WeightGradient(Function):
    """Inputs (B, in, H, W), gradients of the outputs (B, out, H', W') -> gradient of the weight, of weight's shape."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grad: Tensor, weight: Tensor, geometry: _Geometry) -> Tensor:
        ctx.save_for_backward(x, grad)
        ctx.geometry = geometry
        mask = [False, True, False]
        gradient: Tensor = _aten.convolution_backward(grad, x, weight, None, *geometry, mask)[1]
        return gradient

    @staticmethod
    def backward(ctx: Any, direction: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, grad = ctx.saved_tensors  # <gradient, direction> = <convolution of x with direction, grad>
        needed = _needed(ctx)
        grad_x = grad_grad = None
        if needed[0]:
            grad_x = _Convolution.apply(grad, direction, None, ctx.geometry.adjoint(direction, x.shape, grad.shape))
        if needed[1]:
            grad_grad = _Convolution.apply(x, direction, None, ctx.geometry)
        return grad_x, grad_grad, None, None


def _needed(ctx: Any) -> list[bool]:
    """Returns for each of the three first inputs, the tensors, whether this backward pass needs its gradient.

    `ctx.needs_input_grad` says whether any pass could. A penalty asks for gradients of samples only, and each gradient
    of a weight that nobody asked for would cost as much as the convolution.
    """
    needed = [node is not None and _will_execute(node) for node, _ in ctx.next_functions]
    return [*needed, False][:3]  # a bias that is None has no node


def _will_execute(node: Any) -> bool:
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except RuntimeError:  # raised for the leaves that torch.autograd.grad was asked for
        return True


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry) -> Tensor:
    """Returns the convolution in the type that autocast, where it is on, computes convolutions in."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    outputs: Tensor = _Convolution.apply(x, weight, bias, geometry)
    return outputs


class Conv2d(nn.Conv2d):
    """torch's convolution, padded with a number of zeros, with second derivatives that are convolutions."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        assert self.padding_mode == "zeros" and not isinstance(self.padding, str)
        geometry = _Geometry(list(self.stride), list(self.padding), list(self.dilation), False, [0, 0], self.groups)
        return _convolve(input, weight, bias, geometry)


class ConvTranspose2d(nn.ConvTranspose2d):
    """torch's transposed convolution, with second derivatives that are convolutions."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return self.convolve_with(input, self.weight, self.bias)

    def convolve_with(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Returns this layer's convolution of x (B, in, H, W) with another weight (in, out, k, k) and bias (out,)."""
        geometry = _Geometry(
            list(self.stride),
            [int(size) for size in self.padding],
            list(self.dilation),
            True,
            list(self.output_padding),
            self.groups,
        )
        return _convolve(x, weight, bias, geometry)
