"""Memorisation: the same networks on few and on many images."""

from __future__ import annotations

from pathlib import Path

from gancli.reporting.html import Heading, Image, Part, Table, Terms
from gancli.theory.base import Chapter, Experiment, gallery
from gancli.theory.capacity import COLUMNS, EVALUATION, MEANINGS, final_values, table_cells


class Memorisation(Chapter):
    """Wide networks on 100 images, on 400, and on all."""

    title = "Memorisation"
    statement = (
        "A generator that has seen few images can win by repeating them. Held-out images show it: its samples "
        "are then nearer to training images than new images are, and D is right only on images that it trained on."
    )
    limits: tuple[int | None, ...] = (100, 400, None)

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
                evaluate=EVALUATION,
                minutes=1.5,
            )
            for limit in self.limits
        ]

    def parts(self, folder: Path) -> list[Part]:
        rows: list[list[str]] = []
        sheets: list[Image] = []
        for limit in self.limits:
            run = folder / f"memorisation-{limit or 'all'}"
            rows.append([str(limit or "all"), *table_cells(final_values(run))])
            for file in sorted((run / "samples").glob("neighbours-*.png"))[-1:]:
                sheets.append(Image(file.read_bytes(), f"{limit or 'all'} training images"))
        sheet = "In each row: a sample, its four nearest training images, its four nearest held-out images. "
        return [
            "A generator is meant to make new samples of a distribution, of which it knows a finite training set "
            "only. The game on that set has another saddle point: a generator that returns the training images, each "
            "with the same probability. Nothing in the objective forbids it; only D's smoothness and the size of the "
            "data keep G from it.",
            "Training data cannot show this, since copies are perfect there. Real images that were held out can: new "
            "samples are about as near to held-out images as to training images, copies are not. And a D that knows "
            "its training images by heart takes held-out ones for generated: its accuracy has a gap.",
            Heading("Measured: the same networks on more and more images"),
            Table(["training images", *COLUMNS], rows),
            Terms(MEANINGS),
            *([sheet + "A sample that repeats the image beside it is a copy."] if sheets else []),
            *gallery(sheets),
        ]
