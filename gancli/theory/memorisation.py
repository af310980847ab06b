"""Memorisation: the same networks on few and on many images."""

from __future__ import annotations

from pathlib import Path

from gancli.reporting.html import Image, Part, Table
from gancli.theory.base import Chapter, Experiment
from gancli.theory.capacity import COLUMNS, EVALUATION, final_values, table_cells


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
        sheets: list[Part] = []
        for limit in self.limits:
            run = folder / f"memorisation-{limit or 'all'}"
            rows.append([str(limit or "all"), *table_cells(final_values(run))])
            for file in sorted((run / "samples").glob("neighbours-*.png"))[-1:]:
                row = "a sample, its four nearest training images, its four nearest held-out images"
                sheets.append(Image(file.read_bytes(), f"{limit or 'all'} training images; each row: {row}"))
        caption = "copies: share of samples closer to training images than new images are; 0.5 means no copies"
        return [Table(["training images", *COLUMNS], rows, caption), *sheets]
