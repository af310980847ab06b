"""Oscillation and divergence: runs that are set up to converge, cycle and diverge, and the diagnostic's verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from gancli.reporting.html import Part, Table
from gancli.theory.base import Chapter, Experiment, diagnostic_numbers, format_number, images_of


class Behaviour(Chapter):
    """Three Dirac-GANs with known behaviour, and what the diagnostic `behaviour` says of each."""

    title = "Oscillation and divergence"
    statement = (
        "A game can end in three ways: the players settle, chase each other for ever, or overshoot more and more. "
        "Which of them it is can be read from the logged series alone, and each has its remedy."
    )
    runs: ClassVar[dict[str, tuple[str, ...]]] = {
        "converges": ("experiment=dirac_gan", "penalty=[r1]", "penalty.r1.weight=0.2", "train.images=1_000"),
        "cycles": ("experiment=dirac_gan", "update=alternating"),
        "diverges": ("experiment=dirac_gan", "loss=wasserstein"),
    }

    def experiments(self) -> list[Experiment]:
        return [
            Experiment(name=f"behaviour-{behaviour}", overrides=(*overrides, "diagnostic=[behaviour]"))
            for behaviour, overrides in self.runs.items()
        ]

    def parts(self, folder: Path) -> list[Part]:
        rows: list[list[str]] = []
        images: list[Part] = []
        for behaviour in self.runs:
            run = folder / f"behaviour-{behaviour}"
            rows.append([behaviour, format_number(diagnostic_numbers(run, "behaviour").get("verdict"))])
            images += images_of(run, "theory/behaviour.png", f"a run that is known to behave so: it {behaviour}")
        return [Table(["by the theory, the run", "by the diagnostic, it"], rows), *images]
