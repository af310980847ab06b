from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from gancli.errors import SettingError
from gancli.networks import layers
from gancli.networks.base import Discriminator, Generator
from gancli.networks.dcgan import DCGANDiscriminator, DCGANGenerator
from gancli.networks.fastgan import FastGANGenerator
from gancli.networks.mlp import MLPDiscriminator, MLPGenerator
from gancli.networks.resnet import ResNetDiscriminator, ResNetGenerator

SMALL = {"channels": 4, "max_channels": 8}
SHAPES = [(1, 8, 8), (1, 28, 28), (4, 48, 48), (3, 32, 48)]
GENERATORS = [
    pytest.param(MLPGenerator, {"width": 16}, id="mlp"),
    pytest.param(DCGANGenerator, SMALL, id="dcgan"),
    pytest.param(DCGANGenerator, {**SMALL, "norm": "none"}, id="dcgan-none"),
    pytest.param(ResNetGenerator, {**SMALL, "norm": "group"}, id="resnet-group"),
    pytest.param(ResNetGenerator, SMALL, id="resnet"),
    pytest.param(FastGANGenerator, SMALL, id="fastgan"),
]
DISCRIMINATORS = [
    pytest.param(MLPDiscriminator, {"width": 16}, id="mlp"),
    pytest.param(MLPDiscriminator, {"width": 16, "spectral_norm": True}, id="mlp-spectral"),
    pytest.param(MLPDiscriminator, {"width": 16, "fourier": 1.0}, id="mlp-fourier"),
    pytest.param(DCGANDiscriminator, SMALL, id="dcgan"),
    pytest.param(DCGANDiscriminator, {**SMALL, "norm": "batch"}, id="dcgan-batch"),
    pytest.param(DCGANDiscriminator, {**SMALL, "hidden": 6}, id="dcgan-hidden"),
    pytest.param(DCGANDiscriminator, {**SMALL, "norm": "group", "spectral_norm": True}, id="dcgan-group-spectral"),
    pytest.param(ResNetDiscriminator, SMALL, id="resnet"),
    pytest.param(ResNetDiscriminator, {**SMALL, "norm": "batch", "spectral_norm": False}, id="resnet-batch"),
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def of_class(number: int, count: int) -> Tensor:
    return torch.full((count,), number)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("make", "settings"), GENERATORS)
def test_generated_images_have_the_shape_and_the_range_of_tanh(
    make: type[Generator], settings: dict, shape: tuple[int, ...]
) -> None:
    generator = make(latent_dim=5, image_shape=shape, **settings)
    images = generator(3 * torch.randn(2, 5))
    assert images.shape == (2, *shape)
    assert images.abs().max() <= 1
    assert images.std() > 0.01


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("make", "settings"), DISCRIMINATORS)
def test_a_discriminator_returns_one_logit_per_sample(
    make: type[Discriminator], settings: dict, shape: tuple[int, ...]
) -> None:
    logits = make(image_shape=shape, **settings)(torch.rand(2, *shape) * 2 - 1)
    assert logits.shape == (2,)
    assert logits.isfinite().all()
    assert logits.abs().max() < 100


def test_generated_points_are_unbounded() -> None:
    generator = MLPGenerator(latent_dim=2, image_shape=(3,), width=16)
    points = generator(100 * torch.randn(64, 2))
    assert points.shape == (64, 3)
    assert points.abs().max() > 1
    assert MLPDiscriminator(image_shape=(3,), width=16)(points).shape == (64,)


@pytest.mark.parametrize(("make", "settings"), GENERATORS)
def test_generators_with_classes_use_and_require_labels(make: type[Generator], settings: dict) -> None:
    generator = make(latent_dim=5, image_shape=(1, 8, 8), num_classes=3, **settings).eval()
    z = torch.randn(4, 5)
    assert not torch.allclose(generator(z, of_class(0, 4)), generator(z, of_class(1, 4)))
    with pytest.raises(ValueError, match="labels=None"):
        generator(z)


@pytest.mark.parametrize(("make", "settings"), DISCRIMINATORS)
def test_discriminators_with_classes_use_and_require_labels(make: type[Discriminator], settings: dict) -> None:
    discriminator = make(image_shape=(1, 8, 8), num_classes=3, **settings).eval()
    x = torch.randn(4, 1, 8, 8)
    assert not torch.allclose(discriminator(x, of_class(0, 4)), discriminator(x, of_class(1, 4)))
    with pytest.raises(ValueError, match="labels=None"):
        discriminator(x)


