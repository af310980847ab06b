from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from comparing import same
from fake_cuda_graphs import Graphs
from torch import nn

from gancli.errors import SettingError
from gancli.optimizers import ClippedRMSprop, ClippedSGD, OptimisticAdam
from gancli.schedules import BurnIn, Constant, Linear
from gancli.training.cuda_graphs import GraphedOptimizer
from gancli.training.scheduled_optimizer import ScheduledOptimizer


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.tensor([1.0, -2.0]))


def test_scheduled_settings_are_set_before_the_step() -> None:
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


def test_the_step_uses_the_scheduled_learning_rate_times_its_factor() -> None:
    p = parameter()
    optimizer = ScheduledOptimizer(partial(torch.optim.SGD, lr=Linear(start=1.0, end=0.0)), [p])
    p.grad = torch.tensor([2.0, 4.0])
    optimizer.step(0.75, lr_factor=0.5)
    torch.testing.assert_close(p.detach(), torch.tensor([1.0 - 0.125 * 2, -2.0 - 0.125 * 4]))


def test_gradients_are_none_after_the_step() -> None:
    p = parameter()
    optimizer = ScheduledOptimizer(partial(torch.optim.SGD, lr=0.1), [p])
    p.grad = torch.ones(2)
    optimizer.step(0.0)
    assert p.grad is None
    after = p.detach().clone()
    optimizer.step(0.0)
    assert torch.equal(p.detach(), after)


def test_settings_without_a_schedule_are_not_reset() -> None:
    p = parameter()
    optimizer = ScheduledOptimizer(partial(torch.optim.SGD, lr=Constant(value=0.5), momentum=0.25), [p])
    (group,) = optimizer.optimizer.param_groups
    group["momentum"] = 0.125  # as from a loaded state
    p.grad = torch.ones(2)
    optimizer.step(1.0)
    assert optimizer.lr == 0.5
    assert group["momentum"] == 0.125
    torch.testing.assert_close(p.detach(), torch.tensor([0.5, -2.5]))


def test_parameters_may_be_an_iterator() -> None:
    network = nn.Linear(2, 3)
    optimizer = ScheduledOptimizer(partial(torch.optim.RMSprop, lr=0.1), network.parameters())
    assert len(optimizer.parameters) == len(optimizer.optimizer.param_groups[0]["params"]) == 2


def test_a_resumed_optimizer_makes_the_same_steps() -> None:
    def fresh() -> tuple[nn.Parameter, ScheduledOptimizer]:
        p = parameter()
        make = partial(torch.optim.Adam, lr=Linear(start=0.1, end=0.01), betas=[0.5, Linear(start=0.9, end=0.99)])
        return p, ScheduledOptimizer(make, [p])

    def make_steps(p: nn.Parameter, optimizer: ScheduledOptimizer, steps: range) -> None:
        for step in steps:
            p.grad = torch.tensor([step + 1.0, -0.5])
            optimizer.step(step / 6)

    uninterrupted, optimizer = fresh()
    make_steps(uninterrupted, optimizer, range(6))
    first, optimizer = fresh()
    make_steps(first, optimizer, range(3))
    second, resumed = fresh()
    second.data.copy_(first.data)
    resumed.load_state_dict(optimizer.state_dict())
    make_steps(second, resumed, range(3, 6))
    assert torch.equal(second, uninterrupted)


class Signed(torch.optim.SGD):
    """An optimizer of somebody's own, with a setting that torch does not copy with it."""

    def __init__(self, parameters: Any, lr: float, scale: float) -> None:
        super().__init__(parameters, lr=lr, momentum=0.5)
        self.scale = scale

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = self.scale * p.grad.sign()
        super().step()


def test_an_optimizer_of_one_s_own_is_resumed() -> None:
    p, again = parameter(), parameter()
    optimizer, resumed = (ScheduledOptimizer(partial(Signed, lr=0.1, scale=2.0), [each]) for each in (p, again))
    p.grad = torch.tensor([3.0, -0.5])
    optimizer.step(0.0)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    again.data.copy_(p.data)
    for each, one in ((p, optimizer), (again, resumed)):
        each.grad = torch.tensor([-1.0, -1.0])
        one.step(0.5)
    assert torch.equal(p, again)


@pytest.mark.parametrize(
    "make",
    [
        partial(torch.optim.Adam, lr=0.5, betas=[0.5, BurnIn(start=0.5, value=0.75, until=0.25)], fused=True),
        partial(torch.optim.Adam, lr=Linear(start=0.5, end=0.25), betas=[0.5, 0.75], fused=True),
        partial(torch.optim.SGD, lr=0.5, momentum=0.5),
        partial(torch.optim.SGD, lr=BurnIn(start=0.5, value=0.25, until=0.25)),
    ],
)
def test_a_graphed_optimizer_follows_every_scheduled_setting(make: partial[torch.optim.Optimizer]) -> None:
    results = []
    for graphs in (None, Graphs()):
        p, gradient = parameter(), torch.empty(2)
        optimizer = ScheduledOptimizer(make, [p])
        if graphs is not None:
            optimizer = GraphedOptimizer(optimizer, graphs)
        for step in range(16):
            p.grad = gradient.copy_(torch.tensor([step + 1.0, -0.5]))
            optimizer.step(step / 16, lr_factor=1.0 if step < 10 else 0.5)
        assert graphs is None or graphs.replayed > 2
        results.append(p.detach())
    assert torch.equal(*results)


