import pytest
import torch
from torch.nn.functional import conv2d, glu, interpolate

from gancli.networks.fastgan import GLU, FastGANGenerator, UpsampledConv2d


def test_the_glu_is_torchs_with_gradients_in_channels_last() -> None:
    x = torch.randn(2, 6, 4, 5, dtype=torch.float64).contiguous(memory_format=torch.channels_last).requires_grad_()
    torch.testing.assert_close(GLU.apply(x), glu(x, dim=1))
    assert torch.autograd.gradcheck(GLU.apply, x) and torch.autograd.gradgradcheck(GLU.apply, x)
    (grad,) = torch.autograd.grad(GLU.apply(x).square().sum(), x)
    assert grad.is_contiguous(memory_format=torch.channels_last)


def test_a_stage_upsamples_by_nearest_neighbours_and_convolves_by_3x3() -> None:
    torch.manual_seed(0)
    layer, x = UpsampledConv2d(3, 5), torch.randn(2, 3, 7, 6)
    kernel = layer.weight.transpose(0, 1).flip(2, 3)  # a transposed convolution's weight is (in, out, k, k), mirrored
    torch.testing.assert_close(layer(x), conv2d(interpolate(x, scale_factor=2.0), kernel, padding=1))


@pytest.mark.parametrize(
    ("side", "gated"), [(8, {"1": 1}), (32, {"3": 3}), (64, {"4": 4}), (256, {"4": 4, "5": 4, "6": 4})]
)
def test_maps_are_gated_by_those_of_a_sixteenth_of_their_size(side: int, gated: dict[str, int]) -> None:
    generator = FastGANGenerator(latent_dim=4, image_shape=(3, side, side), channels=2, max_channels=4)
    assert set(generator.gates) == set(gated)
    z = torch.randn(2, 4)
    images = generator(z)
    seen: dict[str, tuple[int, ...]] = {}
    for number, gate in generator.gates.items():
        gate.register_forward_pre_hook(lambda _, maps, number=number: seen.update({number: tuple(maps[0].shape)}))
    coarsest = generator.coarsest[1]
    generator(z)
    for number, stages in gated.items():
        fine = coarsest * 2 ** int(number)
        assert seen[number][2:] == (fine // 2**stages, fine // 2**stages)
        bias = generator.gates[number].layers[2].bias
        before = bias.detach().clone()
        torch.nn.init.constant_(bias, -100.0)  # a gate of 0
        assert not torch.allclose(generator(z), images)
        bias.data.copy_(before)


def test_the_noise_reaches_every_stage_by_its_gains() -> None:
    torch.manual_seed(0)
    generator = FastGANGenerator(latent_dim=4, image_shape=(3, 32, 32), channels=2, max_channels=4).eval()
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    gains = [stage.gain.weight for stage in generator.stages]
    for weight in (generator.linear.weight, *gains):
        torch.nn.init.zeros_(weight)  # so that noise changes nothing
    z = torch.randn(2, 4)
    assert torch.equal(*generator(z))
    for weight in gains:
        torch.nn.init.uniform_(weight)
        assert not torch.equal(*generator(z))
        torch.nn.init.zeros_(weight)
