"""Capacity and data: too small underfits, too large for the data memorises."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gancli.reporting.html import Picture, Table
from gancli.reporting.image_grids import png
from gancli.reporting.plots import BLUE, GREY, RED, drawn, figure
from gancli.theory.base import Chapter, Experiment, evaluated, number, picture
from gancli.training.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAN = float("nan")  # of a run that ended before
MEASURE = ("metric=[fid,memorisation]", "reference=holdout", "count=2_000")
_HEAD = [
    "FID to held-out images",
    "D: training images are real",
    "D: held-out ones are",
    "gap",
    "nearer to train",
    "copies",
]


def _last(run: Path) -> dict[str, float]:
    """What the evaluation says, and how often D took images for real in the last tenth of the log."""
    found, log = evaluated(run), RunFolder(run).read_metrics()
    if not log:  # it ended before its first row
        return found
    late = log[-max(1, len(log) // 10) :]
    held, gap = (sum(row[f"accuracy/{name}"] for row in late) / len(late) for name in ("holdout", "gap"))
    return found | {"on_train": held + gap, "on_holdout": held, "gap": gap}


def _cells(found: dict[str, float]) -> list[str]:
    shown = ("fid", "on_train", "on_holdout", "gap", "nearer_to_train", "closer_than_holdout")
    return [number(found.get(name)) for name in shown]


class Capacity(Chapter):
    """A sweep over the widths of both networks on few images, and one of them wide alone."""

    title = "Capacity"
    statement = (
        "With enough capacity the saddle point is p = q; with too little the generator cannot get there. "
        "With too much for the data, D learns the training images by heart, and then so does G."
    )
    widths = (4, 16, 64, 256)
    small, large = 16, 256  # of the pairs that tell whose size matters

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Widths of G and D, those of the sweep first."""
        return [(width, width) for width in self.widths] + [(self.large, self.small), (self.small, self.large)]

    def experiments(self) -> list[Experiment]:
        return [
            Experiment(
                name=_capacity(pair),
                overrides=(
                    "experiment=capacity",
                    f"network.generator.width={pair[0]}",
                    f"network.discriminator.width={pair[1]}",
                ),
                evaluate=MEASURE,
                minutes=0.3 + max(pair) / 200,
            )
            for pair in self.pairs
        ]

    def parts(self, folder: Path) -> list[Table | Picture | str]:
        found = {pair: _last(folder / _capacity(pair)) for pair in self.pairs}
        lines = [[*map(str, pair), *_cells(values)] for pair, values in found.items()]
        parts: list[Table | Picture | str] = [
            Picture(png(drawn(self._figure(found))), "quality, D's advantage and memorisation, both players as wide"),
            Table(["width of G", "of D", *_HEAD], lines),
        ]
        parts += self._whose(found)
        for width in (self.widths[0], self.widths[-1]):
            parts += picture(folder / _capacity((width, width)), "samples.png", f"samples at width {width}")
        return parts

    def _whose(self, found: Mapping[tuple[int, int], Mapping[str, float]]) -> list[str]:
        """What a larger G alone does, and a larger D alone; nothing where a run is missing."""
        grown = [(self.small, self.small), (self.large, self.small), (self.small, self.large), (self.large, self.large)]
        if not all("fid" in found[pair] and "nearer_to_train" in found[pair] for pair in grown):
            return []
        fid, near = ([found[pair][key] for pair in grown] for key in ("fid", "nearer_to_train"))
        gain, other = ("G", "D") if fid[1] < fid[2] else ("D", "G")
        return [
            f"From width {self.small} to {self.large}, the FID goes from {fid[0]:.3g} to {fid[1]:.3g} with a larger G "
            f"alone, to {fid[2]:.3g} with a larger D alone and to {fid[3]:.3g} with both: the size of {gain} matters "
            f"more than that of {other} here. Nearer to a training image than to a held-out one are {near[0]:.0%}, "
            f"{near[1]:.0%}, {near[2]:.0%} and {near[3]:.0%} of the samples."
        ]

    def _figure(self, found: Mapping[tuple[int, int], Mapping[str, float]]) -> Figure:
        made, (quality, players, copies) = figure(3, width=3.8, height=3.4)
        for axis in (quality, players, copies):  # limits of its own: without data a logarithm has none
            axis.set(xscale="log", xlabel="width", xlim=(self.widths[0] / 1.5, self.widths[-1] * 1.5))

        def of(key: str) -> list[float]:
            return [found[width, width].get(key, NAN) for width in self.widths]

        quality.plot(self.widths, of("fid"), "o-", color=BLUE)
        quality.set(title="FID to held-out images")
        if any(value > 0 for value in of("fid")):  # else there is nothing to scale
            quality.set_yscale("log")
        players.plot(self.widths, of("on_train"), "o-", color=BLUE, label="training images")
        players.plot(self.widths, of("on_holdout"), "o-", color=RED, label="held-out images")
        players.set(title="D says real of", ylim=(0, 1.02))
        players.legend(frameon=False)
        copies.plot(self.widths, of("nearer_to_train"), "o-", color=BLUE)
        copies.axhline(0.5, color=GREY, linestyle="--", linewidth=0.8)
        copies.set(title="samples nearer to a training image", ylim=(0, 1.02))
        return made


def _capacity(pair: tuple[int, int]) -> str:
    return "capacity-" + "-".join(map(str, dict.fromkeys(pair)))


class Memorisation(Chapter):
    """The same networks on few and on many images."""

    title = "Memorisation"
    statement = (
        "A generator that has seen few images can win by handing them out again. Held-out images tell: its samples "
        "are then nearer to training images than new images are, and D is right on those it trained on only."
    )
    limits = (100, 400, None)

    def experiments(self) -> list[Experiment]:
        return [
            Experiment(
                name=f"memorisation-{limit or 'all'}",
                overrides=(
                    "experiment=capacity",
                    "network.generator.width=256",
                    "network.discriminator.width=256",
                    f"dataset.limit={limit or 'null'}",
                ),
                evaluate=MEASURE,
                minutes=1.5,
            )
            for limit in self.limits
        ]

    def parts(self, folder: Path) -> list[Table | Picture | str]:
        lines, sheets = [], []
        for limit in self.limits:
            run = folder / f"memorisation-{limit or 'all'}"
            lines.append([str(limit or "all"), *_cells(_last(run))])
            for file in sorted((run / "samples").glob("neighbours-*.png"))[-1:]:
                caption = "a sample, its four nearest training images, its four nearest held-out images"
                sheets.append(Picture(file.read_bytes(), f"{limit or 'all'} training images, row by row: {caption}"))
        return [
            Table(
                ["training images", *_HEAD], lines, "copies: closer to training images than new images are; 0.5 is none"
            ),
            *sheets,
        ]
