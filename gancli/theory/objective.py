"""The objective: the original game beside the one without the second logarithm."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gancli.game_value import SADDLE_VALUE
from gancli.losses import Loss, Minimax, MinimaxLinear
from gancli.reporting.html import Image, Part, Table
from gancli.reporting.image_grids import encode_png
from gancli.reporting.plots import BLUE, GREY, RED, figure, render
from gancli.theory.base import Chapter, Experiment, diagnostic_numbers, format_number, images_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOSSES = {"minimax": "with both logarithms", "minimax_linear": "without the second"}


class Objective(Chapter):
    """Both games on a one-dimensional mixture, where the optimal discriminator is known."""

    title = "The objective and its saddle point"
    statement = (
        "The game's value is E log D(x) + E log(1 - D(G(z))); its best D is p/(p+q), and where q = p, D is 1/2 and the "
        "value -log 4. Without the second logarithm the best D is min(1, p/q): at q = p it is 1 and the value is 0."
    )

    def experiments(self) -> list[Experiment]:
        return [
            Experiment(
                name=f"objective-{loss}",
                overrides=(
                    "experiment=inverse_transform",
                    "distribution@dataset.distribution=gaussian_mixture",
                    f"loss={loss}",
                    *("penalty.r1.weight=0.01", "penalty.r2.weight=0.01"),  # larger ones make D too smooth
                    "train.images=600_000",
                    "diagnostic=[optimal_discriminator,objective,inverse_transform]",
                ),
                minutes=1.0,
            )
            for loss in LOSSES
        ]

    def parts(self, folder: Path) -> list[Part]:
        rows: list[list[str]] = []
        images: list[Part] = []
        for loss, name in LOSSES.items():
            run = folder / f"objective-{loss}"
            discriminator, objective, generator = (
                diagnostic_numbers(run, diagnostic)
                for diagnostic in ("optimal_discriminator", "objective", "inverse_transform")
            )
            values = [
                discriminator.get("distance_to_best"),
                *map(objective.get, ("value_train", "value_holdout", "linear_holdout", "accuracy_holdout")),
                generator.get("ks"),
            ]
            rows.append([name, *map(format_number, values)])
            images += images_of(run, "theory/optimal_discriminator.png", f"{name}: densities, optimal D and learned D")
        head = ["game", "mean |D - D*|", "M, training", "M, held-out", "without the second log", "accuracy of D", "KS"]
        caption = (
            "M = E log D(x) + E log(1 - D(G(z))) of the learned players in both rows, -log 4 = -1.386 at the saddle "
            "point of the first game; then E log D(x) + E[1 - D(G(z))] on held-out data, 0 at that of the second. "
            "D* and both values belong to the generator itself, KS to its moving average, from which samples are made"
        )
        plot = Image(encode_png(render(_plot_games())), "what the missing logarithm changes")
        return [plot, Table(head, rows, caption), *images]


def _plot_games() -> Figure:
    """Draws the optimal D over the ratio p/q, and the value of both games where q is a shifted p, by definition."""
    plot, (discriminator, value) = figure(2)
    ratio = torch.linspace(0, 3, 301, dtype=torch.float64)
    x = torch.linspace(-14, 14, 8001, dtype=torch.float64)
    shifts = torch.linspace(-4, 4, 81, dtype=torch.float64)
    for loss, label, color in (
        (Minimax(), LOSSES["minimax"], BLUE),
        (MinimaxLinear(), LOSSES["minimax_linear"], RED),
    ):
        discriminator.plot(ratio, loss.optimal(ratio, torch.ones_like(ratio)), color=color, label=label)
        value.plot(shifts, [_value(loss, x, shift) for shift in shifts], color=color, label=label)
    discriminator.set(title="optimal D", xlabel="p(x) / q(x)")
    value.set(title="value of the game at the optimal D", xlabel="shift of q against p, both N(., 1)")
    value.axhline(SADDLE_VALUE, color=GREY, linestyle="--", linewidth=0.8)
    discriminator.legend(frameon=False)
    value.legend(frameon=False)
    return plot


def _value(loss: Loss, x: Tensor, shift: Tensor) -> float:
    """Returns the value of the game at the optimal D, for p = N(0, 1) and q = N(shift, 1), integrated over `x` (n,).

    Without the second logarithm it includes the constant 1 that the loss leaves out.
    """
    p, q = (torch.exp(-0.5 * (x - centre) ** 2) / (2 * torch.pi) ** 0.5 for centre in (torch.zeros(()), shift))
    optimal = loss.optimal(p, q)
    assert optimal is not None
    optimal = torch.where(p + q > 1e-300, optimal, 0.5).clamp(1e-12, 1 - 1e-12)
    fake_term = (1 - optimal).log() if not isinstance(loss, MinimaxLinear) else 1 - optimal
    return float(torch.trapezoid(p * optimal.log() + q * fake_term, x))
