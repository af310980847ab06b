"""Every YAML there is, found by glob: composed, checked, instantiated, commented."""

import copy
import functools
import inspect
import re
from collections import defaultdict
from pathlib import Path

import pytest
import torch
import yaml
from conftest import TINY
from PIL import Image

from gancli import config
from gancli.build import build, nodes, resolve
from gancli.commands import check_settings, parts, train
from gancli.config import config_dir
from gancli.datasets import stacked_mnist, torchvision_sets
from gancli.networks.efficientnet import is_installed
from gancli.randomness import seeded
from gancli.training import run_folder

GROUPS = sorted(p.name for p in config_dir().iterdir() if p.is_dir() and p.name != "hydra")
FILES = sorted(str(p.relative_to(config_dir())) for p in config_dir().rglob("*.yaml"))
NEEDED = {  # values that a user must give, and data sets that a test must not download
    "dataset/folder.yaml": ["dataset.path=nowhere"],
    "experiment/photos.yaml": ["dataset.path=nowhere"],
    "experiment/photos_small.yaml": ["dataset.path=nowhere"],
    "distribution/expression.yaml": ["dataset.distribution.cdf='1/(1+exp(-x))'"],
    "distribution/table.yaml": ["dataset.distribution.path=nowhere"],
}


def choices(group):
    return sorted(p.stem for p in (config_dir() / group).glob("*.yaml"))


@functools.cache
def _composed(name, overrides):
    return config.compose(name, list(overrides))


def composed(*overrides, name="train"):
    return copy.deepcopy(_composed(name, overrides))


def override_for(file):
    group, name = file.removesuffix(".yaml").rsplit("/", 1)
    extra = NEEDED.get(file, [])
    if group == "distribution":
        return ["dataset=distribution_1d", f"distribution@dataset.distribution={name}", "network=mlp", *extra]
    if group == "schedule":
        keys = yaml.safe_load((config_dir() / file).read_text())
        given = [f"optimizer.generator.lr.{key}=1e-4" for key, value in keys.items() if value == "???"]
        return [f"+schedule@optimizer.generator.lr={name}", *given]
    if group in ("penalty", "metric"):
        return [f"{group}=[{name}]"]
    if group == "optimizer":
        return [f"optimizer@optimizer.generator={name}"]
    return [f"{group}={name}", *extra]


@pytest.mark.parametrize("file", [f for f in FILES if "/" in f and not f.startswith("hydra")])
def test_every_choice_composes_and_each_key_is_taken_by_the_class_it_is_for(file):
    config.check(composed(*override_for(file)), config.RUN_SCHEMA)


def test_a_key_that_nothing_reads_is_noticed():
    settings = composed("+train.colour=3")
    with pytest.raises(config.UserError, match=r"train\.colour: .* has no such setting"):
        config.check(settings, config.RUN_SCHEMA)


def test_top_level_keys_are_read():
    settings = composed()
    sections = {key for key, value in settings.items() if isinstance(value, dict)}
    source = "".join(Path(module.__file__).read_text() for module in (train, check_settings, parts, run_folder))
    used = re.findall(r'settings\["(\w+)"\]', source)
    assert sections <= set(used), sections - set(used)
    assert set(settings) - sections == set(config.RUN_SCHEMA)


def test_a_default_is_the_same_in_the_yaml_and_in_the_constructor():
    """Where several choices name one class, such as the data sets of torchvision, their YAML may differ from it."""
    values = defaultdict(set)
    for file in (file for file in FILES if not file.startswith(("hydra", "experiment"))):
        settings = composed(*override_for(file)) if "/" in file else composed(name=file.removesuffix(".yaml"))
        for _, node in nodes(settings):
            for name, value in node.items():
                if not isinstance(value, dict) and value != "???" and node["_target_"].startswith("gancli."):
                    values[node["_target_"], name].add(repr(value))
    differing = []
    for (target, name), found in values.items():
        parameter = inspect.signature(resolve(target, key="")).parameters.get(name)
        if len(found) == 1 and parameter is not None and parameter.default is not inspect.Parameter.empty:
            default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
            if found != {repr(default)}:
                differing.append(f"{target}: {name} is {found} in YAML, {default!r} in the constructor")
    assert len(values) > 100 and not differing, "\n".join(differing)


