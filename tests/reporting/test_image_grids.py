"""Grids of images, the choice between grid and plot, and PNG and GIF files."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gancli.reporting import image_grids, plots


def test_every_level_from_0_to_255_is_restored() -> None:
    levels = torch.arange(256, dtype=torch.float32).view(1, 1, 16, 16)
    array = image_grids.to_uint8(levels / 127.5 - 1)
    assert array.shape == (1, 16, 16, 1)
    assert array.dtype == np.uint8
    assert (array.ravel() == np.arange(256)).all()


def test_levels_are_clamped_and_rounded() -> None:
    values = torch.tensor([-5.0, -1.0, 0.0, 1.0, 5.0, float("nan"), float("inf"), 100.6 / 127.5 - 1])
    assert image_grids.to_uint8(values.view(1, 1, 1, 8)).ravel().tolist() == [0, 0, 128, 255, 255, 128, 255, 101]


def test_channels_become_the_last_axis() -> None:
    image = torch.tensor([-1.0, 0.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert image_grids.to_uint8(image)[0, 1, 1].tolist() == [0, 128, 255]


def test_a_grid_magnifies_images_and_places_them_row_by_row() -> None:
    images = np.zeros((3, 8, 8, 1), np.uint8)
    images[1] = 100
    images[2, 0, 0] = 200
    canvas = image_grids.grid(images, columns=2, pad=2)
    assert canvas.shape == (2 * 50 + 2, 2 * 50 + 2, 1)
    assert (canvas[:2] == 255).all() and (canvas[:, 50:52] == 255).all()
    assert (canvas[2:50, 2:50] == 0).all()
    assert (canvas[2:50, 52:100] == 100).all()
    assert (canvas[52:58, 2:8] == 200).all() and (canvas[58:100, 2:50] == 0).all()
    assert (canvas[52:, 52:] == 255).all()


def test_headings_stand_above_the_columns_that_they_begin_at() -> None:
    images = np.zeros((4, 8, 8, 3), np.uint8)
    plain, labelled = image_grids.grid(images, columns=4), image_grids.grid(images, columns=4, headings={1: "nearest"})
    line, below = np.split(labelled, [len(labelled) - len(plain)])
    assert (below == plain).all()
    dark = np.flatnonzero((line < 128).any(axis=(0, 2)))
    assert 52 <= dark.min() < 56 and dark.max() < 102, "seven letters over the second column"


def test_a_heading_that_is_wider_than_the_grid_is_shown_whole() -> None:
    images = np.zeros((1, 8, 8, 1), np.uint8)
    array = image_grids.grid(images, headings={0: "nearest training images"})
    assert array.shape[1] > image_grids.grid(images).shape[1] and (array[:, -2:] == 255).all()


def test_the_first_row_of_a_grid_is_read_back() -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 16, 12, 3), dtype=np.uint8)
    array = image_grids.grid(images)
    row = image_grids.first_row(array, height=16, width=12, count=9, largest=64)
    assert len(row) == 3, "of 7 images in 3 columns"
    for image, shown in zip(images, row, strict=False):
        assert np.array_equal(shown, image.repeat(4, axis=0).repeat(4, axis=1))
    shrunk = image_grids.first_row(array, height=16, width=12, count=2, largest=20)
    assert len(shrunk) == 2 and shrunk[0].shape == (16, 12, 3) and np.array_equal(shrunk[0], images[0])


@pytest.mark.parametrize("content", ["text", "another size", "a jpeg", "cut off"])
def test_only_a_whole_png_of_the_right_size_is_read(tmp_path: Path, content: str) -> None:
    path, array = tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    image_grids.write_png(path, array)
    assert np.array_equal(image_grids.read_png(path, size=(60, 90)), array)  # type: ignore[arg-type]
    if content == "a jpeg":
        Image.fromarray(array).save(path, format="JPEG")
    elif content == "another size":
        image_grids.write_png(path, array[1:])
    else:
        path.write_bytes(b"text" if content == "text" else path.read_bytes()[:5_000])
    assert image_grids.read_png(path, size=(60, 90)) is None


def test_a_grid_of_a_chosen_scale() -> None:
    assert image_grids.grid(np.zeros((4, 8, 8, 1), np.uint8), scale=2).shape == (2 * 18 + 2, 2 * 18 + 2, 1)
    assert image_grids.picture(torch.zeros(4, 1, 64, 64), scale=2).shape == (2 * 130 + 2, 2 * 130 + 2, 1)


@pytest.mark.parametrize(("channels", "shown"), [(1, 1), (2, 1), (3, 3), (4, 3)])
def test_a_grid_shows_one_or_three_channels(channels: int, shown: int) -> None:
    images = np.arange(channels, dtype=np.uint8).reshape(1, 1, 1, channels).repeat(64, 1).repeat(96, 2)
    canvas = image_grids.grid(images, pad=1)
    assert canvas.shape == (66, 98, shown)
    assert canvas[5, 5].tolist() == list(range(shown))


def test_a_grid_is_about_square_and_no_wider_than_its_images() -> None:
    images = np.zeros((10, 64, 64, 3), np.uint8)
    assert image_grids.grid(images).shape == (3 * 66 + 2, 4 * 66 + 2, 3)
    assert image_grids.grid(images[:2], columns=9).shape == (68, 2 * 66 + 2, 3)
    with pytest.raises(ValueError, match="none to show"):
        image_grids.grid(images[:0])


def test_the_kind_of_picture_depends_on_the_shape() -> None:
    points = torch.randn(50, 3)
    assert image_grids.picture(torch.zeros(4, 3, 64, 64)).shape == (134, 134, 3)
    assert image_grids.picture(torch.zeros(4, 1, 64, 64), columns=4).shape == (68, 266, 1)
    limits = image_grids.limits(points[:, :2])
    bars = plots.histogram(points[:, :1], limits=image_grids.limits(points[:, :1]))
    assert (image_grids.picture(points[:, :1]) == bars).all()
    assert (image_grids.picture(points[:, :2]) == plots.scatter(points[:, :2], limits=limits)).all()

    def never(_: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the density of three coordinates is asked about two")

    three = image_grids.picture(points, density=never, limits=limits)
    assert (three == image_grids.picture(points[:, :2], limits=limits)).all()


def test_limits_are_equally_long_and_ignore_outliers() -> None:
    points = torch.stack([torch.linspace(0, 1, 1001), torch.linspace(4, 6, 1001)], dim=1)
    points[0] = 1e6
    points[1] = float("nan")
    (x_low, x_high), (y_low, y_high) = image_grids.limits(points)
    assert x_low < 0 and x_high > 1 and y_low < 4 and y_high > 6
    assert x_high - x_low == pytest.approx(y_high - y_low)
    assert y_high - y_low == pytest.approx(3, rel=0.02)
    assert image_grids.limits(torch.full((5, 1), 3.0)) == [(2.0, 4.0)]
    assert image_grids.limits(torch.full((5, 4), float("nan"))) == [(-1.0, 1.0), (-1.0, 1.0)]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_file_holds_the_array(tmp_path: Path, channels: int) -> None:
    array = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    image_grids.write_png(tmp_path / "a.png", array)
    assert (np.array(Image.open(tmp_path / "a.png")).reshape(array.shape) == array).all()


def test_a_gif_file_has_every_frame(tmp_path: Path) -> None:
    frames = [np.full((6, 6, 3), level, np.uint8) for level in (0, 100, 200)]
    image_grids.write_gif(tmp_path / "a.gif", iter(frames), milliseconds=80)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 3  # type: ignore[attr-defined]
        assert gif.info["duration"] == 80 and gif.info["loop"] == 0
        gif.seek(2)
        assert gif.convert("RGB").getpixel((3, 3)) == (200, 200, 200)
    with pytest.raises(ValueError, match="none to show"):
        image_grids.write_gif(tmp_path / "b.gif", [], milliseconds=80)


@pytest.mark.parametrize("name", ["a.png", "a.gif"])
def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, array = tmp_path / name, np.zeros((4, 4, 3), np.uint8)
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        image_grids.write_png(path, array) if name.endswith("png") else image_grids.write_gif(
            path, [array], milliseconds=50
        )
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_training_on_images_does_not_import_matplotlib(train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # an import would fail
    assert (train("diagnostic=none") / "samples.png").exists()
