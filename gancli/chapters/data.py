"""Capacity and data: too small underfits, too large for the data memorises."""

from __future__ import annotations

from pathlib import Path

from gancli.chapters.base import Chapter, Experiment, evaluated, number, picture, rows
from gancli.page import Picture, Table
from gancli.pictures import png
from gancli.plots import BLUE, GREY, RED, drawn, figure

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
    found, log = evaluated(run), rows(run, "metrics.jsonl")
    if not log:  # it ended before its first row
        return found
    late = log[-max(1, len(log) // 10) :]
    held, gap = (sum(row[f"accuracy/{name}"] for row in late) / len(late) for name in ("holdout", "gap"))
    return found | {"on_train": held + gap, "on_holdout": held, "gap": gap}


def _cells(found: dict[str, float]) -> list[str]:
    shown = ("fid", "on_train", "on_holdout", "gap", "nearer_to_train", "closer_than_holdout")
    return [number(found.get(name)) for name in shown]


class Capacity(Chapter):
    """A sweep over the widths of both networks on few images."""

    title = "Capacity"
    statement = (
        "With enough capacity the saddle point is p = q; with too little the generator cannot get there. "
        "With too much for the data, D learns the training images by heart, and then so does G."
    )
    widths = (4, 16, 64, 256)

    def experiments(self) -> list[Experiment]:
        return [
            Experiment(
                name=f"capacity-{width}",
                overrides=(
                    "experiment=capacity",
                    f"network.generator.width={width}",
                    f"network.discriminator.width={width}",
                ),
                evaluate=MEASURE,
                minutes=0.3 + width / 200,
            )
            for width in self.widths
        ]

    def parts(self, folder: Path) -> list[Table | Picture | str]:
        found = {width: _last(folder / f"capacity-{width}") for width in self.widths}
        table = Table(["width", *_HEAD], [[str(width), *_cells(values)] for width, values in found.items()])
        made, (quality, players, copies) = figure(3, width=3.8, height=3.4)
        quality.plot(self.widths, [values.get("fid", NAN) for values in found.values()], "o-", color=BLUE)
        quality.set(title="FID to held-out images", xscale="log", xlabel="width", yscale="log")
        for name, label, color in (
            ("on_train", "training images", BLUE),
            ("on_holdout", "held-out images", RED),
        ):
            players.plot(
                self.widths, [values.get(name, NAN) for values in found.values()], "o-", color=color, label=label
            )
        players.set(title="D says real of", xscale="log", xlabel="width", ylim=(0, 1.02))
        players.legend(frameon=False)
        copies.plot(self.widths, [values.get("nearer_to_train", NAN) for values in found.values()], "o-", color=BLUE)
        copies.axhline(0.5, color=GREY, linestyle="--", linewidth=0.8)
        copies.set(title="samples nearer to a training image", xscale="log", xlabel="width", ylim=(0, 1.02))
        parts: list[Table | Picture | str] = [
            Picture(png(drawn(made)), "quality, D's advantage and memorisation"),
            table,
        ]
        for width in (self.widths[0], self.widths[-1]):
            parts += picture(folder / f"capacity-{width}", "samples.png", f"samples at width {width}")
        return parts


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
