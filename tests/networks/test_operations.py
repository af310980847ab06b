"""The arithmetic of a network, counted."""

import torch
from torch import nn

from gancli.networks.operations import multiply_adds


def test_layers_are_counted_by_what_they_compute():
    assert multiply_adds(nn.Linear(3, 5), torch.zeros(2, 3)) == 2 * 3 * 5
    maps = torch.zeros(1, 4, 8, 8)
    assert multiply_adds(nn.Conv2d(4, 6, 3, stride=2, padding=1), maps) == 4 * 4 * 6 * 4 * 9
    assert multiply_adds(nn.Conv2d(4, 6, 3, padding=1, groups=2), maps) == 8 * 8 * 6 * 2 * 9
    assert multiply_adds(nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1), maps) == 8 * 8 * 4 * 6 * 16
    network = nn.Sequential(nn.Conv2d(4, 1, 1), nn.Flatten(), nn.Tanh(), nn.Linear(64, 2))
    assert multiply_adds(network, maps) == 64 * 4 + 64 * 2
    assert not any(layer._forward_hooks for layer in network)
