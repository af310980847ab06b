from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gancli.errors import SettingError
from gancli.networks.base import Discriminator
from gancli.networks.dcgan import DCGANDiscriminator
from gancli.networks.mlp import MLPDiscriminator
from gancli.networks.packed import Packed, packed_shape

POINTS, IMAGES = (3,), (2, 8, 8)
SHAPES = pytest.mark.parametrize("shape", [POINTS, IMAGES], ids=["points", "images"])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def packed(shape: tuple[int, ...], pack: int = 3) -> Packed:
    inner: Discriminator
    if len(shape) == 1:
        inner = MLPDiscriminator(image_shape=packed_shape(shape, pack), width=16)
    else:
        inner = DCGANDiscriminator(image_shape=packed_shape(shape, pack), channels=4)
    return Packed(inner, pack=pack)


def test_packed_shape_multiplies_the_channels() -> None:
    assert packed_shape((3, 32, 48), 2) == (6, 32, 48)
    assert packed_shape([2], 4) == (8,)
    assert packed_shape((1, 8, 8), 1) == (1, 8, 8)


@SHAPES
def test_a_packed_discriminator_has_the_shape_of_one_sample(shape: tuple[int, ...]) -> None:
    discriminator = packed(shape)
    assert discriminator.image_shape == shape
    assert discriminator.num_classes == 0
    assert not discriminator.per_sample


@SHAPES
def test_logits_are_those_of_the_inner_network_for_concatenated_samples(shape: tuple[int, ...]) -> None:
    discriminator = packed(shape)
    x = torch.randn(6, *shape)
    first, second = discriminator.inner(torch.stack([torch.cat([*x[:3]]), torch.cat([*x[3:]])]))
    assert not torch.isclose(first, second)
    assert torch.allclose(discriminator(x), torch.stack([first, first, first, second, second, second]))


@SHAPES
@pytest.mark.parametrize(("batch", "last"), [(1, [0, 0, 0]), (2, [0, 1, 0]), (4, [3, 0, 1]), (5, [3, 4, 0])])
def test_an_incomplete_pack_is_filled_up_with_the_first_samples(
    shape: tuple[int, ...], batch: int, last: list[int]
) -> None:
    discriminator = packed(shape)
    x = torch.randn(batch, *shape)
    logits = discriminator(x)
    assert logits.shape == (batch,)
    left = batch % 3
    assert torch.allclose(logits[-left:], discriminator(x[last])[:1].expand(left), atol=1e-6)
    assert torch.allclose(logits[:-left], discriminator(x[: batch - left]) if batch > 3 else torch.empty(0), atol=1e-6)


@SHAPES
@pytest.mark.parametrize("row", [0, 2, 3])
def test_a_logit_depends_on_the_samples_of_its_pack_only(shape: tuple[int, ...], row: int) -> None:
    discriminator = packed(shape)
    x = torch.randn(6, *shape)
    changed = x.clone()
    changed[row] += 1
    same = torch.isclose(discriminator(x), discriminator(changed))
    assert same.tolist() == [index // 3 != row // 3 for index in range(6)]


@SHAPES
@pytest.mark.parametrize("batch", [5, 6])
def test_gradients_reach_all_samples_and_parameters(shape: tuple[int, ...], batch: int) -> None:
    discriminator = packed(shape)
    x = torch.randn(batch, *shape, requires_grad=True)
    discriminator(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.flatten(1).any(1).all()
    assert [name for name, p in discriminator.named_parameters() if p.grad is None or not p.grad.any()] == []


@SHAPES
def test_gradient_of_repeated_logits_is_pack_times_that_of_the_pack(shape: tuple[int, ...]) -> None:
    discriminator = packed(shape)
    x = torch.randn(3, *shape, requires_grad=True)
    (repeated,) = torch.autograd.grad(discriminator(x).sum(), x)
    (single,) = torch.autograd.grad(discriminator.inner(torch.cat([*x])[None]).sum(), x)
    assert single.any()
    assert torch.allclose(repeated, 3 * single, atol=1e-6)


def test_double_backward_reaches_every_weight() -> None:
    discriminator = packed(IMAGES)
    x = torch.randn(5, *IMAGES, requires_grad=True)
    (gradient,) = torch.autograd.grad(discriminator(x).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for name, p in discriminator.named_parameters() if "weight" in name)


def test_memory_format_does_not_change_logits() -> None:
    discriminator = packed(IMAGES)
    x = torch.randn(6, *IMAGES)
    before = discriminator(x)
    discriminator.to(memory_format=torch.channels_last)
    assert torch.allclose(discriminator(x.to(memory_format=torch.channels_last)), before, atol=1e-5)


def test_a_packed_discriminator_recognises_copies() -> None:
    discriminator = Packed(MLPDiscriminator(image_shape=(4,), width=32), pack=2)
    adam = torch.optim.Adam(discriminator.parameters(), lr=2e-2)
    for _ in range(60):
        # Two copies of each; single samples have the distribution of real ones.
        real, fake = torch.randn(64, 2), torch.randn(32, 2).repeat_interleave(2, 0)
        loss = nn.functional.softplus(torch.cat([-discriminator(real), discriminator(fake)])).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert loss < 0.4


@pytest.mark.parametrize(
    ("inner", "pack", "text"),
    [
        ({"image_shape": (4,)}, 1, "pack=1: at least 2"),
        ({"image_shape": (4,)}, 3, "pack=3: must divide the 4 channels"),
        ({"image_shape": (4,), "num_classes": 2}, 2, "pack=2: .* classes"),
    ],
)
def test_wrong_settings_are_named(inner: dict, pack: int, text: str) -> None:
    with pytest.raises(SettingError, match=f"^{text}"):
        Packed(MLPDiscriminator(width=4, **inner), pack=pack)


@pytest.mark.parametrize("wrong", [(4, 8, 8), (1, 8, 8)])
def test_samples_of_another_shape_are_refused(wrong: tuple[int, ...]) -> None:
    discriminator = packed(IMAGES, pack=2)
    x: Tensor = torch.randn(4, *wrong)
    with pytest.raises(RuntimeError):
        discriminator(x)
