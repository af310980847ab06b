"""Plots of samples as images: what they show and what they leave out."""

import numpy as np
import torch

from gancli.reporting import plots

SQUARE = [(-1.0, 1.0), (-1.0, 1.0)]


def difference(image, other):
    """Where two images differ: rows and columns, as shares of the height and width."""
    assert image.dtype == np.uint8 and image.shape == other.shape and image.shape[2] == 3
    rows, columns = np.nonzero((image != other).any(axis=2))
    return rows / image.shape[0], columns / image.shape[1]


def test_a_scatter_plot_shows_points_at_their_place_with_the_y_axis_pointing_up():
    empty = plots.scatter(torch.empty(0, 2), limits=SQUARE)
    for x, y in ((0.8, 0.8), (-0.8, -0.8), (0.8, -0.8)):
        rows, columns = difference(plots.scatter(torch.tensor([[x, y]]), limits=SQUARE), empty)
        assert len(rows) > 0 and np.ptp(rows) < 0.05 and np.ptp(columns) < 0.05
        assert (rows.mean() < 0.5) == (y > 0) and (columns.mean() > 0.5) == (x > 0)


def test_a_scatter_plot_leaves_out_points_outside_the_limits_and_points_that_are_not_finite():
    inside = torch.tensor([[0.0, 0.5]])
    others = torch.tensor([[9.0, 0.0], [0.0, -1e30], [float("nan"), 0.0], [0.0, float("inf")]])
    with_others = plots.scatter(torch.cat([inside, others]), limits=SQUARE)
    assert (with_others == plots.scatter(inside, limits=SQUARE)).all()


def test_a_scatter_plot_is_shaded_where_the_density_is_high():
    def upper_right(points):
        return ((points[:, 0] > 0) & (points[:, 1] > 0)).float()

    points = torch.empty(0, 2)
    unshaded = plots.scatter(points, density=lambda points: torch.zeros(len(points)), limits=SQUARE)
    image = plots.scatter(points, density=upper_right, limits=SQUARE)
    rows, columns = difference(image, unshaded)
    assert len(rows) > 0.15 * image.shape[0] * image.shape[1]
    assert rows.max() < 0.55 and columns.min() > 0.45 and (image <= unshaded).all()
    unknown = plots.scatter(points, density=lambda points: None, limits=SQUARE)
    assert (unknown == plots.scatter(points, limits=SQUARE)).all()


def test_the_heights_of_a_histogram_are_densities():
    """So a histogram of uniform points fits under their true density, whether or not other points are outside."""
    points = torch.linspace(0, 1, 6001)[:-1, None]
    empty = plots.histogram(torch.empty(0, 1), density=torch.ones_like, limits=[(0.0, 1.0)])
    image = plots.histogram(points, density=torch.ones_like, limits=[(0.0, 1.0)])
    rows, columns = difference(image, empty)
    assert np.ptp(columns) > 0.8 and 0.6 < np.ptp(rows) < 0.9, "the bars reach the curve, at 1 / 1.1 of the height"
    twice = plots.histogram(torch.cat([points, points + 5]), density=torch.ones_like, limits=[(0.0, 1.0)])
    half_rows, _ = difference(twice, empty)
    assert np.ptp(half_rows) < 0.6 * np.ptp(rows), "points outside the limits count in the total"


def test_a_histogram_leaves_out_points_that_are_not_finite():
    points = torch.linspace(-1, 1, 100)[:, None]
    others = torch.tensor([[float("nan")], [float("inf")]])
    image = plots.histogram(points, limits=[(-2.0, 2.0)])
    assert (plots.histogram(torch.cat([points, others]), limits=[(-2.0, 2.0)]) == image).all()
    assert (image != plots.histogram(others, limits=[(-2.0, 2.0)])).any()


def test_a_histogram_without_points_shows_the_true_density():
    def increasing(points):
        return points[:, 0]

    empty = plots.histogram(torch.empty(0, 1), limits=[(0.0, 1.0)])
    image = plots.histogram(torch.empty(0, 1), density=increasing, limits=[(0.0, 1.0)])
    assert (image != empty).any()
    red = (image[..., 0].astype(int) - image[..., 2] > 100).nonzero()
    left, right = (red[0][red[1] == column].mean() for column in (red[1].min(), red[1].max()))
    assert left > right + 0.5 * image.shape[0]


def test_panels_are_the_axes_of_a_figure_cut_apart():
    figure, axes = plots.figure(3)
    for axis, color in zip(axes, ("red", "lime", "blue"), strict=True):
        axis.fill_between([0, 1], [1, 1], color=color)
        axis.set(title="a title", xlabel="x", ylabel="y")
    panels = plots.panels(figure, plots.render(figure))
    for channel, panel in enumerate(panels):
        full = [(panel[..., each] == 255) & (panel.sum(axis=2) == 255) for each in range(3)]
        assert [bool(pixels.any()) for pixels in full] == [each == channel for each in range(3)]
        assert (panel[0] == 255).all() and (panel[:, -1] == 255).all(), "a white margin"
