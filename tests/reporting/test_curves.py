"""Curves of several runs in one plot."""

import numpy as np

from gancli.reporting import plots
from gancli.reporting.curves import draw, summarise


def rows(*points):
    return np.array(points, dtype=np.float64)


def test_a_line_is_the_mean_of_its_runs_where_all_were_measured():
    one = rows((100, 10, 8.0), (200, 20, 4.0), (300, 30, 3.0))
    two = rows((100, 14, 6.0), (300, 34, 2.0), (400, 44, 1.0))
    line = summarise("both", [one, two])
    assert line.images.tolist() == [100, 200, 300], "nothing is extrapolated to 400"
    assert line.seconds.tolist() == [12, 22, 32]
    assert line.mean.tolist() == [7.0, 4.0, 2.5]
    assert (line.low.tolist(), line.high.tolist()) == ([6.0, 4.0, 2.0], [8.0, 4.0, 3.0])


def test_runs_that_never_overlap_have_no_line():
    line = summarise("apart", [rows((1, 1, 1.0), (2, 2, 1.0)), rows((3, 3, 1.0), (4, 4, 1.0))])
    assert len(line.images) == len(line.mean) == 0


def test_the_plot_has_lines_bands_a_star_and_a_scale_that_fits(monkeypatch):
    axes, make = [], plots.figure

    def figure():
        plot, (axis,) = make()
        axes.append(axis)
        return plot, [axis]

    monkeypatch.setattr(plots, "figure", figure)
    lines = [summarise("a", [rows((1, 60, 50.0), (2, 120, 1.0)), rows((1, 60, 40.0), (2, 120, 3.0))])]
    image = draw(lines, over="seconds", unit=60.0, xlabel="minutes", ylabel="fid", best=(120, 1.0))
    assert image.dtype == np.uint8 and image.shape[2] == 3
    (axis,) = axes
    mean, star = axis.get_lines()
    assert mean.get_xydata().tolist() == [[1, 45], [2, 2]] and star.get_xydata().tolist() == [[2, 1]]
    assert axis.get_yscale() == "log" and len(axis.collections) == 1
    assert [text.get_text() for text in axis.figure.legends[0].get_texts()] == ["a", "best run"]
