from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gancli.networks.base import Discriminator
from gancli.networks.dcgan import DCGANDiscriminator
from gancli.networks.layers import MinibatchDiscrimination, MinibatchStd, minibatch_layer
from gancli.networks.mlp import MLPDiscriminator
from gancli.networks.r3gan import R3GANDiscriminator
from gancli.networks.resnet import ResNetDiscriminator

SMALL = {"channels": 4, "max_channels": 8}
FAMILIES = [
    pytest.param(MLPDiscriminator, {"width": 16}, id="mlp"),
    pytest.param(DCGANDiscriminator, SMALL, id="dcgan"),
    pytest.param(ResNetDiscriminator, SMALL, id="resnet"),
    pytest.param(R3GANDiscriminator, SMALL, id="r3gan"),
]
KINDS = ["std", "discrimination"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def slow_std(h: Tensor, size: int) -> Tensor:
    """The definition, group by group."""
    channel = torch.zeros(len(h), 1, *h.shape[2:])
    groups = len(h) // size
    for first in range(groups):
        members = list(range(first, len(h), groups))
        assert len(members) == size
        mean = sum(h[i] for i in members) / size
        variance = sum((h[i] - mean) ** 2 for i in members) / size
        for i in members:
            channel[i] = (variance + 1e-8).sqrt().mean()
    return torch.cat([h, channel], 1)


def slow_discrimination(layer: MinibatchDiscrimination, h: Tensor) -> Tensor:
    """The definition, pair by pair."""
    rows = (h @ layer.tensor.weight.T).view(len(h), layer.kernels, -1)
    closeness = torch.zeros(len(h), layer.kernels)
    for i in range(len(h)):
        for j in range(len(h)):
            if i != j:
                closeness[i] = closeness[i] + torch.exp(-(rows[i] - rows[j]).abs().sum(1))
    return torch.cat([h, closeness], 1)


@pytest.mark.parametrize("pixels", [(), (3, 5)], ids=["vectors", "maps"])
@pytest.mark.parametrize(("batch", "size"), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 1), (6, 3), (8, 4), (10, 2), (12, 4)])
def test_std_is_its_definition_for_any_batch(batch: int, size: int, pixels: tuple[int, ...]) -> None:
    h = torch.randn(batch, 6, *pixels)
    assert torch.allclose(MinibatchStd()(h), slow_std(h, size), atol=1e-6)


def test_std_groups_may_be_of_another_size() -> None:
    h = torch.randn(6, 5)
    assert torch.allclose(MinibatchStd(group=2)(h), slow_std(h, 2), atol=1e-6)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_discrimination_is_its_definition(batch: int) -> None:
    layer = MinibatchDiscrimination(6, kernels=3, dims=2)
    h = torch.randn(batch, 6)
    assert torch.allclose(layer(h), slow_discrimination(layer, h), atol=1e-6)


def test_discrimination_of_identical_samples_counts_them() -> None:
    output = MinibatchDiscrimination(6)(torch.randn(1, 6).expand(5, 6))
    assert output.shape == (5, 6 + 32)
    assert torch.allclose(output[:, 6:], torch.full((5, 32), 4.0))


def penalty(layer: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
    """As R1, of a nonlinear function of what the layer appends."""
    (gradient,) = torch.autograd.grad(layer(h)[:, 6:].square().sum(), h, create_graph=True)
    return gradient.square().sum()


@pytest.mark.parametrize("kind", KINDS)
def test_double_backward_is_that_of_the_definition(kind: str) -> None:
    layer, _ = minibatch_layer(kind, 6)
    slow = (lambda h: slow_std(h, 4)) if kind == "std" else (lambda h: slow_discrimination(layer, h))
    h = torch.randn(8, 6, requires_grad=True)
    (ours,) = torch.autograd.grad(penalty(layer, h), h)
    (expected,) = torch.autograd.grad(penalty(slow, h), h)
    assert ours.abs().max() > 1e-3
    assert torch.allclose(ours, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 4])
def test_identical_samples_have_finite_derivatives(kind: str, batch: int) -> None:
    layer, _ = minibatch_layer(kind, 6)
    h = torch.randn(1, 6).repeat(batch, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(layer(h).square().sum(), h, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), h)
    assert gradient.isfinite().all()
    assert second.isfinite().all()


