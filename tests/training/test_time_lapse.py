"""The strip and the animation of a run, from its sample grids."""

import numpy as np
import pytest
from PIL import Image

from gancli.reporting import image_grids
from gancli.training import time_lapse
from gancli.training.run_folder import RunFolder

SHAPE = (1, 8, 8)


@pytest.fixture
def folder(tmp_path):
    """A run with grids of four samples after 0, 1,000, …, 19,000 images, each of one shade of grey."""
    folder = RunFolder(tmp_path)
    folder.samples.mkdir()
    for number in range(20):
        write(folder, 1_000 * number, shade=10 * number)
    return folder


def write(folder, images, *, shade, size=8):
    cells = np.full((4, size, size, 1), shade, np.uint8)
    image_grids.write_png(folder.sample_grid(images), image_grids.grid(cells))


def shades(file):
    """The shade of the first sample of each column, and of the rows of the first column, below the heading."""
    with Image.open(file) as image:
        pixels = np.asarray(image)[16:]
    return pixels[10, 10::50].tolist(), pixels[10::50, 10].tolist()


def test_the_strip_has_a_row_for_each_sample_and_a_column_for_each_time(folder):
    time_lapse.write_strip(folder, SHAPE)
    times, samples = shades(folder.progress_strip)
    assert len(times) == 12 and times[0] == 0 and times[-1] == 190 and times == sorted(times)
    assert samples == [0, 0], "of the two columns of a grid of four"


def test_damaged_grids_and_those_of_another_size_are_left_out(folder):
    folder.sample_grid(0).write_bytes(b"cut")
    write(folder, 19_000, shade=200)
    write(folder, 1_000, shade=20, size=9)
    time_lapse.write_strip(folder, SHAPE)
    time_lapse.write_animation(folder)
    times, _ = shades(folder.progress_strip)
    assert times[0] == 20 and times[-1] == 200 and len(times) == 11
    with Image.open(folder.progress_animation) as gif:
        assert gif.n_frames == 18


def test_the_animation_begins_with_the_first_grid_and_rests_on_the_last(folder):
    time_lapse.write_animation(folder)
    with Image.open(folder.progress_animation) as gif:
        assert gif.n_frames == 20 and gif.convert("L").getpixel((10, 10)) == 0
        first = gif.info["duration"]
        gif.seek(19)
        assert gif.convert("L").getpixel((10, 10)) == 190 and gif.info["duration"] == 5 * first


def test_plots_of_points_stand_side_by_side(folder):
    time_lapse.write_strip(folder, (2,))
    with Image.open(folder.progress_strip) as strip, Image.open(folder.sample_grid(0)) as plot:
        assert strip.width == 12 * (plot.width + 2) + 2 and strip.height == 16 + plot.height + 4


def test_times_are_thinned_evenly_by_images():
    assert time_lapse.thinned([0, 5, 9], 3) == [0, 5, 9]
    assert time_lapse.thinned([0, 1, 2, 3, 50, 99, 100], 3) == [0, 50, 100]
    assert time_lapse.thinned([0, 1, 2, 100], 3) == [0, 2, 100]


@pytest.mark.parametrize(("images", "text"), [(950, "950"), (12_300, "12k"), (999_600, "1M"), (1_250_000, "1.25M")])
def test_numbers_of_images_are_short(images, text):
    assert time_lapse._short(images) == text


def test_a_run_that_goes_on_shows_all_of_itself_and_nothing_that_it_took_back(train):
    often = ("log.pictures=16", "checkpoint.every=32")
    train(*often, images=32)
    stale = RunFolder("run").sample_grid(48)
    stale.write_bytes(b"of steps that were lost")
    run = RunFolder(train(*often, "resume=auto", images=64))
    assert list(run.sample_grids()) == [0, 16, 32, 48, 64]
    with Image.open(run.progress_animation) as gif, Image.open(run.progress_strip) as strip:
        assert gif.n_frames == 5 and strip.width == 5 * 50 + 2
