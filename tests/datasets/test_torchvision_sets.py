"""torchvision's data sets from tiny files, and the errors for missing files, without a network."""

import socket
import struct
import urllib.request
import warnings
from pathlib import Path
from typing import get_args

import pytest
import torch

from gancli.datasets.folder import CelebA
from gancli.datasets.stacked_mnist import StackedMNIST
from gancli.datasets.torchvision_sets import Name, TorchvisionSet, files_of
from gancli.errors import UserError

RAW = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]


@pytest.fixture(scope="module")
def torchvision():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torchvision

    return torchvision


@pytest.fixture(autouse=True)
def network(monkeypatch, torchvision):
    """Records and refuses every connection."""
    connections = []

    def refuse(*args, **_):
        connections.append(args)
        raise OSError("no network in tests")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return connections


def fake_mnist(root, kind="MNIST"):
    """Training images of brightness 10, 20, 30, 40 with labels 1, 2, 3, 9; test images of 110, … with 4, 5, 6, 0."""
    raw = root / kind / "raw"
    raw.mkdir(parents=True)
    for part, first, labels in (("train", 10, [1, 2, 3, 9]), ("t10k", 110, [4, 5, 6, 0])):
        pixels = b"".join(bytes([first + 10 * row]) * 784 for row in range(4))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, 4, 28, 28) + pixels)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, 4) + bytes(labels))
    return root


@pytest.mark.parametrize("kind", ["MNIST", "FashionMNIST", "KMNIST"])
def test_idx_files_are_read(tmp_path, network, kind):
    data = TorchvisionSet(name=kind, root=str(fake_mnist(tmp_path, kind)))
    assert data.shape == (1, 28, 28) and len(data) == 4 and data.num_classes == 10
    batch, labels = data.batch(0, size=4, seed=0)
    values = {int(label): float(image[0, 0, 0]) for image, label in zip(batch, labels, strict=True)}
    assert values == pytest.approx(
        {1: 10 / 127.5 - 1, 2: 20 / 127.5 - 1, 3: 30 / 127.5 - 1, 9: 40 / 127.5 - 1}, abs=1e-6
    )
    held_out, holdout_labels = data.holdout(100)
    assert holdout_labels.tolist() == [4, 5, 6, 0]
    assert held_out[:, 0, 5, 5].tolist() == pytest.approx(
        [value / 127.5 - 1 for value in (110, 120, 130, 140)], abs=1e-6
    )
    assert not network


@pytest.mark.parametrize("name", get_args(Name))
def test_missing_files_are_listed_and_not_downloaded_where_that_is_off(tmp_path, network, name):
    with pytest.raises(UserError) as caught:
        TorchvisionSet(name=name, root=str(tmp_path / "none"), download=False)
    text = str(caught.value)
    assert text.startswith(f"dataset.root={tmp_path / 'none'}: {name} is not there, and dataset.download=false")
    assert len(text.splitlines()) > 1
    for line in text.splitlines()[1:]:
        assert line.startswith(f"  {tmp_path / 'none'}")
    assert not network


def test_a_relative_root_is_given_as_an_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        TorchvisionSet(name="MNIST", root="data", download=False)
    for name in RAW:
        assert str(tmp_path / "data" / "MNIST" / "raw" / name) in str(caught.value)


def test_a_failed_download_is_reported(tmp_path, network):
    with pytest.raises(UserError, match="MNIST is not there, and download failed: ") as caught:
        TorchvisionSet(name="MNIST", root=str(tmp_path), download=True)
    assert network and str(tmp_path / "MNIST" / "raw" / RAW[0]) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\0\0\x08\x03", b"not an idx file at all"], ids=["empty", "short", "text"])
def test_broken_files_are_listed(tmp_path, content):
    (fake_mnist(tmp_path) / "MNIST" / "raw" / RAW[0]).write_bytes(content)
    with pytest.raises(UserError) as caught:
        TorchvisionSet(name="MNIST", root=str(tmp_path), download=False)
    assert str(tmp_path / "MNIST" / "raw" / RAW[0]) in str(caught.value)


def test_the_files_that_torchvision_expects(torchvision):
    sets, root = torchvision.datasets, Path("/somewhere")
    for name in ("MNIST", "FashionMNIST", "KMNIST"):
        assert sorted(files_of(getattr(sets, name), root)) == sorted(f"/somewhere/{name}/raw/{file}" for file in RAW)
    assert files_of(sets.SVHN, root) == ["/somewhere/train_32x32.mat", "/somewhere/test_32x32.mat"]
    assert files_of(sets.CIFAR10, root) == [
        "/somewhere/cifar-10-python.tar.gz (unpacked there, into cifar-10-batches-py/)"
    ]
    assert files_of(sets.CIFAR100, root) == [
        "/somewhere/cifar-100-python.tar.gz (unpacked there, into cifar-100-python/)"
    ]


@pytest.mark.parametrize("holdout", [False, True])
def test_stacked_mnist_stacks_three_digits_and_their_labels(tmp_path, network, holdout):
    data = StackedMNIST(root=str(fake_mnist(tmp_path)), download=False)
    assert data.shape == (3, 28, 28) and data.num_classes == 1000
    images, labels = data.holdout(64) if holdout else data.batch(0, size=64, seed=0)
    assert images.shape == (64, 3, 28, 28) and labels.shape == (64,) and labels.dtype == torch.int64
    digit = {110: 4, 120: 5, 130: 6, 140: 0} if holdout else {10: 1, 20: 2, 30: 3, 40: 9}
    assert (images == images[:, :, :1, :1]).all()
    pixels = ((images[:, :, 0, 0] + 1) * 127.5).round().int().tolist()
    assert labels.tolist() == [100 * digit[r] + 10 * digit[g] + digit[b] for r, g, b in pixels]
    assert len(labels.unique()) > 30 and not network
    assert torch.equal(images, (data.holdout(64) if holdout else data.batch(0, size=64, seed=0))[0])


def test_missing_files_of_stacked_mnist_are_reported(tmp_path, network):
    with pytest.raises(UserError, match=r"MNIST is not there, and dataset\.download=false"):
        StackedMNIST(root=str(tmp_path), download=False)
    assert not network


def test_a_failed_download_of_celeba_is_reported(tmp_path):
    with pytest.raises(UserError, match="CelebA is not there, and download failed: ") as caught:
        CelebA(root=str(tmp_path), cache=str(tmp_path / "cache"))
    assert str(tmp_path / "celeba" / "img_align_celeba") in str(caught.value)
