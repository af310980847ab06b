from __future__ import annotations

import copy
from math import sqrt

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, leaky_relu

from gancli.networks import r3gan
from gancli.networks.r3gan import R3GANDiscriminator, R3GANGenerator

SMALL = {"channels": 4, "max_channels": 8}
SHAPES = [
    (1, 8, 8),
    (2, 9, 15),
    (1, 28, 28),
    (3, 36, 50),
    (3, 32, 32),
    (4, 48, 48),
    (3, 64, 64),
    (3, 32, 48),
    (3, 256, 256),
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def shaken(network: nn.Module) -> nn.Module:
    """Away from the start, where blocks are zero."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return network


def blocks_of(network: nn.Module) -> list[r3gan._Block]:
    return [module for module in network.modules() if isinstance(module, r3gan._Block)]


def weights_of(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in network.named_parameters() if not name.endswith("bias")}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape: tuple[int, ...]) -> None:
    images = R3GANGenerator(latent_dim=5, image_shape=shape, **SMALL)(torch.randn(2, 5))
    assert images.shape == (2, *shape)
    logits = R3GANDiscriminator(image_shape=shape, **SMALL)(images)
    assert logits.shape == (2,)
    assert logits.isfinite().all()


def test_block_is_its_formula() -> None:
    block = shaken(r3gan._Block(4, depth=3, group_size=2, expansion=2))
    x = torch.randn(2, 4, 5, 6)

    def pointwise(layer: nn.Conv2d, maps: Tensor) -> Tensor:
        return torch.einsum("oi,bihw->bohw", layer.weight[:, :, 0, 0], maps)

    y = leaky_relu(pointwise(block.expand, x) + block.expand.bias[:, None, None], 0.2)
    padded = nn.functional.pad(y, (1, 1, 1, 1))
    z = block.grouped.bias[:, None, None].expand(2, 8, 5, 6).clone()
    for out in range(8):
        for k in range(2):  # the two channels of its group
            for i in range(3):
                for j in range(3):
                    seen = padded[:, out // 2 * 2 + k, i : i + 5, j : j + 6]
                    z[:, out] += block.grouped.weight[out, k, i, j] * seen
    expected = x + pointwise(block.reduce, leaky_relu(z, 0.2))
    assert torch.allclose(block(x), expected, atol=1e-4)
    assert block.reduce.bias is None


@pytest.mark.parametrize(
    ("channels", "group_size", "groups"), [(32, 16, 4), (4, 16, 1), (8, 16, 1), (12, 16, 1), (20, 16, 2), (4, 1, 8)]
)
def test_groups_have_the_size_or_more(channels: int, group_size: int, groups: int) -> None:
    assert r3gan._Block(channels, depth=1, group_size=group_size, expansion=2).grouped.groups == groups


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("make", ["generator", "discriminator"])
def test_blocks_start_as_fixup_says(make: str, blocks: int) -> None:
    settings = {"image_shape": (3, 16, 16), "channels": 32, "blocks": blocks}
    network = R3GANGenerator(latent_dim=8, **settings) if make == "generator" else R3GANDiscriminator(**settings)
    found = blocks_of(network)
    assert len(found) == 3 * blocks  # at 16, 8 and 4 pixels
    for block in found:
        for layer in (block.expand, block.grouped):
            std = sqrt(2 / (1 + 0.2**2) / layer.weight[0].numel()) * len(found) ** -0.25
            assert layer.weight.std().item() == pytest.approx(std, rel=0.1)
            assert not layer.bias.any()
        assert not block.reduce.weight.any()


def test_networks_start_linear() -> None:
    generator = R3GANGenerator(latent_dim=5, image_shape=(1, 16, 16), **SMALL)
    discriminator = R3GANDiscriminator(image_shape=(1, 16, 16), **SMALL)
    for network, (a, b) in ((generator, torch.randn(2, 3, 5)), (discriminator, torch.randn(2, 3, 1, 16, 16))):
        assert network(a).abs().max() > 0.01
        assert torch.allclose(network(2 * a + b), 2 * network(a) + network(b), atol=1e-5)


def test_images_start_at_unit_scale_and_have_no_bounds() -> None:
    generator = R3GANGenerator(latent_dim=64, image_shape=(3, 32, 32))
    z = torch.randn(8, 64)
    assert generator.basis.std().item() == pytest.approx(1, abs=0.1)
    assert 0.4 < generator(z).std() < 1.6
    assert generator(100 * z).abs().max() > 10


def test_generator_starts_from_the_basis() -> None:
    generator = R3GANGenerator(latent_dim=5, image_shape=(1, 28, 28), num_classes=3, **SMALL)
    assert generator.basis.shape == (8, 7, 7)
    given = []
    generator.stages.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    z, labels = torch.randn(2, 5), torch.tensor([2, 0])
    generator(z, labels)
    assert generator.noise.embedding is not None
    scale = torch.cat([z, generator.noise.embedding.weight[labels]], 1) @ generator.linear.weight.T
    assert torch.allclose(given[0], torch.einsum("bc,chw->bchw", scale, generator.basis), atol=1e-6)


def test_discriminator_weighs_the_coarsest_map() -> None:
    discriminator = R3GANDiscriminator(image_shape=(1, 32, 48), **SMALL)
    weighing = discriminator.stages[-2]
    given, features = [], []
    weighing.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    discriminator.head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    discriminator(torch.randn(2, 1, 32, 48))
    assert given[0].shape == (2, 8, 4, 6)
    assert torch.allclose(features[0], (given[0] * weighing.weight[:, 0]).sum((2, 3)), atol=1e-5)


def test_down_is_the_filter() -> None:
    x = torch.randn(2, 3, 6, 8)
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    expected = torch.zeros(2, 3, 3, 4)
    for row in range(3):
        for column in range(4):
            seen = padded[:, :, 2 * row : 2 * row + 4, 2 * column : 2 * column + 4]
            expected[:, :, row, column] = (seen * torch.outer(taps, taps) / 64).sum((2, 3))
    assert torch.allclose(r3gan._Down()(x), expected, atol=1e-6)
    assert torch.allclose(r3gan._Down()(torch.ones(1, 1, 8, 8))[..., 1:-1, 1:-1], torch.ones(1))


def test_up_is_bilinear() -> None:
    row = r3gan._Up()(torch.tensor([0.0, 4.0, 8.0]).expand(1, 1, 3, 3))[0, 0, 2]
    assert torch.allclose(row, torch.tensor([0.0, 1.0, 3.0, 5.0, 7.0, 8.0]))


def test_widths_change_on_the_smaller_map() -> None:
    settings = {"image_shape": (3, 16, 16), "channels": 4, "max_channels": 8}
    for network, inputs in (
        (R3GANGenerator(latent_dim=5, **settings), torch.randn(1, 5)),
        (R3GANDiscriminator(**settings), torch.randn(1, 3, 16, 16)),
    ):
        sizes = []
        for layer in network.stages:
            if isinstance(layer, nn.Conv2d) and {layer.in_channels, layer.out_channels} == {4, 8}:
                layer.register_forward_hook(lambda _, __, maps, sizes=sizes: sizes.append(maps.shape[-1]))
                assert layer.bias is None
        network(inputs)
        assert sizes == [8]  # widths are 4, 8, 8: one change, at 8 and not at 16 pixels


def test_networks_follow_labels() -> None:
    generator = R3GANGenerator(latent_dim=5, image_shape=(1, 8, 8), num_classes=3, **SMALL)
    discriminator = R3GANDiscriminator(image_shape=(1, 8, 8), num_classes=3, **SMALL)
    for network, inputs in ((generator, torch.randn(4, 5)), (discriminator, torch.randn(4, 1, 8, 8))):
        zeros, ones = torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.int64)
        assert not torch.allclose(network(inputs, zeros), network(inputs, ones))
        with pytest.raises(ValueError, match="labels=None"):
            network(inputs)


def test_per_sample_is_true_and_so_it_is() -> None:
    discriminator = shaken(R3GANDiscriminator(image_shape=(1, 16, 16), **SMALL))
    x = torch.randn(6, 1, 16, 16)
    assert discriminator.per_sample
    assert torch.allclose(discriminator(x)[:2], discriminator(x[:2]), rtol=1e-4, atol=1e-4)


def test_gradients_reach_every_parameter() -> None:
    generator = shaken(R3GANGenerator(latent_dim=5, image_shape=(1, 16, 16), num_classes=2, **SMALL))
    discriminator = shaken(R3GANDiscriminator(image_shape=(1, 16, 16), num_classes=2, **SMALL))
    labels = torch.tensor([0, 1, 0, 1])
    discriminator(generator(torch.randn(4, 5), labels), labels).square().sum().backward()
    for network in (generator, discriminator):
        assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_only_the_last_of_a_block_learns_in_the_first_step() -> None:
    discriminator = R3GANDiscriminator(image_shape=(1, 16, 16), **SMALL)
    discriminator(torch.randn(4, 1, 16, 16)).square().sum().backward()
    for block in blocks_of(discriminator):
        assert block.reduce.weight.grad.any()
        assert not block.expand.weight.grad.any()


def test_double_backward_reaches_every_weight_and_is_right() -> None:
    discriminator = shaken(R3GANDiscriminator(image_shape=(1, 16, 16), **SMALL)).double()
    x, along = torch.randn(2, 2, 1, 16, 16, dtype=torch.double)

    def penalty(inputs: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(discriminator(inputs).sum(), inputs, create_graph=True)
        return gradient.square().sum().log()

    above, below = (penalty((x + step * along).requires_grad_()) for step in (1e-7, -1e-7))
    x.requires_grad_()
    value = penalty(x)
    (slope,) = torch.autograd.grad(value, x, retain_graph=True)
    difference = (above - below).item() / 2e-7
    # Leaky ReLU is a line nearly everywhere, so there is no curvature to see.
    assert difference == pytest.approx(0, abs=1e-6)
    assert not slope.any()
    value.backward()
    assert [name for name, p in weights_of(discriminator).items() if p.grad is None or not p.grad.any()] == []
    weight = blocks_of(discriminator)[0].grouped.weight
    step = 1e-6 * torch.randn_like(weight)
    with torch.no_grad():
        weight += step
    above = penalty(x).item()
    with torch.no_grad():
        weight -= 2 * step
    below = penalty(x).item()
    assert (weight.grad * step).sum().item() == pytest.approx((above - below) / 2, rel=1e-4)


def test_discriminator_learns_to_tell_textures_apart() -> None:
    discriminator = R3GANDiscriminator(image_shape=(1, 8, 8), channels=8, max_channels=16)
    adam = torch.optim.Adam(discriminator.parameters(), lr=5e-3)
    for _ in range(40):
        fine = torch.randn(32, 1, 8, 8)
        coarse = interpolate(torch.randn(32, 1, 4, 4), scale_factor=2)  # same mean, same variance
        wrong = nn.functional.softplus(torch.cat([discriminator(fine), -discriminator(coarse)]))
        adam.zero_grad()
        wrong.mean().backward()
        adam.step()
    assert wrong.mean() < 0.35  # a linear network stays at log 2


def test_memory_format_and_bfloat16_change_little() -> None:
    discriminator = R3GANDiscriminator(image_shape=(3, 16, 16), channels=16, max_channels=32)
    generator = R3GANGenerator(latent_dim=5, image_shape=(3, 16, 16), channels=16, max_channels=32)
    for network, inputs in ((discriminator, torch.randn(4, 3, 16, 16)), (generator, torch.randn(4, 5))):
        with torch.no_grad():
            for block in blocks_of(network):
                block.reduce.weight.normal_(std=0.1)
        before = network(inputs)
        network.to(memory_format=torch.channels_last)
        assert torch.allclose(network(inputs), before, atol=1e-4, rtol=1e-4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = network(inputs.requires_grad_())
            assert torch.allclose(output.float(), before, atol=0.15, rtol=0.1)
            (gradient,) = torch.autograd.grad(output.float().sum(), inputs, create_graph=True)
        gradient.square().sum().backward()
        assert all(block.expand.weight.grad.isfinite().all() for block in blocks_of(network))


def test_state_makes_a_copy() -> None:
    first, second = (shaken(R3GANDiscriminator(image_shape=(1, 8, 8), **SMALL)) for _ in range(2))
    assert set(first.state_dict()) == {name for name, _ in first.named_parameters()}  # no filters
    x = torch.randn(3, 1, 8, 8)
    assert not torch.equal(first(x), second(x))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert torch.equal(first(x), second(x))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"channels": 0}, "channels=0"),
        ({"max_channels": 4}, "max_channels=4"),
        ({"blocks": 0}, "blocks=0"),
        ({"group_size": 0}, "group_size=0"),
        ({"expansion": 0}, "expansion=0"),
        ({"num_classes": -1}, "num_classes=-1"),
        ({"image_shape": (2,)}, "image_shape=(2,)"),
    ],
)
def test_bad_settings_are_named(settings: dict, text: str) -> None:
    for make in (R3GANDiscriminator, lambda **given: R3GANGenerator(latent_dim=4, **given)):
        with pytest.raises(ValueError) as caught:
            make(**{"image_shape": (1, 8, 8), **settings})
        assert str(caught.value).startswith(text)
