from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gancli.reporting import image_grids

DOT, SHADE, WHITE = (200, 60, 20), (70, 110, 180), (255, 255, 255)


def test_every_level_survives() -> None:
    levels = torch.arange(256, dtype=torch.float32).view(1, 1, 16, 16)
    array = image_grids.to_uint8(levels / 127.5 - 1)
    assert array.shape == (1, 16, 16, 1)
    assert array.dtype == np.uint8
    assert (array.ravel() == np.arange(256)).all()


def test_levels_are_clamped_and_rounded() -> None:
    values = torch.tensor([-5.0, -1.0, 0.0, 1.0, 5.0, float("nan"), float("inf"), 100.6 / 127.5 - 1])
    assert image_grids.to_uint8(values.view(1, 1, 1, 8)).ravel().tolist() == [0, 0, 128, 255, 255, 128, 255, 101]


def test_channels_go_last() -> None:
    image = torch.tensor([-1.0, 0.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert image_grids.to_uint8(image)[0, 1, 1].tolist() == [0, 128, 255]


def test_grid_places_and_magnifies() -> None:
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


@pytest.mark.parametrize(("channels", "shown"), [(1, 1), (2, 1), (3, 3), (4, 3)])
def test_grid_shows_one_or_three_channels(channels: int, shown: int) -> None:
    images = np.arange(channels, dtype=np.uint8).reshape(1, 1, 1, channels).repeat(64, 1).repeat(96, 2)
    canvas = image_grids.grid(images, pad=1)
    assert canvas.shape == (66, 98, shown)
    assert canvas[5, 5].tolist() == list(range(shown))


def test_grid_is_about_square_and_not_wider_than_its_images() -> None:
    images = np.zeros((10, 64, 64, 3), np.uint8)
    assert image_grids.grid(images).shape == (3 * 66 + 2, 4 * 66 + 2, 3)
    assert image_grids.grid(images[:2], columns=9).shape == (68, 2 * 66 + 2, 3)
    with pytest.raises(ValueError, match="none to show"):
        image_grids.grid(images[:0])


def test_scatter_puts_points_where_they_are() -> None:
    points = torch.tensor([[0.0, 0.5], [9.0, 0.0], [float("nan"), 0.0], [float("inf"), 0.0]])
    canvas = image_grids.scatter(points, limits=[(-1, 1), (-1, 1)])
    assert canvas.shape == (480, 480, 3)
    assert tuple(canvas[120, 240]) == DOT  # y = 0.5 is in the upper half
    assert (canvas != 255).any(axis=2).sum() == 5


def test_scatter_shades_the_density() -> None:
    canvas = image_grids.scatter(
        torch.empty(0, 2), density=lambda p: ((p[:, 0] > 0) & (p[:, 1] > 0)).float(), limits=[(-1, 1), (-1, 1)]
    )
    assert (canvas[:240, 240:] == SHADE).all()
    assert (canvas[240:] == 255).all() and (canvas[:, :240] == 255).all()
    plain = image_grids.scatter(torch.empty(0, 2), density=lambda p: None, limits=[(-1, 1), (-1, 1)])
    assert (plain == 255).all()


def test_histogram_bars_have_the_height_of_the_density() -> None:
    points = torch.linspace(-1, 1, 6001)[:-1, None]
    canvas = image_grids.histogram(points, limits=[(-2, 2)])
    filled = (canvas == SHADE).all(axis=2)
    assert not filled[:, :118].any() and not filled[:, 362:].any()
    # Which of two bars a point on their edge falls into is a matter of rounding.
    assert (abs(filled[:, 130:350].sum(axis=0) - 480 / 1.1) <= 5).all()


def test_histogram_draws_the_curve() -> None:
    canvas = image_grids.histogram(
        torch.full((10, 1), float("nan")), density=lambda p: torch.ones(len(p)), limits=[(0.0, 1.0)]
    )
    curve = (canvas == DOT).all(axis=2)
    assert curve.any(axis=0).all()
    assert abs(np.argmax(curve[:, 240]) - (480 - 480 / 1.1)) <= 2


def test_empty_histogram_is_white() -> None:
    assert (image_grids.histogram(torch.empty(0, 1), limits=[(0, 1)]) == 255).all()


def test_picture_follows_the_shape() -> None:
    points = torch.randn(50, 3)
    assert image_grids.picture(torch.zeros(4, 3, 64, 64)).shape == (134, 134, 3)
    assert image_grids.picture(torch.zeros(4, 1, 64, 64), columns=4).shape == (68, 266, 1)
    limits = image_grids.limits(points[:, :2])
    bars = image_grids.histogram(points[:, :1], limits=image_grids.limits(points[:, :1]))
    assert (image_grids.picture(points[:, :1]) == bars).all()
    assert (image_grids.picture(points[:, :2]) == image_grids.scatter(points[:, :2], limits=limits)).all()

    def never(_: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the density of three coordinates is asked about two")

    three = image_grids.picture(points, density=never, limits=limits)
    assert (three == image_grids.picture(points[:, :2], limits=limits)).all()


def test_limits_are_square_and_robust() -> None:
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
def test_png_round_trip(tmp_path: Path, channels: int) -> None:
    array = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    image_grids.write_png(tmp_path / "a.png", array)
    assert (np.array(Image.open(tmp_path / "a.png")).reshape(array.shape) == array).all()


def test_gif_has_every_frame(tmp_path: Path) -> None:
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
def test_failure_keeps_the_old_file_and_leaves_no_other(
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
