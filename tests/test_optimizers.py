from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from recording import Graphs
from torch import nn

from gancli.optimizers import ClippedRMSprop, ClippedSGD, ScheduledOptimizer
from gancli.schedules import BurnIn, Constant, Linear


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.tensor([1.0, -2.0]))


def test_scheduled_settings_reach_the_groups_before_the_step() -> None:
    p = parameter()
    make = partial(torch.optim.Adam, lr=Linear(start=0.1, end=0.3), betas=[Linear(start=0.0, end=0.5), 0.9])
    optimizer = ScheduledOptimizer(make, [p])
    (group,) = optimizer.optimizer.param_groups
    assert group["lr"] == optimizer.lr == 0.1
    assert group["betas"] == (0.0, 0.9)
    for progress in (0.5, 1.0):
        p.grad = torch.ones(2)
        optimizer.step(progress)
        assert group["lr"] == optimizer.lr == pytest.approx(0.1 + 0.2 * progress)
        assert group["betas"] == pytest.approx((0.5 * progress, 0.9))


def test_the_step_itself_is_made_at_the_scheduled_rate() -> None:
    p = parameter()
    optimizer = ScheduledOptimizer(partial(torch.optim.SGD, lr=Linear(start=1.0, end=0.0)), [p])
    p.grad = torch.tensor([2.0, 4.0])
    optimizer.step(0.75)
    torch.testing.assert_close(p.detach(), torch.tensor([1.0 - 0.25 * 2, -2.0 - 0.25 * 4]))


def test_gradients_are_dropped_after_the_step() -> None:
    p = parameter()
    optimizer = ScheduledOptimizer(partial(torch.optim.SGD, lr=0.1), [p])
    p.grad = torch.ones(2)
    optimizer.step(0.0)
    assert p.grad is None
    after = p.detach().clone()
    optimizer.step(0.0)
    assert torch.equal(p.detach(), after)


def test_fixed_settings_are_left_alone() -> None:
    p = parameter()
    optimizer = ScheduledOptimizer(partial(torch.optim.SGD, lr=Constant(value=0.5), momentum=0.25), [p])
    (group,) = optimizer.optimizer.param_groups
    group["momentum"] = 0.125  # as from a loaded state
    p.grad = torch.ones(2)
    optimizer.step(1.0)
    assert optimizer.lr == 0.5
    assert group["momentum"] == 0.125
    torch.testing.assert_close(p.detach(), torch.tensor([0.5, -2.5]))


def test_parameters_may_come_from_an_iterator() -> None:
    network = nn.Linear(2, 3)
    optimizer = ScheduledOptimizer(partial(torch.optim.RMSprop, lr=0.1), network.parameters())
    assert len(optimizer.parameters) == len(optimizer.optimizer.param_groups[0]["params"]) == 2


def test_an_exact_resume_goes_on_as_before() -> None:
    def fresh() -> tuple[nn.Parameter, ScheduledOptimizer]:
        p = parameter()
        make = partial(torch.optim.Adam, lr=Linear(start=0.1, end=0.01), betas=[0.5, Linear(start=0.9, end=0.99)])
        return p, ScheduledOptimizer(make, [p])

    def go(p: nn.Parameter, optimizer: ScheduledOptimizer, steps: range) -> None:
        for step in steps:
            p.grad = torch.tensor([step + 1.0, -0.5])
            optimizer.step(step / 6)

    straight, optimizer = fresh()
    go(straight, optimizer, range(6))
    first, optimizer = fresh()
    go(first, optimizer, range(3))
    second, resumed = fresh()
    second.data.copy_(first.data)
    resumed.optimizer.load_state_dict(optimizer.optimizer.state_dict())
    go(second, resumed, range(3, 6))
    assert torch.equal(second, straight)


@pytest.mark.parametrize(
    "make",
    [
        partial(torch.optim.Adam, lr=0.5, betas=[0.5, BurnIn(start=0.5, value=0.75, until=0.25)], fused=True),
        partial(torch.optim.Adam, lr=Linear(start=0.5, end=0.25), betas=[0.5, 0.75], fused=True),
        partial(torch.optim.SGD, lr=0.5, momentum=0.5),
        partial(torch.optim.SGD, lr=BurnIn(start=0.5, value=0.25, until=0.25)),
    ],
)
def test_replays_follow_every_setting(make: partial[torch.optim.Optimizer]) -> None:
    found = []
    for made in (None, Graphs()):
        p, gradient = parameter(), torch.empty(2)
        optimizer = ScheduledOptimizer(make, [p])
        if made is not None:
            assert optimizer.record(made)
        for step in range(16):
            optimizer.lr_factor = 1.0 if step < 10 else 0.5
            p.grad = gradient.copy_(torch.tensor([step + 1.0, -0.5]))
            optimizer.step(step / 16)
        assert made is None or made.replayed > 2
        found.append(p.detach())
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("clipped", "plain"),
    [
        (partial(ClippedSGD, lr=0.3), partial(torch.optim.SGD, lr=0.3)),
        (partial(ClippedRMSprop, lr=0.3, alpha=0.9), partial(torch.optim.RMSprop, lr=0.3, alpha=0.9)),
    ],
    ids=["sgd", "rmsprop"],
)
def test_parameters_are_clipped_after_the_plain_step(clipped: partial[ClippedSGD], plain: partial[Any]) -> None:
    mine, theirs = parameter(), parameter()
    optimizer, reference = clipped([mine], clip=1.5), plain([theirs])
    for gradient in torch.tensor([[1.0, 2.0], [-8.0, 0.1], [4.0, -0.3]]):
        mine.grad, theirs.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        reference.step()
        theirs.data.clamp_(-1.5, 1.5)
        assert torch.equal(mine, theirs)


def test_the_bound_may_be_scheduled_and_comes_back_with_the_state() -> None:
    p = parameter()
    make = partial(ClippedSGD, lr=0.0, clip=Linear(start=4.0, end=1.0))
    optimizer = ScheduledOptimizer(make, [p])
    p.grad = torch.ones(2)
    optimizer.step(0.0)
    assert p.tolist() == [1.0, -2.0]
    p.grad = torch.ones(2)
    optimizer.step(0.9)
    assert p.tolist() == pytest.approx([1.0, -1.3])
    other = ClippedSGD([parameter()], clip=9.0)
    other.load_state_dict(optimizer.optimizer.state_dict())
    assert other.param_groups[0]["clip"] == pytest.approx(1.3)


@pytest.mark.parametrize("make", [ClippedSGD, ClippedRMSprop])
def test_a_bound_of_nothing_is_refused(make: type[ClippedSGD]) -> None:
    with pytest.raises(ValueError, match=r"^clip=0.0: a bound above 0"):
        make([parameter()], clip=0.0)
