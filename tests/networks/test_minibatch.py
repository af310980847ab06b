"""The layers that mix the samples of a batch: minibatch standard deviation and discrimination, batch normalisation."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gancli.networks.base import Discriminator, share_batches
from gancli.networks.dcgan import DCGANDiscriminator
from gancli.networks.layers import BatchNorm2d, MinibatchDiscrimination, MinibatchStd, minibatch_layer
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
    closeness = [
        sum((torch.exp(-(row - other).abs().sum(1)) for j, other in enumerate(rows) if j != i), torch.zeros(()))
        for i, row in enumerate(rows)
    ]
    return torch.cat([h, torch.stack([values.expand(layer.kernels) for values in closeness])], 1)


@pytest.mark.parametrize("pixels", [(), (3, 5)], ids=["vectors", "maps"])
@pytest.mark.parametrize(("batch", "size"), [(1, 1), (3, 3), (5, 1), (6, 3), (10, 2), (12, 4)])
def test_std_equals_its_definition_with_the_largest_group_that_divides_the_batch(
    batch: int, size: int, pixels: tuple[int, ...]
) -> None:
    h = torch.randn(batch, 6, *pixels)
    assert torch.allclose(MinibatchStd()(h), slow_std(h, size), atol=1e-6)


def test_std_uses_the_given_group_size() -> None:
    h = torch.randn(6, 5)
    assert torch.allclose(MinibatchStd(group=2)(h), slow_std(h, 2), atol=1e-6)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_discrimination_equals_its_definition(batch: int) -> None:
    layer = MinibatchDiscrimination(6, kernels=3, dims=2)
    h = torch.randn(batch, 6)
    assert torch.allclose(layer(h), slow_discrimination(layer, h), atol=1e-6)


def test_discrimination_counts_identical_samples() -> None:
    output = MinibatchDiscrimination(6)(torch.randn(1, 6).expand(5, 6))
    assert output.shape == (5, 6 + 32)
    assert torch.allclose(output[:, 6:], torch.full((5, 32), 4.0))


def penalty(layer: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
    """The squared gradient norm, as in R1, of a nonlinear function of the appended features."""
    (gradient,) = torch.autograd.grad(layer(h)[:, 6:].square().sum(), h, create_graph=True)
    return gradient.square().sum()


@pytest.mark.parametrize("kind", KINDS)
def test_double_backward_equals_that_of_the_definition(kind: str) -> None:
    layer, _ = minibatch_layer(kind, 6)
    slow = (lambda h: slow_std(h, 4)) if kind == "std" else (lambda h: slow_discrimination(layer, h))
    h = torch.randn(8 if kind == "std" else 4, 6).mul(0.3 if kind == "discrimination" else 1).requires_grad_()
    (gradient,) = torch.autograd.grad(penalty(layer, h), h)
    (expected,) = torch.autograd.grad(penalty(slow, h), h)
    assert gradient.abs().max() > 1e-3
    assert torch.allclose(gradient, expected, rtol=1e-3, atol=1e-4)


def test_std_of_half_precision_features_is_computed_in_float32() -> None:
    h = torch.randn(1, 6).half().repeat(4, 1).requires_grad_()
    output = MinibatchStd()(h)
    assert output.dtype == torch.half
    assert output[0, -1].item() == pytest.approx(1e-4, rel=0.01)  # sqrt(1e-8), and 1e-8 is 0 in half precision
    (gradient,) = torch.autograd.grad(output.sum(), h)
    assert gradient.isfinite().all()


def test_minibatch_layer_returns_its_output_width() -> None:
    for kind, features in (("none", 6), ("std", 7), ("discrimination", 38)):
        layer, count = minibatch_layer(kind, 6)
        assert count == features == layer(torch.randn(4, 6)).shape[1]
    with pytest.raises(ValueError, match=r"^minibatch=both: one of none, std, discrimination"):
        minibatch_layer("both", 6)
    with pytest.raises(ValueError, match=r"^group=0: "):
        MinibatchStd(group=0)


@pytest.mark.parametrize(("make", "settings"), FAMILIES)
@pytest.mark.parametrize("kind", ["none", *KINDS])
def test_per_sample_says_whether_a_logit_depends_on_other_samples(
    make: type[Discriminator], settings: dict, kind: str
) -> None:
    discriminator = make(image_shape=(1, 8, 8), minibatch=kind, **settings)
    x = torch.randn(4, 1, 8, 8)
    same_first_sample = torch.cat([x[:1], torch.randn(3, 1, 8, 8)])
    # Copies, since the power iteration of spectral normalisation changes the weights in each pass.
    first, second = (copy.deepcopy(discriminator)(batch)[0] for batch in (x, same_first_sample))
    assert discriminator.per_sample == (kind == "none")
    assert discriminator.per_sample == torch.allclose(first, second, atol=1e-5)


@pytest.mark.parametrize(("make", "settings"), FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_layer_comes_right_before_the_head(make: type[Discriminator], settings: dict, kind: str) -> None:
    discriminator = make(image_shape=(1, 8, 8), minibatch=kind, num_classes=2, **settings)
    passed: dict[str, Tensor] = {}
    discriminator.minibatch.register_forward_hook(lambda _, inputs, output: passed.update(h=inputs[0], output=output))
    discriminator.head.register_forward_pre_hook(lambda _, inputs: passed.update(head=inputs[0]))
    assert discriminator(torch.randn(5, 1, 8, 8), torch.tensor([0, 1, 0, 1, 0])).shape == (5,)
    assert torch.equal(passed["head"], passed["output"])
    assert passed["h"].ndim == 2
    assert torch.equal(passed["head"][:, : passed["h"].shape[1]], passed["h"])


@pytest.mark.parametrize(("make", "settings"), FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 4])
def test_gradient_penalty_of_identical_samples_is_finite(
    make: type[Discriminator], settings: dict, kind: str, batch: int
) -> None:
    discriminator = make(image_shape=(1, 8, 8), minibatch=kind, **settings)
    x = torch.randn(1, 1, 8, 8).repeat(batch, 1, 1, 1).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = discriminator(x).float()
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    (logits.sum() + gradient.square().sum()).backward()
    gradients = [p.grad for p in discriminator.parameters() if p.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_discrimination_is_trained_and_has_spectral_norm() -> None:
    discriminator = MLPDiscriminator(image_shape=(2,), width=16, minibatch="discrimination", spectral_norm=True)
    discriminator(torch.randn(8, 2)).square().sum().backward()
    assert [name for name, p in discriminator.named_parameters() if not p.grad.any()] == []
    normalised = [name for name, module in discriminator.named_modules() if hasattr(module, "parametrizations")]
    assert "minibatch.tensor" in normalised


def test_a_discriminator_with_std_recognises_batches_of_copies() -> None:
    discriminator = MLPDiscriminator(image_shape=(2,), width=16, minibatch="std")
    adam = torch.optim.Adam(discriminator.parameters(), lr=2e-2)
    for _ in range(60):
        real = torch.randn(64, 2)
        fake = torch.randn(16, 2).repeat(4, 1)  # four copies of each; single samples have the distribution of real ones
        loss = nn.functional.softplus(torch.cat([-discriminator(real), discriminator(fake)])).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert loss < 0.4


class FakeProcessGroup:
    """A process group whose `all_gather` stacks the parts that earlier calls have recorded, in one graph."""

    def __init__(self, world_size: int) -> None:
        self.world_size, self.parts = world_size, list[Tensor]()
        self.recording = True

    def all_gather(self, rows: Tensor) -> Tensor:
        if self.recording:
            self.parts.append(rows)
            return rows.repeat(self.world_size, *[1] * (rows.ndim - 1))
        return torch.cat(self.parts)


@pytest.mark.parametrize(("mean", "tolerance"), [(0.0, 1e-5), (1e4, 5e-3)])
def test_batch_norm_over_processes_equals_batch_norm_of_the_whole_batch(mean: float, tolerance: float) -> None:
    """Also for a mean of 1e4 and a standard deviation of 1, where E[x^2] - E[x]^2 has no correct digit in float32."""
    layer, group = BatchNorm2d(3), FakeProcessGroup(world_size=4)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    expected_layer = nn.BatchNorm2d(3).double()
    expected_layer.load_state_dict(layer.state_dict())
    x = (torch.randn(8, 3, 4, 5) * torch.tensor([1.0, 0.5, 2.0]).view(3, 1, 1) + mean).requires_grad_()
    direction = torch.randn(8, 3, 4, 5)

    layers, recorders = ([copy.deepcopy(layer) for _ in range(4)] for _ in range(2))  # of four processes
    for process_layer in (*layers, *recorders):
        share_batches(process_layer, group)  # type: ignore[arg-type]
    for recorder, part in zip(recorders, x.chunk(4), strict=True):
        recorder(part)
    group.recording = False
    output = torch.cat([process_layer(part) for process_layer, part in zip(layers, x.chunk(4), strict=True)])
    assert len(group.parts) == 4
    x64 = x.detach().double().requires_grad_()
    expected = expected_layer(x64)
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=tolerance)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(
            getattr(layers[1], name).double(), getattr(expected_layer, name), rtol=tolerance, atol=tolerance
        )
    assert layers[1].num_batches_tracked == 1

    def gradients(y: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient, and that of its squared norm, as in a gradient penalty."""
        value = (y.square() * direction.to(y)).sum()
        (first,) = torch.autograd.grad(value, inputs, create_graph=True)
        return first, torch.autograd.grad(first.square().sum(), inputs)[0]

    for gradient, expected_gradient in zip(gradients(output, x), gradients(expected, x64), strict=True):
        scale = float(expected_gradient.detach().abs().max())
        torch.testing.assert_close(gradient.double(), expected_gradient, rtol=0, atol=5 * tolerance * scale)


def test_batch_norm_in_evaluation_mode_does_not_communicate() -> None:
    layer, group = BatchNorm2d(3), FakeProcessGroup(world_size=2)
    share_batches(layer, group)  # type: ignore[arg-type]
    x = torch.randn(4, 3, 2, 2)
    torch.testing.assert_close(layer.eval()(x), nn.BatchNorm2d(3).eval()(x))
    assert group.parts == []