@pytest.mark.parametrize("file", FILES)
def test_every_key_has_a_comment(file):
    lines = (config_dir() / file).read_text().splitlines()
    assert lines[0].startswith("#"), "the first line says what the file is for"
    inside = False
    for line in lines:
        if re.match(r"\S", line):
            inside = line.startswith("defaults:")
        if file.startswith("hydra/help") and line.startswith(" "):
            continue  # a text, not keys
        if inside or line.lstrip().startswith(("#", "-")) or not re.match(r"\s*[\w.@]+:\s*\S", line):
            continue
        if "_target_" not in line:
            assert "  #" in line, f"{file}: {line!r} lacks a comment"


@pytest.mark.parametrize(
    "group", [g for g in GROUPS if g in ("prior", "loss", "update", "penalty", "augment", "device", "schedule")]
)
def test_every_small_part_is_built(group):
    for name in choices(group):
        if (group, name) == ("device", "cuda"):
            continue
        settings = composed(*override_for(f"{group}/{name}.yaml"))
        node = settings["optimizer"]["generator"]["lr"] if group == "schedule" else settings[group]
        parts = {f"penalty.{key}": part for key, part in node.items()} if group == "penalty" else {group: node}
        for key, part in parts.items():
            assert build(part, key=key) is not None


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Random images in place of every named data set, and a folder of some."""

    def load(name, *, root, download, train):
        shape = (3, 32, 32) if "CIFAR" in name else (1, 28, 28)
        images = torch.randint(0, 256, (300, *shape), dtype=torch.uint8, generator=seeded(name, train))
        return images, torch.arange(300) % 10

    for module in (torchvision_sets, stacked_mnist):
        monkeypatch.setattr(module, "load", load)
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(150):
        Image.new("RGB", (70, 80), (number, 50, 255 - number)).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("name", choices("experiment"))
@pytest.mark.slow
def test_every_experiment_trains_for_a_few_steps(name, cli, pictures):
    extra = [o.replace("nowhere", str(pictures)) for o in NEEDED.get(f"experiment/{name}.yaml", [])]
    if name.startswith("photos"):
        if not is_installed(1):
            pytest.skip("needs gancli[pretrained]")
        extra += ["dataset.resolution=32", "network.discriminator.side=32"]  # a third of the time
    settings = composed(f"experiment={name}", *extra)
    images = "channels" in settings["network"]["generator"]
    small = [word for word in TINY if not word.startswith(("network", "prior", "train"))]
    if images:
        small += ["network.generator.channels=8", "network.discriminator.channels=8", "train.batch_size=16"]
    else:
        small += ["log.pictures=100_000"]  # a plot of points takes longer than a step
    size = 16 if images else settings["train"]["batch_size"]
    small += ["train.minutes=null", f"train.images={3 * size}", "hydra.run.dir=run"]
    result = cli("train", f"experiment={name}", *extra, *small)
    assert result.status == 0, result.err
    assert Path("run/samples.png").exists()


def test_an_experiment_without_its_penalties(cli):
    """What it says of them is of no use then; what is typed of a penalty that is not there is a mistake."""
    words = ["train", "experiment=gaussian_ring", "penalty=none", "train.images=256", "evaluation.every=null"]
    result = cli(*words, "log.pictures=100_000", "device=cpu", "hydra.run.dir=run")
    assert result.status == 0, result.err
    refused = cli(*words, "penalty.r1.weight=1.0")
    assert refused.status == 2 and "penalty.r1.weight=1.0: nothing reads this setting" in refused.err