def test_projection_head_equals_its_formula() -> None:
    head = layers.ProjectionHead(5, 3)
    h, labels = torch.randn(4, 5), torch.tensor([0, 1, 2, 1])
    assert head.embedding is not None
    expected = h @ head.linear.weight[0] + head.linear.bias + (head.embedding.weight[labels] * h).sum(1)
    assert torch.allclose(head(h, labels), expected, atol=1e-6)


@pytest.mark.parametrize(("make", "settings"), DISCRIMINATORS)
def test_per_sample_is_false_only_with_batch_norm(make: type[Discriminator], settings: dict) -> None:
    discriminator = make(image_shape=(1, 16, 16), **settings)
    x = torch.randn(6, 1, 16, 16)
    # Copies, since the power iteration of spectral normalisation changes the weights in each pass.
    together, alone = copy.deepcopy(discriminator)(x), copy.deepcopy(discriminator)(x[:2])
    assert discriminator.per_sample == torch.allclose(together[:2], alone, atol=1e-5)
    assert discriminator.per_sample == (settings.get("norm") != "batch")


@pytest.mark.parametrize(("make", "settings"), DISCRIMINATORS)
def test_double_backward_reaches_every_weight(make: type[Discriminator], settings: dict) -> None:
    discriminator = make(image_shape=(3, 16, 16), num_classes=2, **settings)
    x = torch.randn(4, 3, 16, 16, requires_grad=True)
    logits = discriminator(x, torch.tensor([0, 1, 0, 1]))
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    gradient.square().sum().backward()
    reached = [p for name, p in discriminator.named_parameters() if name.endswith(("weight", "original"))]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in reached)


def test_double_backward_equals_finite_differences() -> None:
    discriminator = DCGANDiscriminator(image_shape=(1, 16, 16), channels=4, norm="group").double()
    x, along = torch.randn(2, 2, 1, 16, 16, dtype=torch.double)

    def penalty(inputs: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(discriminator(inputs).sum(), inputs, create_graph=True)
        return gradient.square().sum()

    above, below = (penalty((x + step * along).requires_grad_()) for step in (1e-6, -1e-6))
    x.requires_grad_()
    (slope,) = torch.autograd.grad(penalty(x), x)
    assert abs(above - below) > 1e-9
    assert (slope * along).sum().item() == pytest.approx((above - below).item() / 2e-6, rel=1e-4)


@pytest.mark.parametrize(("make", "settings"), GENERATORS)
def test_gradient_reaches_every_parameter_of_generator(make: type[Generator], settings: dict) -> None:
    generator = make(latent_dim=5, image_shape=(1, 16, 16), num_classes=2, **settings)
    images = generator(torch.randn(4, 5), torch.tensor([0, 1, 0, 1]))
    (images * torch.randn_like(images)).sum().backward()
    assert [name for name, p in generator.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(("make", "settings"), DISCRIMINATORS)
def test_gradient_reaches_every_parameter_of_discriminator(make: type[Discriminator], settings: dict) -> None:
    discriminator = make(image_shape=(1, 16, 16), num_classes=2, **settings)
    discriminator(torch.randn(4, 1, 16, 16), torch.tensor([0, 1, 0, 1])).square().sum().backward()
    assert [name for name, p in discriminator.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("make", [MLPDiscriminator, DCGANDiscriminator, ResNetDiscriminator])
def test_spectral_norm_keeps_singular_values_near_one(make: type[Discriminator]) -> None:
    settings = {"width": 16} if make is MLPDiscriminator else SMALL
    discriminator = make(image_shape=(1, 16, 16), num_classes=4, spectral_norm=True, **settings)
    for _ in range(10):
        discriminator(torch.randn(2, 1, 16, 16), of_class(1, 2))
    discriminator.eval()
    weights = [m.weight for m in discriminator.modules() if isinstance(m, (nn.Conv2d, nn.Linear, nn.Embedding))]
    assert len(weights) >= 4
    for weight in weights:
        assert torch.linalg.matrix_norm(weight.flatten(1), ord=2).item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("make", "settings"), DISCRIMINATORS)
def test_a_loaded_state_makes_discriminators_equal(make: type[Discriminator], settings: dict) -> None:
    first, second = (make(image_shape=(1, 8, 8), **settings) for _ in range(2))
    x = torch.randn(3, 1, 8, 8)
    first(x)  # changes the buffers of spectral and batch normalisation
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))


@pytest.mark.parametrize(("make", "settings"), GENERATORS)
def test_a_loaded_state_makes_generators_equal(make: type[Generator], settings: dict) -> None:
    first, second = (make(latent_dim=4, image_shape=(1, 8, 8), **settings) for _ in range(2))
    z = torch.randn(3, 4)
    first(z)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.eval()(z), second.eval()(z))


