"""`gancli project`: a generator's own samples are found again."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import gancli
from gancli.errors import UserError
from gancli.inference.projection import project
from gancli.networks.base import Generator
from gancli.priors import Gaussian, TruncatedGaussian, Uniform

BOUND = 3.0  # of 255: below what one sees; rounding to bytes alone is 0.3


def test_the_noise_of_a_run_s_own_samples_is_found(cli, trained):
    assert cli("sample", f"run={trained}", "format=png", "count=2", "seed=7", "out=own").status == 0
    result = cli("project", f"run={trained}", "image=own", "steps=200", "out=found.png", "scale=1")
    assert result.status == 0 and result.out == "found.png\n", result.err
    with np.load("found.npz") as file:
        found = dict(file)
    assert found["errors"].max() < BOUND and found["labels"].tolist() == [-1, -1]
    assert found["names"].tolist() == ["00000.png", "00001.png"]
    own = np.stack([np.asarray(Image.open(f"own/0000{number}.png")) for number in (0, 1)]).astype(float)
    images = found["images"][..., 0].astype(float)
    assert np.sqrt(((images - own) ** 2).mean((1, 2))) == pytest.approx(found["errors"], abs=0.5)
    again = gancli.load(trained)(torch.from_numpy(found["z"]))
    assert np.array_equal(((again.clamp(-1, 1) + 1) * 127.5).round().numpy()[:, 0], images)
    with Image.open("found.png") as picture:
        assert picture.height == 16 + 2 * 10 + 2 and "00001.png: error" in result.err


def test_classes_are_found_too(train):
    generator = gancli.load(train("conditional=true"))
    with torch.no_grad():
        generator.network.noise.embedding.weight *= 20  # classes that look different after so little training
    images = generator.sample(3, seed=5, labels=[2, 8, 5])
    found = generator.project(images, steps=150)
    assert found.errors.max() < 3 * BOUND and found.labels.tolist() == [2, 8, 5]
    fixed = generator.project(images, steps=50, labels=[8])
    assert fixed.labels.tolist() == [8, 8, 8] and fixed.errors[0] > found.errors[0]


class Linear(Generator):
    """Maps noise to images of the same numbers."""

    def __init__(self):
        super().__init__(latent_dim=16, image_shape=(1, 4, 4))
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, z, labels=None):
        return self.scale * z.view(-1, 1, 4, 4)


def test_noise_stays_within_the_prior():
    target = torch.full((1, 1, 4, 4), 0.9)
    inside = project(Linear(), Uniform(dim=16, low=-0.5, high=0.5), target, steps=100, starts=1)
    assert inside.z.max() <= 0.5 and inside.z.mean() > 0.45
    truncated = project(Linear(), TruncatedGaussian(dim=16, bound=0.5), target, steps=100, starts=1)
    assert truncated.z.max() <= 0.5 + 1e-5 and truncated.z.mean() > 0.45
    free = project(Linear(), Gaussian(dim=16), target, steps=300, starts=1)
    assert free.errors.max() < 1 and torch.allclose(free.z, torch.full((1, 16), 0.9), atol=0.02)


def test_features_count_where_they_are_given():
    target = torch.zeros(1, 1, 4, 4)
    seen = []

    def features(images):
        seen.append(len(images))
        return [images]

    project(Linear(), Gaussian(dim=16), target, steps=4, starts=2, features=features)
    assert seen == [2, 2, 2, 1, 1, 1, 1], "the targets, a step and a comparison of all starts; the target, three steps"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["image=nowhere.png", "out=made/a.png"], "image=nowhere.png: no such file, folder or zip"),
        (["image=text.png"], "text.png cannot be read as an image: not an image that is known"),
        (["image=a.png", "out=a.png", "overwrite=true"], "out=a.png: is the image"),
        (["image=b", "out=b/c.png"], "out=b/c.png: is the image, or lies in the folder of the images"),
        (["image=a.png", "steps=0"], "steps=0: from 1 to 1,000,000"),
        (["image=a.png", "labels=3"], "trained without labels"),
        (["image=a.png", "out=a.jpg"], "ends in .png"),
        (["image=a.png", "out=there.png"], "exists already"),
    ],
)
def test_what_cannot_be_projected_is_refused(cli, trained, words, text):
    Image.new("RGB", (20, 30), "red").save("a.png")
    Path("b").mkdir()
    Image.new("L", (8, 8)).save("b/a.png")
    Path("text.png").write_text("no image")
    Path("there.png").touch()
    result = cli("project", f"run={trained}", *words)
    assert result.status == 2 and text in result.err and "Traceback" not in result.err
    assert not Path("made").exists() and Path("there.png").read_bytes() == b""


def test_images_of_another_shape_are_refused(trained):
    generator = gancli.load(trained)
    with pytest.raises(UserError, match=r"images of \(1, 9, 9\)"):
        generator.project(torch.zeros(1, 1, 9, 9))
    for images in (np.zeros((1, 8, 8, 1)), torch.zeros(1, 1, 8, 8, dtype=torch.uint8), [[0.0]]):
        with pytest.raises(UserError, match="images: a float tensor"):
            generator.project(images)
    for images in (torch.full((1, 1, 8, 8), torch.nan), torch.full((1, 1, 8, 8), 7.0), torch.zeros(0, 1, 8, 8)):
        with pytest.raises(UserError, match="of finite values in"):
            generator.project(images)