OPTIMIZERS = {
    "fused adam": partial(torch.optim.Adam, lr=0.5, betas=(0.5, 0.75), fused=True),
    "adam": partial(torch.optim.Adam, lr=0.5, betas=(0.5, 0.75)),
    "fused adamw": partial(torch.optim.AdamW, lr=0.5, fused=True),
    "sgd": partial(torch.optim.SGD, lr=0.5, momentum=0.5),
    "clipped rmsprop": partial(ClippedRMSprop, lr=0.5, clip=1.0),
    "optimistic": partial(OptimisticAdam, lr=0.5),
}


@pytest.mark.parametrize(
    ("name", "graphs"),
    [*((name, None) for name in OPTIMIZERS), ("fused adam", Graphs()), ("sgd", Graphs())],  # what a CPU can capture
)
def test_a_skipped_step_leaves_every_bit(name: str, graphs: Graphs | None) -> None:
    results = []
    for skipped in ([], [3, 4, 11]):
        p, gradient = parameter(), torch.empty(2)
        optimizer = ScheduledOptimizer(OPTIMIZERS[name], [p])
        if graphs is not None:
            optimizer = GraphedOptimizer(optimizer, graphs)
        for step in range(16):
            if step in skipped:
                before = copy.deepcopy([p.detach(), optimizer.optimizer.state_dict()["state"]])
                p.grad = gradient.fill_(float("nan"))
                optimizer.step(0.0, skip=torch.ones(()))
                assert same(before, [p.detach(), optimizer.optimizer.state_dict()["state"]])
            p.grad = gradient.copy_(torch.tensor([step + 1.0, -0.5]))
            optimizer.step(0.0, skip=torch.zeros(()))
        results.append([p.detach(), optimizer.optimizer.state_dict()["state"]])
    assert same(*results)


def test_a_step_that_may_be_skipped_and_is_not_is_the_step() -> None:
    for make in OPTIMIZERS.values():
        results = []
        for skip in (None, torch.zeros(())):
            p = parameter()
            optimizer = ScheduledOptimizer(make, [p])
            for gradient in ([1.0, -0.5], [0.25, 2.0]):
                p.grad = torch.tensor(gradient)
                optimizer.step(0.0, skip=skip)
            results.append(p.detach())
        assert torch.equal(*results)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible")
@pytest.mark.parametrize("name", ["fused adam", "adam", "sgd"])
def test_a_skipped_step_leaves_every_bit_on_a_gpu(name: str) -> None:
    p = nn.Parameter(torch.tensor([1.0, -2.0], device="cuda"))
    optimizer = ScheduledOptimizer(OPTIMIZERS[name], [p])
    p.grad = torch.ones_like(p)
    optimizer.step(0.0, skip=torch.zeros((), device="cuda"))
    before = copy.deepcopy([p.detach(), optimizer.optimizer.state_dict()["state"]])
    p.grad, skip = torch.full_like(p, float("nan")), torch.ones((), device="cuda")
    if name != "adam":  # which counts its steps on the host
        torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step(0.0, skip=skip)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert same(before, [p.detach(), optimizer.optimizer.state_dict()["state"]])


@pytest.mark.parametrize(
    ("clipped", "plain"),
    [
        (partial(ClippedSGD, lr=0.3), partial(torch.optim.SGD, lr=0.3)),
        (partial(ClippedRMSprop, lr=0.3, alpha=0.9), partial(torch.optim.RMSprop, lr=0.3, alpha=0.9)),
    ],
    ids=["sgd", "rmsprop"],
)
def test_parameters_are_clamped_after_the_step_of_the_unclipped_optimizer(
    clipped: partial[ClippedSGD], plain: partial[Any]
) -> None:
    p, reference_p = parameter(), parameter()
    optimizer, reference = clipped([p], clip=1.5), plain([reference_p])
    for gradient in torch.tensor([[1.0, 2.0], [-8.0, 0.1], [4.0, -0.3]]):
        p.grad, reference_p.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        reference.step()
        reference_p.data.clamp_(-1.5, 1.5)
        assert torch.equal(p, reference_p)


def test_clip_may_be_scheduled_and_is_part_of_the_state() -> None:
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
def test_clip_must_be_positive(make: type[ClippedSGD]) -> None:
    with pytest.raises(SettingError, match=r"^clip=0.0: a number above 0"):
        make([parameter()], clip=0.0)
