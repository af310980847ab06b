"""SeFa's directions: the singular vectors of the map that the noise goes through first."""

import pytest
import torch
from torch import nn

from gancli.errors import UserError
from gancli.inference.directions import semantic_directions, walk_along
from gancli.networks.base import Generator
from gancli.networks.mlp import MLPGenerator
from gancli.networks.r3gan import R3GANGenerator


class Linear(Generator):
    def __init__(self, weight):
        super().__init__(latent_dim=weight.shape[1], image_shape=(1, 4, 5))
        self.linear = nn.Linear(weight.shape[1], len(weight))
        self.linear.weight.data = weight

    def forward(self, z, labels=None):
        return self.linear(z).view(-1, 1, 4, 5)

    def first_weight(self):
        return self.linear.weight


def test_the_directions_of_a_linear_generator_are_its_singular_vectors():
    torch.manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(20, 8))
    right, _ = torch.linalg.qr(torch.randn(8, 8))
    values = torch.tensor([9.0, 7.0, 5.0, 3.0, 2.0, 1.0, 0.5, 0.0])
    directions, strengths = semantic_directions(Linear(left * values @ right.T), 8)
    assert torch.allclose(strengths, values, atol=1e-5)
    assert torch.allclose((directions @ right).abs(), torch.eye(8), atol=1e-5)
    z = torch.randn(8)
    generator = Linear(left * values @ right.T)
    changes = (generator(z + directions) - generator(z[None])).flatten(1).norm(dim=1)
    assert torch.allclose(changes, values, atol=1e-5), "a unit along a direction changes a sample by its strength"


def test_the_weights_of_r3gan_are_those_of_its_coarsest_map():
    torch.manual_seed(0)
    generator = R3GANGenerator(latent_dim=6, image_shape=(3, 8, 8), channels=16)
    z = torch.eye(6)
    maps = generator.linear(generator.noise(z, None))[:, :, None, None] * generator.basis
    singular = torch.linalg.svdvals(maps.flatten(1))
    assert torch.allclose(semantic_directions(generator, 6)[1], singular, rtol=1e-4)


def test_a_generator_without_a_linear_map_first_is_refused():
    with pytest.raises(UserError, match="does not go through a linear map first"):
        semantic_directions(MLPGenerator(latent_dim=4, image_shape=(2,), fourier=1.0), 2)
    with pytest.raises(UserError, match="count=5: the noise has 4 dimensions"):
        semantic_directions(MLPGenerator(latent_dim=4, image_shape=(2,)), 5)


def test_a_walk_goes_as_far_either_way():
    walk = walk_along(torch.ones(4), torch.eye(4)[:2], 5, reach=2.0)
    assert walk.shape == (5, 2, 4) and torch.equal(walk[2], torch.ones(2, 4))
    assert torch.equal(walk[0, 0], torch.tensor([-1.0, 1, 1, 1])) and torch.equal(walk[-1, 1, 1], torch.tensor(3.0))
