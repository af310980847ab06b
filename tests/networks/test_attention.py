import pytest
import torch
from torch import Tensor, nn

from gancli.errors import SettingError
from gancli.networks.attention import SelfAttention
from gancli.networks.dcgan import DCGANDiscriminator, DCGANGenerator
from gancli.networks.resnet import ResNetDiscriminator, ResNetGenerator

WIDTHS = {"channels": 4, "max_channels": 16}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_it_adds_a_mean_over_all_pixels_weighted_by_the_softmax_of_products() -> None:
    layer, x = SelfAttention(8), torch.randn(2, 8, 4, 6)
    assert torch.equal(layer(x), x), "gamma is 0 at first"
    nn.init.ones_(layer.gamma)
    pooled = nn.MaxPool2d(2)
    query, key, value = layer.query(x).flatten(2), pooled(layer.key(x)).flatten(2), pooled(layer.value(x)).flatten(2)
    expected = torch.zeros(2, 4, 24)
    for image in range(2):
        for pixel in range(24):
            weights = torch.stack([query[image, :, pixel] @ key[image, :, other] for other in range(6)]).softmax(0)
            expected[image, :, pixel] = (value[image] * weights).sum(1)
    torch.testing.assert_close(layer(x), x + layer.output(expected.unflatten(2, (4, 6))))


def test_gradients_of_gradients() -> None:
    layer = SelfAttention(4).double()
    nn.init.constant_(layer.gamma, 0.7)
    x = torch.randn(2, 4, 2, 4, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradgradcheck(layer, x)


@pytest.mark.parametrize("make", [DCGANGenerator, ResNetGenerator, DCGANDiscriminator, ResNetDiscriminator])
def test_it_follows_the_maps_of_the_chosen_size(make: type[nn.Module]) -> None:
    needs = {"latent_dim": 5} if "Generator" in make.__name__ else {}
    network = make(image_shape=(3, 32, 48), attention=8, **WIDTHS, **needs)
    layers = [layer for layer in network.modules() if isinstance(layer, SelfAttention)]
    seen: list[tuple[int, ...]] = []
    layers[0].register_forward_hook(lambda layer, inputs, output: seen.append(tuple(inputs[0].shape[2:])))
    output: Tensor = network(torch.randn(2, 5) if needs else torch.randn(2, 3, 32, 48))
    assert len(layers) == 1 and seen == [(8, 12)] and output.isfinite().all()
    without = make(image_shape=(3, 32, 48), **WIDTHS, **needs)
    assert not any(isinstance(layer, SelfAttention) for layer in without.modules())
    with pytest.raises(SettingError, match=r"attention=5: the maps of this network have smaller sides of .*8.*; or 0"):
        make(image_shape=(3, 32, 48), attention=5, **WIDTHS, **needs)
