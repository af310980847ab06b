"""How samples of the same noise changed over a run, from its sample grids: a strip as PNG and an animation as GIF."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gancli.reporting import image_grids
from gancli.reporting.image_grids import Array
from gancli.training.run_folder import RunFolder

_ROWS, _COLUMNS, _CELL = 8, 12, 128  # samples, times, and pixels of a side of a sample in the strip, at most
_FRAMES, _SIDE = 60, 540  # frames of the animation, and pixels of a side, at most
_SECONDS, _SHORTEST, _LONGEST = 6.0, 100, 500  # of an animation, and milliseconds of a frame
_LAST = 4  # times that the last frame is shown


def write_strip(folder: RunFolder, shape: Sequence[int]) -> None:
    """Writes progress.png: one sample per row, one time per column, named by images seen; plots of points in one row.

    shape: of a sample, (C, H, W) or (dims,). Raises OSError.
    """
    found = _grids(folder, _COLUMNS)
    if not found:
        return
    times = [[grid] if len(shape) == 1 else _samples(grid, shape) for _, grid in found]
    cells = np.stack([time[row] for row in range(len(times[0])) for time in times])
    headings = {column: _short(images) for column, (images, _) in enumerate(found)}
    strip = image_grids.grid(cells, columns=len(found), scale=1, headings=headings)
    image_grids.write_png(folder.progress_strip, strip)


def write_animation(folder: RunFolder) -> None:
    """Writes progress.gif: the sample grid over the run. Raises OSError."""
    frames = [image_grids.shrunk(grid, _SIDE) for _, grid in _grids(folder, _FRAMES)]
    if frames:
        milliseconds = round(min(max(1000 * _SECONDS / len(frames), _SHORTEST), _LONGEST))
        image_grids.write_gif(folder.progress_animation, [*frames, *_LAST * frames[-1:]], milliseconds=milliseconds)


def thinned(numbers: Sequence[int], count: int) -> list[int]:
    """Returns at most `count` of the rising `numbers`, spaced as evenly as they allow, with the first and last one."""
    if len(numbers) <= count:
        return list(numbers)
    wanted = np.linspace(numbers[0], numbers[-1], count)
    nearest = np.abs(np.asarray(numbers)[:, None] - wanted).argmin(axis=0)
    return [numbers[index] for index in sorted(set(nearest.tolist()))]


def _grids(folder: RunFolder, count: int) -> list[tuple[int, Array]]:
    """Returns at most `count` grids with the images seen before each, those that are as large as the newest one."""
    files = folder.sample_grids()
    newest = image_grids.read_png(files[max(files)]) if files else None
    if newest is None:
        return []
    size = (newest.shape[0], newest.shape[1])
    read = {images: image_grids.read_png(files[images], size=size) for images in thinned(sorted(files), count)}
    return [(images, grid) for images, grid in read.items() if grid is not None and grid.shape == newest.shape]


def _samples(grid: Array, shape: Sequence[int]) -> list[Array]:
    _, height, width = shape
    return image_grids.first_row(grid, height=height, width=width, count=_ROWS, largest=_CELL)


def _short(images: int) -> str:
    """Returns a number of images in a few letters, such as 950, 12k or 1.2M."""
    if images < 1_000:
        return str(images)
    return f"{images / 1e3:.0f}k" if images < 999_500 else f"{images / 1e6:.3g}M"
