"""Convolutions are torch's, to any derivative, and take no more calls where they have groups."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import grad, gradcheck, gradgradcheck

from gancli.game import Penalty
from gancli.networks.base import Generator
from gancli.networks.convolution import Conv2d, ConvTranspose2d
from gancli.networks.dcgan import DCGANDiscriminator
from gancli.networks.r3gan import R3GANDiscriminator
from gancli.networks.resnet import ResNetDiscriminator
from gancli.penalties import R1, R2, WGANGP

count_operations = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "count_operations.py"))

KINDS = {
    "plain": (Conv2d, {"in_channels": 2, "out_channels": 3, "kernel_size": 3, "padding": 1}, (2, 2, 4, 5)),
    "1x1": (Conv2d, {"in_channels": 2, "out_channels": 3, "kernel_size": 1, "bias": False}, (2, 2, 3, 4)),
    "strided": (
        Conv2d,
        {"in_channels": 2, "out_channels": 3, "kernel_size": 4, "stride": 2, "padding": 1},
        (2, 2, 7, 6),
    ),
    "grouped": (
        Conv2d,
        {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding": 1, "groups": 2},
        (2, 4, 4, 5),
    ),
    "dilated depthwise": (
        Conv2d,
        {"in_channels": 3, "out_channels": 3, "kernel_size": 3, "stride": 2, "padding": 2, "dilation": 2, "groups": 3},
        (2, 3, 7, 8),
    ),
    "transposed": (
        ConvTranspose2d,
        {"in_channels": 2, "out_channels": 3, "kernel_size": 4, "stride": 2, "padding": 1},
        (2, 2, 3, 4),
    ),
    "grouped transposed": (
        ConvTranspose2d,
        {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "stride": 2, "output_padding": 1, "groups": 2},
        (2, 4, 3, 3),
    ),
}


def layer_and_torchs(kind: str, **more: object) -> tuple[nn.Module, nn.Module, tuple[int, ...]]:
    torch.manual_seed(0)
    make, settings, shape = KINDS[kind]
    layer = make(**settings, **more)
    torchs = (nn.ConvTranspose2d if make is ConvTranspose2d else nn.Conv2d)(**settings, **more)
    torchs.load_state_dict(layer.state_dict())
    return layer, torchs, shape


def penalised_gradients(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """The layer's outputs, and the gradients of a loss that contains the gradient with respect to `x`."""
    x = x.clone().requires_grad_()
    outputs = layer(x)
    (inner,) = grad(outputs.float().tanh().sum(), x, create_graph=True)
    weights = list(layer.parameters())
    return [outputs, inner, *grad(inner.square().sum() + outputs.float().square().sum(), [x, *weights])]


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_of_both_orders_are_those_of_differences(kind: str) -> None:
    layer, _, shape = layer_and_torchs(kind, dtype=torch.float64)
    names, weights = zip(*layer.named_parameters(), strict=True)
    arguments = (torch.randn(shape, dtype=torch.float64, requires_grad=True), *weights)

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert gradcheck(call, arguments)
    assert gradgradcheck(call, arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_penalised_gradients_are_torchs(kind: str) -> None:
    layer, torchs, shape = layer_and_torchs(kind)
    x = torch.randn(shape)
    for ours, expected in zip(penalised_gradients(layer, x), penalised_gradients(torchs, x), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["grouped", "transposed"])
def test_autocast_computes_in_its_own_type(kind: str) -> None:
    layer, torchs, shape = layer_and_torchs(kind)
    x = torch.randn(shape)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        found, expected = penalised_gradients(layer, x), penalised_gradients(torchs, x)
    assert [tensor.dtype for tensor in found] == [tensor.dtype for tensor in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() < 0.02 * theirs.norm()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_penalised_gradients_are_torchs_on_a_gpu(kind: str, dtype: torch.dtype) -> None:
    layer, torchs, shape = layer_and_torchs(kind)
    layer, torchs = (one.cuda().to(memory_format=torch.channels_last) for one in (layer, torchs))
    x = torch.randn(shape, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        found, expected = penalised_gradients(layer, x), penalised_gradients(torchs, x)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() <= (0.02 if dtype == torch.bfloat16 else 1e-3) * theirs.norm()


def test_channels_last_stays() -> None:
    layer, _, shape = layer_and_torchs("grouped")
    layer = layer.to(memory_format=torch.channels_last)
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last).requires_grad_()
    outputs = layer(x)
    gradients = grad(grad(outputs.tanh().sum(), x, create_graph=True)[0].square().sum(), [x, layer.weight])
    for tensor in (outputs, *gradients):
        assert tensor.is_contiguous(memory_format=torch.channels_last)


def test_third_derivatives_are_torchs() -> None:
    found = []
    for layer in layer_and_torchs("grouped")[:2]:
        x = torch.linspace(-1, 1, 2 * 4 * 4 * 5).view(2, 4, 4, 5).requires_grad_()
        inner = grad(layer(x).tanh().sum(), layer.weight, create_graph=True)[0].square().sum()
        second = grad(inner, x, create_graph=True)[0].square().sum()
        found.append(grad(second, list(layer.parameters())))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


def test_gradients_that_nobody_asked_for_are_not_computed() -> None:
    layer, _, shape = layer_and_torchs("grouped")
    x = torch.randn(shape, requires_grad=True)
    with count_operations["Operations"]() as forward:
        layer(x)
    for asked in (x, layer.weight):
        for create_graph in (True, False):
            with count_operations["Operations"]() as both:
                grad(layer(x).sum(), asked, create_graph=create_graph)
            assert both.convolutions == 2
            assert both.flops == 2 * forward.flops > 0


class OneImage(Generator):
    """No arithmetic of its own, so that what is counted is the discriminator's."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(latent_dim=1, image_shape=shape)
        self.image = nn.Parameter(torch.zeros(shape))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.image.expand(len(z), *self.image_shape)


SHAPE = (3, 16, 16)
DISCRIMINATORS = {
    "dcgan": lambda: DCGANDiscriminator(image_shape=SHAPE, channels=8),
    "resnet": lambda: ResNetDiscriminator(image_shape=SHAPE, channels=8),
    "r3gan": lambda: R3GANDiscriminator(image_shape=SHAPE, channels=16, group_size=4),
}


@pytest.mark.parametrize("name", DISCRIMINATORS)
@pytest.mark.parametrize("penalties", [[R1], [R2], [R1, R2], [WGANGP]], ids=str)
def test_a_penalty_takes_at_most_twice_the_convolutions(name: str, penalties: list[type[Penalty]]) -> None:
    """Torch's derivatives take 7 times the calls for R1 at the widths of experiment=cifar10."""
    plain, found = (
        count_operations["count"]((OneImage(SHAPE), DISCRIMINATORS[name]()), chosen) for chosen in ([], penalties)
    )
    assert 0 < plain.convolutions < found.convolutions <= 2 * plain.convolutions
    assert plain.flops < found.flops <= 2.5 * plain.flops


def test_groups_cost_no_calls() -> None:
    found = []
    for group_size in (2, 32):
        network = R3GANDiscriminator(image_shape=SHAPE, channels=16, group_size=group_size)
        found.append(count_operations["count"]((OneImage(SHAPE), network), [R1, R2]))
    assert found[0].calls == found[1].calls
