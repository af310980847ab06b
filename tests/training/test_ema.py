from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gancli.networks.dcgan import DCGANGenerator
from gancli.schedules import Linear
from gancli.training.ema import EMA


class Net(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((3, 2), value, dtype=torch.float64))
        self.bias = nn.Parameter(torch.full((2,), -value, dtype=torch.float64))
        self.norm = nn.BatchNorm1d(2)


def flat(network: nn.Module) -> Tensor:
    return torch.cat([network.weight.detach().flatten(), network.bias.detach().flatten()])  # type: ignore[operator, union-attr]


def follow(ema: EMA, target: nn.Module, *, step: int, until: int) -> None:
    for images in range(0, until, step):
        ema.update(target, images=images, step_images=step, progress=images / until)


@pytest.mark.parametrize("step", [1, 8, 32, 320])
def test_the_distance_halves_in_a_half_life_whatever_the_batch(step: int) -> None:
    start, target = Net(1.0), Net(5.0)
    ema = EMA(start, half_life=320, ramp_up=None)
    follow(ema, target, step=step, until=320)
    torch.testing.assert_close(flat(target) - flat(ema.network), (flat(target) - flat(start)) / 2)
    follow(ema, target, step=step, until=320)
    torch.testing.assert_close(flat(target) - flat(ema.network), (flat(target) - flat(start)) / 4)


def test_ramp_up_bounds_the_half_life_by_the_images_seen() -> None:
    start, target = Net(1.0), Net(5.0)
    ema = EMA(start, half_life=1000, ramp_up=0.1)
    distance = 4.0
    for images, step in [(400, 20), (2000, 50), (20_000, 100)]:
        ema.update(target, images=images, step_images=step, progress=0.0)
        distance *= 0.5 ** (step / min(1000, 0.1 * images))
        assert 5 - ema.network.weight[0, 0].item() == pytest.approx(distance, rel=1e-12)


def test_the_random_start_is_forgotten_at_once_while_ramping_up() -> None:
    target = Net(5.0)
    ema = EMA(Net(1.0), half_life=1000)
    ema.update(target, images=0, step_images=16, progress=0.0)
    torch.testing.assert_close(flat(ema.network), flat(target))


def test_half_life_zero_is_the_network_itself() -> None:
    target = Net(5.0)
    ema = EMA(Net(1.0), half_life=0, ramp_up=None)
    for value in (5.0, -0.1, 7e8):
        nn.init.constant_(target.weight, value)
        ema.update(target, images=10_000, step_images=16, progress=0.5)
        assert torch.equal(flat(ema.network), flat(target))


def test_half_life_may_be_a_schedule() -> None:
    start, target = Net(0.0), Net(1.0)
    ema = EMA(start, half_life=Linear(start=0.0, end=200.0), ramp_up=None)
    ema.update(target, images=500, step_images=100, progress=0.5)
    assert ema.network.weight[0, 0].item() == pytest.approx(0.5)


def test_buffers_are_copied_not_averaged() -> None:
    target = Net(1.0)
    ema = EMA(target, half_life=1e9, ramp_up=None)
    target.norm(torch.randn(16, 2, generator=torch.Generator().manual_seed(0)))
    assert not torch.equal(ema.network.norm.running_mean, target.norm.running_mean)
    ema.update(target, images=100, step_images=16, progress=0.1)
    assert torch.equal(ema.network.norm.running_mean, target.norm.running_mean)
    assert torch.equal(ema.network.norm.running_var, target.norm.running_var)
    assert ema.network.norm.num_batches_tracked == 1


def test_batch_statistics_are_those_of_the_average_itself() -> None:
    noise = torch.randn(600, 4, generator=torch.Generator().manual_seed(0))
    network = DCGANGenerator(latent_dim=4, image_shape=(1, 8, 8), channels=4)
    ema = EMA(network, half_life=1e9, ramp_up=None, noise=noise)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3.0)
    for images in (16, 32):
        ema.update(network, images=images, step_images=16, progress=0.1)
    first = next(layer for layer in ema.average.modules() if isinstance(layer, nn.BatchNorm2d))
    assert first.num_batches_tracked == 0, "measured when it is looked at"
    maps = ema.network.linear(noise).unflatten(1, network.coarsest)
    parts = maps.split(256)
    torch.testing.assert_close(first.running_mean, torch.stack([part.mean((0, 2, 3)) for part in parts]).mean(0))
    torch.testing.assert_close(first.running_var, torch.stack([part.var((0, 2, 3)) for part in parts]).mean(0))
    assert first.momentum == 0.1 and not first.training
    before = copy.deepcopy(ema.average.state_dict())
    ema.is_measured = False
    assert all(torch.equal(value, before[name]) for name, value in ema.network.state_dict().items())


def test_the_average_is_a_copy_for_looking_only() -> None:
    target = Net(1.0)
    ema = EMA(target)
    assert not ema.network.training
    assert not any(parameter.requires_grad for parameter in ema.network.parameters())
    assert target.training
    assert all(parameter.requires_grad for parameter in target.parameters())
    nn.init.constant_(target.weight, 9.0)
    assert (ema.network.weight == 1).all()
    ema.update(target, images=100, step_images=1, progress=0.0)
    assert (target.weight == 9).all()


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"half_life": -1}, "half_life=-1"), ({"ramp_up": 0}, "ramp_up=0"), ({"ramp_up": -2}, "ramp_up=-2")],
)
def test_bad_settings_are_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}: "):
        EMA(Net(0.0), **settings)