def test_std_in_half_precision_is_computed_in_float() -> None:
    h = torch.randn(1, 6).half().repeat(4, 1).requires_grad_()
    output = MinibatchStd()(h)
    assert output.dtype == torch.half
    assert output[0, -1].item() == pytest.approx(1e-4, rel=0.01)  # the small number, which half does not know
    (gradient,) = torch.autograd.grad(output.sum(), h)
    assert gradient.isfinite().all()


def test_kinds_and_their_features() -> None:
    for kind, features in (("none", 6), ("std", 7), ("discrimination", 38)):
        layer, count = minibatch_layer(kind, 6)
        assert count == features == layer(torch.randn(4, 6)).shape[1]
    with pytest.raises(ValueError, match=r"^minibatch=both: one of none, std, discrimination"):
        minibatch_layer("both", 6)
    with pytest.raises(ValueError, match=r"^group=0: "):
        MinibatchStd(group=0)


@pytest.mark.parametrize(("make", "settings"), FAMILIES)
@pytest.mark.parametrize("kind", ["none", *KINDS])
def test_per_sample_tells_whether_samples_mix(make: type[Discriminator], settings: dict, kind: str) -> None:
    discriminator = make(image_shape=(1, 8, 8), minibatch=kind, **settings)
    x = torch.randn(4, 1, 8, 8)
    other = torch.cat([x[:1], torch.randn(3, 1, 8, 8)])
    # Copies, since the power iteration of spectral normalisation moves the weights at each pass.
    before, after = copy.deepcopy(discriminator)(x)[0], copy.deepcopy(discriminator)(other)[0]
    assert discriminator.per_sample == (kind == "none")
    assert discriminator.per_sample == torch.allclose(before, after, atol=1e-5)


@pytest.mark.parametrize(("make", "settings"), FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_head_gets_what_the_layer_makes_of_its_features(make: type[Discriminator], settings: dict, kind: str) -> None:
    discriminator = make(image_shape=(1, 8, 8), minibatch=kind, num_classes=2, **settings)
    seen: dict[str, Tensor] = {}
    discriminator.minibatch.register_forward_hook(lambda _, inputs, output: seen.update(h=inputs[0], appended=output))
    discriminator.head.register_forward_pre_hook(lambda _, inputs: seen.update(head=inputs[0]))
    assert discriminator(torch.randn(5, 1, 8, 8), torch.tensor([0, 1, 0, 1, 0])).shape == (5,)
    assert torch.equal(seen["head"], seen["appended"])
    assert seen["h"].ndim == 2
    assert torch.equal(seen["head"][:, : seen["h"].shape[1]], seen["h"])


@pytest.mark.parametrize(("make", "settings"), FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_penalised_step_on_identical_samples_is_finite(make: type[Discriminator], settings: dict, kind: str) -> None:
    discriminator = make(image_shape=(1, 8, 8), minibatch=kind, **settings)
    x = torch.randn(1, 1, 8, 8).repeat(4, 1, 1, 1).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = discriminator(x).float()
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    (logits.sum() + gradient.square().sum()).backward()
    grads = [p.grad for p in discriminator.parameters() if p.grad is not None]
    assert grads
    assert all(grad.isfinite().all() for grad in grads)


def test_discrimination_learns() -> None:
    discriminator = MLPDiscriminator(image_shape=(2,), width=16, minibatch="discrimination", spectral_norm=True)
    discriminator(torch.randn(8, 2)).square().sum().backward()
    assert [name for name, p in discriminator.named_parameters() if not p.grad.any()] == []
    normalised = [name for name, module in discriminator.named_modules() if hasattr(module, "parametrizations")]
    assert "minibatch.tensor" in normalised


def test_std_notices_a_collapse() -> None:
    discriminator = MLPDiscriminator(image_shape=(2,), width=16, minibatch="std")
    adam = torch.optim.Adam(discriminator.parameters(), lr=1e-2)
    for _ in range(100):
        real = torch.randn(64, 2)
        fake = torch.randn(16, 2).repeat(4, 1)  # four copies of each: alone they look like real ones
        wrong = nn.functional.softplus(torch.cat([-discriminator(real), discriminator(fake)]))
        adam.zero_grad()
        wrong.mean().backward()
        adam.step()
    assert wrong.mean() < 0.4
