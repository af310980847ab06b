from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

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


def test_packed_shape() -> None:
    assert packed_shape((3, 32, 48), 2) == (6, 32, 48)
    assert packed_shape([2], 4) == (8,)
    assert packed_shape((1, 8, 8), 1) == (1, 8, 8)


@SHAPES
def test_shape_is_that_of_one_sample(shape: tuple[int, ...]) -> None:
    discriminator = packed(shape)
    assert discriminator.image_shape == shape
    assert discriminator.num_classes == 0
    assert not discriminator.per_sample


@SHAPES
def test_is_the_inner_network_on_concatenated_rows(shape: tuple[int, ...]) -> None:
    discriminator = packed(shape)
    x = torch.randn(6, *shape)
    first, second = discriminator.inner(torch.stack([torch.cat([*x[:3]]), torch.cat([*x[3:]])]))
    assert not torch.isclose(first, second)
    assert torch.allclose(discriminator(x), torch.stack([first, first, first, second, second, second]))


@SHAPES
@pytest.mark.parametrize(("batch", "last"), [(1, [0, 0, 0]), (2, [0, 1, 0]), (4, [3, 0, 1]), (5, [3, 4, 0])])
def test_short_pack_is_filled_up_with_the_first_rows(shape: tuple[int, ...], batch: int, last: list[int]) -> None:
    discriminator = packed(shape)
    x = torch.randn(batch, *shape)
    logits = discriminator(x)
    assert logits.shape == (batch,)
    left = batch % 3
    assert torch.allclose(logits[-left:], discriminator(x[last])[:1].expand(left), atol=1e-6)
    assert torch.allclose(logits[:-left], discriminator(x[: batch - left]) if batch > 3 else torch.empty(0), atol=1e-6)


@SHAPES
@pytest.mark.parametrize("row", range(6))
def test_logit_depends_on_all_rows_of_its_pack_and_on_no_other(shape: tuple[int, ...], row: int) -> None:
    discriminator = packed(shape)
    x = torch.randn(6, *shape)
    moved = x.clone()
    moved[row] += 1
    same = torch.isclose(discriminator(x), discriminator(moved))
    assert same.tolist() == [index // 3 != row // 3 for index in range(6)]


@SHAPES
@pytest.mark.parametrize("batch", [5, 6])
def test_gradients_reach_all(shape: tuple[int, ...], batch: int) -> None:
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
    (ours,) = torch.autograd.grad(discriminator(x).sum(), x)
    (alone,) = torch.autograd.grad(discriminator.inner(torch.cat([*x])[None]).sum(), x)
    assert alone.any()
    assert torch.allclose(ours, 3 * alone, atol=1e-6)


def test_gradient_twice() -> None:
    discriminator = packed(IMAGES)
    x = torch.randn(5, *IMAGES, requires_grad=True)
    (gradient,) = torch.autograd.grad(discriminator(x).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for name, p in discriminator.named_parameters() if "weight" in name)


def test_memory_format_does_not_matter() -> None:
    discriminator = packed(IMAGES)
    x = torch.randn(6, *IMAGES)
    before = discriminator(x)
    discriminator.to(memory_format=torch.channels_last)
    assert torch.allclose(discriminator(x.to(memory_format=torch.channels_last)), before, atol=1e-5)


def test_notices_a_collapse_to_copies() -> None:
    discriminator = Packed(MLPDiscriminator(image_shape=(4,), width=32), pack=2)
    adam = torch.optim.Adam(discriminator.parameters(), lr=1e-2)
    for _ in range(100):
        real, fake = torch.randn(64, 2), torch.randn(32, 2).repeat_interleave(2, 0)  # alone they look alike
        wrong = nn.functional.softplus(torch.cat([-discriminator(real), discriminator(fake)]))
        adam.zero_grad()
        wrong.mean().backward()
        adam.step()
    assert wrong.mean() < 0.4


@pytest.mark.parametrize(
    ("inner", "pack", "text"),
    [
        ({"image_shape": (4,)}, 1, "pack=1: "),
        ({"image_shape": (4,)}, 0, "pack=0: "),
        ({"image_shape": (4,)}, 3, "pack=3: the inner discriminator takes 4 channels"),
        ({"image_shape": (4,), "num_classes": 2}, 2, "pack=2: .* classes"),
    ],
)
def test_bad_settings_are_named(inner: dict, pack: int, text: str) -> None:
    with pytest.raises(ValueError, match=f"^{text}"):
        Packed(MLPDiscriminator(width=4, **inner), pack=pack)


@pytest.mark.parametrize("wrong", [(4, 8, 8), (1, 8, 8)])
def test_samples_of_another_shape_are_refused(wrong: tuple[int, ...]) -> None:
    discriminator = packed(IMAGES, pack=2)
    x: Tensor = torch.randn(4, *wrong)
    with pytest.raises(RuntimeError):
        discriminator(x)