@pytest.mark.parametrize("make", [DCGANDiscriminator, ResNetDiscriminator])
def test_memory_format_and_bfloat16_change_logits_little(make: type[Discriminator]) -> None:
    discriminator = make(image_shape=(3, 16, 16), spectral_norm=True, **SMALL).eval()
    x = torch.randn(4, 3, 16, 16)
    before = discriminator(x)
    discriminator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert torch.allclose(discriminator(x), before, atol=1e-5, rtol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(discriminator(x).float(), before, atol=0.1, rtol=0.1)
        discriminator.train()(x).sum().backward()  # with power iterations


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((1, 8, 8), (1, (4, 4))),
        ((1, 28, 28), (2, (7, 7))),
        ((3, 32, 48), (3, (4, 6))),
        ((3, 96, 96), (4, (6, 6))),
        ((3, 256, 256), (6, (4, 4))),
    ],
)
def test_stages_halve_the_smaller_side_to_4_to_7_pixels(
    shape: tuple[int, ...], expected: tuple[int, tuple[int, int]]
) -> None:
    assert layers.stages_for(shape) == expected


@pytest.mark.parametrize(
    ("shape", "texts"),
    [
        ((3, 30, 30), ["image_shape=(3, 30, 30)", "30x30", "dataset.resolution", "28 or 32"]),
        ((3, 32, 33), ["32x33", "dataset.resolution"]),
        ((1, 7, 7), ["7x7", "too few", "8 or more"]),
        ((2,), ["image_shape=(2,)", "network=mlp"]),
    ],
)
@pytest.mark.parametrize("make", [DCGANDiscriminator, ResNetDiscriminator])
def test_sizes_that_do_not_halve_evenly_are_refused(
    make: type[Discriminator], shape: tuple[int, ...], texts: list
) -> None:
    with pytest.raises(SettingError) as caught:
        make(image_shape=shape)
    assert all(text in str(caught.value) for text in texts)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"channels": 0}, "channels=0"),
        ({"max_channels": 4}, "max_channels=4"),
        ({"norm": "layer"}, "norm=layer"),
        ({"latent_dim": 0}, "latent_dim=0"),
        ({"num_classes": -1}, "num_classes=-1"),
        ({"image_shape": (3, 32)}, "image_shape=(3, 32)"),
    ],
)
@pytest.mark.parametrize("make", [DCGANGenerator, ResNetGenerator])
def test_wrong_settings_are_named(make: type[Generator], settings: dict, text: str) -> None:
    with pytest.raises(SettingError) as caught:
        make(**{"latent_dim": 4, "image_shape": (1, 8, 8), **settings})
    assert str(caught.value).startswith(text)


def test_all_wrong_mlp_settings_are_named_in_one_error() -> None:
    with pytest.raises(SettingError, match=r"^width=0: at least 1\ndepth=-1: at least 1$"):
        MLPDiscriminator(image_shape=(2,), width=0, depth=-1)
    with pytest.raises(SettingError, match=r"^fourier=-1.0: at least 0$"):
        MLPDiscriminator(image_shape=(2,), fourier=-1.0)
    with pytest.raises(SettingError, match=r"^hidden=-1: at least 0$"):
        DCGANDiscriminator(image_shape=(1, 8, 8), hidden=-1)


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (6, 1), (8, 2), (48, 12), (64, 16), (128, 32), (512, 32)])
def test_group_norm_has_groups_of_at_least_4_channels(channels: int, groups: int) -> None:
    layer = layers.make_norm("group", channels)
    assert isinstance(layer, nn.GroupNorm)
    assert layer.num_groups == groups


def test_he_initialisation_keeps_the_scale_of_transposed_convolutions() -> None:
    layer = layers.he_(nn.ConvTranspose2d(64, 64, 4, stride=2, padding=1), slope=1)
    assert layer(torch.randn(4, 64, 16, 16))[..., 2:-2, 2:-2].std().item() == pytest.approx(1, abs=0.1)


def test_the_first_layer_of_an_mlp_changes_slope_in_bias_range() -> None:
    generator = MLPGenerator(latent_dim=1, image_shape=(1,), width=64, depth=1, bias_range=[2.0, 3.0])
    first = generator.hidden[0]
    zeros = -first.bias / first.weight[:, 0]
    assert 2 <= zeros.min() < 2.2 and 2.8 < zeros.max() <= 3
    assert not MLPGenerator(latent_dim=1, image_shape=(1,)).hidden[0].bias.any()


@pytest.mark.parametrize("bias_range", [[0.0, 0.0], [1.0]])
def test_bias_range_is_two_increasing_numbers(bias_range: list[float]) -> None:
    with pytest.raises(SettingError, match=r"^bias_range=.*: two numbers, the lower one first"):
        MLPGenerator(latent_dim=1, image_shape=(1,), bias_range=bias_range)
