"""Oscillation and divergence: runs that are set up to converge, cycle and diverge, and the diagnostic's verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from gancli.reporting.html import Heading, Image, Part, Table, Terms
from gancli.theory.base import Chapter, Experiment, diagnostic_numbers, format_number, gallery, panels_of


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
        plots: list[Image] = []
        for behaviour in self.runs:
            run = folder / f"behaviour-{behaviour}"
            rows.append([behaviour, format_number(diagnostic_numbers(run, "behaviour").get("verdict"))])
            plots += panels_of(run, "behaviour", [f"a run that {behaviour}: θ, the generator, over images seen"])
        return [
            "Losses of a GAN do not tell how good it is: when both players improve, their losses stand still. What the "
            "log does tell is how the game moves. `gancli train` judges every run at its end from the series that it "
            "logged, and says what to try.",
            Terms(
                {
                    "converges": "the series comes to rest, or is noise around a level",
                    "cycles": "it swings with constant amplitude, for two periods or more",
                    "diverges": "its swings grow, it runs away ever faster, or it is no longer a finite number",
                    "drifts": "it still moves on at a constant pace: train longer",
                }
            ),
            Heading("Measured: three games that are known to behave so"),
            "The Dirac-GAN of the chapter on gradient descent has one parameter for each player, so its state is seen "
            "whole. With the penalty R1 it converges, with alternating steps and no penalty it cycles, and with "
            "simultaneous steps and the Wasserstein loss it diverges.",
            Table(["by the theory, the run", "by the diagnostic, it"], rows),
            *gallery(plots),
        ]
