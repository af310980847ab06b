"""What many tests need: the command line in-process, and a run that takes a second."""

import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores; torch has not been imported yet
    os.environ.setdefault("OMP_NUM_THREADS", "1")

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


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory):
    """Caches go where nobody else looks."""
    before, os.environ["HOME"] = os.environ.get("HOME"), str(tmp_path_factory.mktemp("home"))
    yield
    if before is not None:
        os.environ["HOME"] = before


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


@pytest.fixture
def train(cli):
    """`train("key=value", …)` runs a tiny training in ./run and must succeed."""

    def call(*overrides, folder="run", images=None):
        words = [*TINY, f"hydra.run.dir={folder}", *overrides]
        if images is not None:
            words.append(f"train.images={images}")
        result = cli("train", *words)
        assert result.status == 0, result.err
        return Path(folder)

    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A finished tiny run, made once; do not write into it."""
    from hydra.core.global_hydra import GlobalHydra

    from gancli.cli import run

    folder = tmp_path_factory.mktemp("trained") / "run"
    argv, here = sys.argv, os.getcwd()
    os.chdir(folder.parent)
    try:
        assert run(["train", *TINY, f"hydra.run.dir={folder}"]) == 0
    finally:
        sys.argv = argv
        os.chdir(here)
        GlobalHydra.instance().clear()
        logging.captureWarnings(False)
    return folder
