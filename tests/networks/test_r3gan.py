from __future__ import annotations

import copy
from math import sqrt

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, leaky_relu

from gancli.errors import SettingError
from gancli.networks import r3gan, resampling
from gancli.networks.r3gan import R3GANDiscriminator, R3GANGenerator

SMALL = {"channels": 4, "max_channels": 8}
SHAPES = [(1, 8, 8), (2, 9, 15), (1, 28, 28), (3, 36, 50), (4, 32, 48), (3, 128, 128)]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def perturbed(network: nn.Module) -> nn.Module:
    """Moves the parameters away from their initialisation, where residual branches are zero."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return network


def blocks_of(network: nn.Module) -> list[r3gan._Block]:
    return [module for module in network.modules() if isinstance(module, r3gan._Block)]


def weights_of(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in network.named_parameters() if not name.endswith("bias")}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_networks_take_images_of_any_shape_from_8_pixels(shape: tuple[int, ...]) -> None:
    images = R3GANGenerator(latent_dim=5, image_shape=shape, **SMALL)(torch.randn(2, 5))
    assert images.shape == (2, *shape)
    logits = R3GANDiscriminator(image_shape=shape, **SMALL)(images)
    assert logits.shape == (2,)
    assert logits.isfinite().all()


def test_a_block_equals_its_formula() -> None:
    block = perturbed(r3gan._Block(4, depth=3, group_size=2, expansion=2))
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
                    shifted = padded[:, out // 2 * 2 + k, i : i + 5, j : j + 6]
                    z[:, out] += block.grouped.weight[out, k, i, j] * shifted
    expected = x + pointwise(block.reduce, leaky_relu(z, 0.2))
    assert torch.allclose(block(x), expected, atol=1e-4)
    assert block.reduce.bias is None


@pytest.mark.parametrize(
    ("channels", "group_size", "groups"), [(32, 16, 4), (4, 16, 1), (8, 16, 1), (12, 16, 1), (20, 16, 2), (4, 1, 8)]
)
def test_groups_have_at_least_group_size_channels(channels: int, group_size: int, groups: int) -> None:
    assert r3gan._Block(channels, depth=1, group_size=group_size, expansion=2).grouped.groups == groups


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("make", ["generator", "discriminator"])
def test_blocks_have_the_fixup_initialisation(make: str, blocks: int) -> None:
    settings = {"image_shape": (3, 16, 16), "channels": 32, "blocks": blocks}
    network = R3GANGenerator(latent_dim=8, **settings) if make == "generator" else R3GANDiscriminator(**settings)
    all_blocks = blocks_of(network)
    assert len(all_blocks) == 3 * blocks  # at 16, 8 and 4 pixels
    for block in all_blocks:
        for layer in (block.expand, block.grouped):
            std = sqrt(2 / (1 + 0.2**2) / layer.weight[0].numel()) * len(all_blocks) ** -0.25
            assert layer.weight.std().item() == pytest.approx(std, rel=0.1)
            assert not layer.bias.any()
        assert not block.reduce.weight.any()


def test_untrained_networks_are_linear() -> None:
    generator = R3GANGenerator(latent_dim=5, image_shape=(1, 16, 16), **SMALL)
    discriminator = R3GANDiscriminator(image_shape=(1, 16, 16), **SMALL)
    for network, (a, b) in ((generator, torch.randn(2, 3, 5)), (discriminator, torch.randn(2, 3, 1, 16, 16))):
        assert network(a).abs().max() > 0.01
        assert torch.allclose(network(2 * a + b), 2 * network(a) + network(b), atol=1e-5)


def test_generated_images_initially_have_unit_scale_and_are_unbounded() -> None:
    generator = R3GANGenerator(latent_dim=64, image_shape=(3, 32, 32))
    z = torch.randn(8, 64)
    assert generator.basis.std().item() == pytest.approx(1, abs=0.1)
    assert 0.4 < generator(z).std() < 1.6
    assert generator(100 * z).abs().max() > 10


def test_the_noise_scales_the_channels_of_the_basis() -> None:
    generator = R3GANGenerator(latent_dim=5, image_shape=(1, 28, 28), num_classes=3, **SMALL)
    assert generator.basis.shape == (8, 7, 7)
    coarsest = []
    generator.stages.register_forward_pre_hook(lambda _, inputs: coarsest.append(inputs[0]))
    z, labels = torch.randn(2, 5), torch.tensor([2, 0])
    generator(z, labels)
    assert generator.noise.embedding is not None
    scale = torch.cat([z, generator.noise.embedding.weight[labels]], 1) @ generator.linear.weight.T
    assert torch.allclose(coarsest[0], torch.einsum("bc,chw->bchw", scale, generator.basis), atol=1e-6)


def test_the_discriminator_pools_the_coarsest_map_with_learned_weights() -> None:
    discriminator = R3GANDiscriminator(image_shape=(1, 32, 48), **SMALL)
    pooling = discriminator.stages[-2]
    coarsest, features = [], []
    pooling.register_forward_pre_hook(lambda _, inputs: coarsest.append(inputs[0]))
    discriminator.head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    discriminator(torch.randn(2, 1, 32, 48))
    assert coarsest[0].shape == (2, 8, 4, 6)
    assert torch.allclose(features[0], (coarsest[0] * pooling.weight[:, 0]).sum((2, 3)), atol=1e-5)


def test_downsampling_applies_the_filter_1_3_3_1() -> None:
    x = torch.randn(2, 3, 6, 8)
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    expected = torch.zeros(2, 3, 3, 4)
    for row in range(3):
        for column in range(4):
            patch = padded[:, :, 2 * row : 2 * row + 4, 2 * column : 2 * column + 4]
            expected[:, :, row, column] = (patch * torch.outer(taps, taps) / 64).sum((2, 3))
    assert torch.allclose(r3gan._down(3, 4)(x), expected, atol=1e-6)
    assert torch.allclose(r3gan._down(4, 4)(torch.ones(1, 1, 8, 8))[..., 1:-1, 1:-1], torch.ones(1))


def test_upsampling_is_bilinear() -> None:
    x = torch.randn(2, 3, 4, 5)
    assert torch.allclose(r3gan._up(4, 5)(x), interpolate(x, scale_factor=2, mode="bilinear"), atol=1e-6)


def test_channels_change_on_the_smaller_map() -> None:
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
        assert sizes == [8]  # channels are 4, 8, 8: one change, at 8 and not at 16 pixels


def test_networks_with_classes_use_and_require_labels() -> None:
    generator = R3GANGenerator(latent_dim=5, image_shape=(1, 8, 8), num_classes=3, **SMALL)
    discriminator = R3GANDiscriminator(image_shape=(1, 8, 8), num_classes=3, **SMALL)
    for network, inputs in ((generator, torch.randn(4, 5)), (discriminator, torch.randn(4, 1, 8, 8))):
        zeros, ones = torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.int64)
        assert not torch.allclose(network(inputs, zeros), network(inputs, ones))
        with pytest.raises(ValueError, match="labels=None"):
            network(inputs)


def test_logits_do_not_depend_on_other_samples() -> None:
    discriminator = perturbed(R3GANDiscriminator(image_shape=(1, 16, 16), **SMALL))
    x = torch.randn(6, 1, 16, 16)
    assert discriminator.per_sample
    assert torch.allclose(discriminator(x)[:2], discriminator(x[:2]), rtol=1e-4, atol=1e-4)


def test_gradients_reach_every_parameter() -> None:
    generator = perturbed(R3GANGenerator(latent_dim=5, image_shape=(1, 16, 16), num_classes=2, **SMALL))
    discriminator = perturbed(R3GANDiscriminator(image_shape=(1, 16, 16), num_classes=2, **SMALL))
    labels = torch.tensor([0, 1, 0, 1])
    discriminator(generator(torch.randn(4, 5), labels), labels).square().sum().backward()
    for network in (generator, discriminator):
        assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_only_the_last_layer_of_a_block_has_a_gradient_initially() -> None:
    discriminator = R3GANDiscriminator(image_shape=(1, 16, 16), **SMALL)
    discriminator(torch.randn(4, 1, 16, 16)).square().sum().backward()
    for block in blocks_of(discriminator):
        assert block.reduce.weight.grad.any()
        assert not block.expand.weight.grad.any()


def test_double_backward_reaches_every_weight_and_equals_finite_differences() -> None:
    discriminator = perturbed(R3GANDiscriminator(image_shape=(1, 16, 16), **SMALL)).double()
    x, along = torch.randn(2, 2, 1, 16, 16, dtype=torch.double)

    def penalty(inputs: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(discriminator(inputs).sum(), inputs, create_graph=True)
        return gradient.square().sum().log()

    above, below = (penalty((x + step * along).requires_grad_()) for step in (1e-7, -1e-7))
    x.requires_grad_()
    value = penalty(x)
    (slope,) = torch.autograd.grad(value, x, retain_graph=True)
    difference = (above - below).item() / 2e-7
    # Leaky ReLU is piecewise linear, so that the penalty is constant almost everywhere.
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


def test_the_discriminator_learns_to_distinguish_textures() -> None:
    discriminator = R3GANDiscriminator(image_shape=(1, 8, 8), channels=8, max_channels=16)
    adam = torch.optim.Adam(discriminator.parameters(), lr=5e-3)
    for _ in range(40):
        fine = torch.randn(32, 1, 8, 8)
        coarse = interpolate(torch.randn(32, 1, 4, 4), scale_factor=2)  # same mean, same variance
        loss = nn.functional.softplus(torch.cat([discriminator(fine), -discriminator(coarse)])).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert loss < 0.35  # a linear network stays at log 2


def test_memory_format_and_bfloat16_change_outputs_little() -> None:
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


def test_a_loaded_state_makes_discriminators_equal() -> None:
    first, second = (perturbed(R3GANDiscriminator(image_shape=(1, 8, 8), **SMALL)) for _ in range(2))
    assert set(first.state_dict()) == {name for name, _ in first.named_parameters()}  # the filters are not saved
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
def test_wrong_settings_are_named(settings: dict, text: str) -> None:
    for make in (R3GANDiscriminator, lambda **kwargs: R3GANGenerator(latent_dim=4, **kwargs)):
        with pytest.raises(SettingError) as caught:
            make(**{"image_shape": (1, 8, 8), **settings})
        assert str(caught.value).startswith(text)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [3, 8])
@pytest.mark.parametrize(("before", "after"), [((4, 6), (8, 12)), ((7, 3), (9, 5)), ((2, 2), (2, 2))])
def test_resampling_by_matrix_products_is_bilinear_interpolation(before, after, channels, memory_format):
    maps = torch.randn(2, channels, *before, generator=torch.Generator().manual_seed(0))
    maps = maps.contiguous(memory_format=memory_format)
    expected = torch.nn.functional.interpolate(maps, size=after, mode="bilinear")
    torch.testing.assert_close(resampling.bilinear(before, after)(maps), expected)


@pytest.mark.parametrize(("before", "after"), [((8, 16), (4, 4)), ((7, 6), (4, 4)), ((4, 4), (4, 4))])
def test_averages_by_matrix_products_are_adaptive_pooling(before, after):
    maps = torch.randn(2, 8, *before, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.adaptive_avg_pool2d(maps, after)
    torch.testing.assert_close(resampling.area(before, after)(maps), expected)
