"""What many tests need: the command line in-process, and a run that takes a second."""

import copy
import functools
import gc
import logging
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import quick_hydra
from pictures import grey, save

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores; torch has not been imported yet
    os.environ.setdefault("OMP_NUM_THREADS", "1")
quick_hydra.install()

TINY = [
    "device=cpu",
    "network.generator.channels=8",
    "network.discriminator.channels=8",
    "prior.dim=8",
    "train.batch_size=16",
    "train.images=64",
    "log.every=16",
    "log.pictures=64",
    "log.samples=4",
    "log.holdout=16",
    "evaluation.every=null",
]
POINTS = [word for word in TINY if "channels" not in word] + ["dataset=gaussian_ring", "network=mlp"]

LONG_FILES = ("test_slurm.py", "test_process_group.py", "test_chapters.py", "test_theory.py", "test_package.py")


def pytest_collection_modifyitems(items):
    """Files that take minutes come first, so that no worker is left with one of them at the end."""
    order = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def pytest_collection_finish():
    """Spares the garbage collector the modules of torch, over and over, which costs a sixth of the time."""
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory):
    """Caches go where nobody else looks."""
    before, os.environ["HOME"] = os.environ.get("HOME"), str(tmp_path_factory.mktemp("home"))
    os.environ.pop("XDG_CACHE_HOME", None)
    yield
    if before is not None:
        os.environ["HOME"] = before


@pytest.fixture(scope="session", autouse=True)
def random_features():
    """`metric/features=auto` is the random network, which is faster, as where gancli[pretrained] is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gancli.metrics.features.is_installed", lambda variant: False)
        yield


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    """`cli("train", …)` in a folder of its own: status, out and err of one command line."""
    from hydra.core.global_hydra import GlobalHydra

    from gancli.cli import run

    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    before = root.handlers[:]

    def call(*argv):
        monkeypatch.setattr(sys, "argv", ["gancli", *argv])
        try:
            status = run([str(word) for word in argv])
        finally:
            GlobalHydra.instance().clear()
            for handler in root.handlers[:]:
                if handler not in before:
                    root.removeHandler(handler)
                    handler.close()
        captured = capsys.readouterr()
        return SimpleNamespace(status=status, out=captured.out, err=captured.err)

    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    yield call
    logging.captureWarnings(False)


@functools.lru_cache(maxsize=512)
def _composed(overrides):
    from gancli.config import compose

    return compose("train", list(overrides))


def train_in(folder, *overrides):
    """Trains as `gancli train` does, without the second that Hydra takes to compose and launch it."""
    from gancli.commands import train

    logging.captureWarnings(True)
    try:
        trainer = train.run(copy.deepcopy(_composed(overrides)), folder=Path(folder), overrides=list(overrides))
    finally:
        logging.captureWarnings(False)
    assert not isinstance(trainer.stopped_by, signal.Signals)


@pytest.fixture
def train(monkeypatch, tmp_path):
    """`train("key=value", …)` runs a tiny training in ./run and must succeed."""
    monkeypatch.chdir(tmp_path)

    def call(*overrides, folder="run", images=None):
        length = [] if images is None else [f"train.images={images}"]
        train_in(folder, *TINY, *overrides, *length)
        return Path(folder)

    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A finished tiny run, made once; do not write into it."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    train_in(folder, *TINY)
    return folder


@pytest.fixture(scope="session")
def trained_on_points(tmp_path_factory):
    """As `trained`, on points of a ring."""
    folder = tmp_path_factory.mktemp("points") / "run"
    train_in(folder, *POINTS)
    return folder


@pytest.fixture
def photos(tmp_path):
    """A folder of ten images in nested folders; image i has the value 20 i everywhere."""
    for number in range(10):
        save(tmp_path / "in" / f"{number % 2}" / "deep" / f"{number}.png", grey(20 * number))
    return tmp_path / "in"


@pytest.fixture
def read_folder(tmp_path):
    """`read_folder(path, …)` returns the data set of a folder or zip of images, at 8x8 pixels by default."""
    from gancli.datasets.folder import Folder

    def call(path, **settings):
        return Folder(path=str(path), cache=str(tmp_path / "cache"), **{"resolution": 8, **settings})

    return call
