"""Capacity: networks that are too small underfit; networks that are too large for the data memorise it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gancli.reporting.html import Gallery, Heading, Image, Part, Table, Terms
from gancli.reporting.plots import BLUE, GREY, RED, figure
from gancli.theory.base import Chapter, Experiment, format_number, gallery, images_of, last_evaluation, plotted
from gancli.training.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Values = Mapping[str, float]
DISTANCE = "fd_classifier"  # in features of the classifier that the experiment chooses
EVALUATION = ("metric=[fid,memorisation]", "reference=holdout", "count=2_000")
COLUMNS = {  # head of a column -> key of the value
    "Fréchet distance to held-out images": DISTANCE,
    "D: training images are real": "on_train",
    "D: held-out ones are": "on_holdout",
    "gap": "gap",
    "nearer to train": "nearer_to_train",
    "copies": "closer_than_holdout",
}
MEANINGS = {
    "Fréchet distance to held-out images": "between normal distributions fitted to features of samples and of real "
    "images, here those of a small digit classifier; smaller is better",
    "D: training images are real": "share of the training images that D takes for real, at the end of training",
    "D: held-out ones are": "the same for real images that it never saw",
    "gap": "the difference of the two: how much D learned by heart",
    "nearer to train": "share of samples whose nearest real image is a training image and not a held-out one, among as "
    "many of each; 0.5 without memorisation",
    "copies": "probability that a sample lies closer to the training images than a held-out image does; 0.5 for "
    "samples that are as new as held-out images, 1 where each is a copy",
}


def final_values(run: Path) -> dict[str, float]:
    """Returns the last evaluation, and the shares of real images that D took for real in the last tenth of the log."""
    values, rows = last_evaluation(run), RunFolder(run).read_metrics()
    if not rows:  # the run ended before its first row
        return values
    late = rows[-max(1, len(rows) // 10) :]
    holdout, gap = (sum(row[f"accuracy/{name}"] for row in late) / len(late) for name in ("holdout", "gap"))
    return values | {"on_train": holdout + gap, "on_holdout": holdout, "gap": gap}


def table_cells(values: Values) -> list[str]:
    """Returns one cell for each of `COLUMNS`."""
    return [format_number(values.get(key)) for key in COLUMNS.values()]


class Capacity(Chapter):
    """A sweep over the width of both networks on few images, and pairs in which only one of them is wide."""

    title = "Capacity"
    statement = (
        "With enough capacity the saddle point is p = q; with too little the generator cannot get there. "
        "With too much for the data, D memorises the training images, and then so does G."
    )
    widths = (4, 16, 64, 256)
    small, large = 16, 256  # of the pairs of unequal networks

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Widths of G and D, those of the sweep first."""
        return [(width, width) for width in self.widths] + [(self.large, self.small), (self.small, self.large)]

    def experiments(self) -> list[Experiment]:
        return [
            Experiment(
                name=_folder_name(pair),
                overrides=(
                    "experiment=capacity",
                    f"network.generator.width={pair[0]}",
                    f"network.discriminator.width={pair[1]}",
                ),
                evaluate=EVALUATION,
                minutes=0.3 + max(pair) / 200,
            )
            for pair in self.pairs
        ]

    def parts(self, folder: Path) -> list[Part]:
        values = {pair: final_values(folder / _folder_name(pair)) for pair in self.pairs}
        rows = [[*map(str, pair), *table_cells(pair_values)] for pair, pair_values in values.items()]
        samples = [
            image
            for width in (self.widths[0], self.widths[-1])
            for image in images_of(folder / _folder_name((width, width)), "samples.png", f"samples at width {width}")
        ]
        return [
            "The proof that the saddle point is q = p lets both players be any function. Networks are not: a "
            "generator can only make the distributions that its weights reach, and a discriminator only sees "
            "differences that its weights can express. So a wider G can come nearer to the data, and a wider D "
            "notices more. But p is known from a finite training set only, and a D that is wide enough can tell that "
            "set from all other images: then it rewards copies.",
            Heading("Measured: widths from 4 to 256, on 200 digits"),
            "Both networks have three hidden layers; the width is the number of units in each. In the last two rows "
            "only one of them is wide.",
            Gallery(self._plots(values), plots=True),
            Table(["width of G", "of D", *COLUMNS], rows),
            Terms(MEANINGS),
            *self._compare_pairs(values),
            *gallery(samples, plots=False),
        ]

    def _compare_pairs(self, values: Mapping[tuple[int, int], Values]) -> list[str]:
        """Returns a sentence on the effect of a larger G alone and of a larger D alone; none where a run is missing."""
        small, large = self.small, self.large
        pairs = [(small, small), (large, small), (small, large), (large, large)]
        if not all(DISTANCE in values[pair] and "nearer_to_train" in values[pair] for pair in pairs):
            return []
        fd, nearer = ([values[pair][key] for pair in pairs] for key in (DISTANCE, "nearer_to_train"))
        first, second = ("G", "D") if fd[1] < fd[2] else ("D", "G")
        return [
            f"From width {small} to {large}, the Fréchet distance goes from {fd[0]:.3g} to {fd[1]:.3g} with a larger G "
            f"alone, to {fd[2]:.3g} with a larger D alone and to {fd[3]:.3g} with both: the size of {first} matters "
            f"more than that of {second} here. The share of samples that are nearer to a training image than to a "
            f"held-out one is {nearer[0]:.0%}, {nearer[1]:.0%}, {nearer[2]:.0%} and {nearer[3]:.0%}."
        ]

    def _plots(self, values: Mapping[tuple[int, int], Values]) -> list[Image]:
        def series(key: str) -> list[float]:
            return [values[width, width].get(key, float("nan")) for width in self.widths]

        def axis(title: str) -> tuple[Figure, Any]:
            plot, (axis,) = figure()  # explicit limits: a logarithmic axis without data has none
            axis.set(xscale="log", xlabel="width of both networks", xlim=(self.widths[0] / 1.5, self.widths[-1] * 1.5))
            axis.set_title(title)
            return plot, axis

        distance_plot, distance = axis("Fréchet distance to held-out images")
        distance.plot(self.widths, series(DISTANCE), "o-", color=BLUE)
        if any(value > 0 for value in series(DISTANCE)):  # a logarithmic axis needs a positive value
            distance.set_yscale("log")
        accuracy_plot, accuracy = axis("share that D takes for real")
        accuracy.plot(self.widths, series("on_train"), "o-", color=BLUE, label="training images")
        accuracy.plot(self.widths, series("on_holdout"), "o-", color=RED, label="held-out images")
        accuracy.set(ylim=(0, 1.02))
        accuracy.legend(frameon=False)
        nearer_plot, nearer = axis("samples nearer to a training image")
        nearer.plot(self.widths, series("nearer_to_train"), "o-", color=BLUE)
        nearer.axhline(0.5, color=GREY, linestyle="--", linewidth=0.8)
        nearer.set(ylim=(0, 1.02))
        return [
            plotted(distance_plot, "quality: the lower, the better; too narrow a network cannot make digits"),
            plotted(accuracy_plot, "D's memory: where the curves part, D knows its training images by heart"),
            plotted(nearer_plot, "G's memory: above the dashed line at 0.5, samples lean on training images"),
        ]


def _folder_name(pair: tuple[int, int]) -> str:
    return "capacity-" + "-".join(map(str, dict.fromkeys(pair)))
