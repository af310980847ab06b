"""Runs compared: the last checkpoint of each, bit by bit."""

import torch
from conftest import TINY

from gancli.config import compose
from gancli.training import checkpoint


def last(folder):
    return checkpoint.Checkpoints(folder / "checkpoints").pick("last")[1]


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def without_time(state):
    return {key: value for key, value in state.items() if key != "seconds"}


def settings_for(*overrides):
    return compose("train", [*TINY, *overrides])
