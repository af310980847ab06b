"""On the line everything is known exactly: the best generator and the best discriminator."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gancli.losses import Loss, Minimax, MinimaxLinear
from gancli.reporting.html import Picture, Table
from gancli.reporting.image_grids import png
from gancli.reporting.plots import BLUE, GREY, RED, drawn, figure
from gancli.theory.base import Chapter, Experiment, number, numbers, picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAWS = {"normal": "normal", "exponential": "exponential", "gaussian_mixture": "mixture of two normal distributions"}


class InverseTransform(Chapter):
    """A trained generator of one uniform number against F^-1."""

    title = "The inverse transform method"
    statement = (
        "If U is uniform on (0, 1) and F the CDF of X, then F⁻¹(U) has the distribution of X. "
        "A generator that turns U into X by a monotone map has learned F⁻¹, or its mirror image F⁻¹(1 - u)."
    )

    def experiments(self) -> list[Experiment]:
        return [
            Experiment(
                name=f"inverse_transform-{distribution}",
                overrides=("experiment=inverse_transform", f"distribution@dataset.distribution={distribution}"),
                minutes=1.0,
            )
            for distribution in LAWS
        ]

    def parts(self, folder: Path) -> list[Table | Picture | str]:
        lines, pictures = [], []
        for distribution, name in LAWS.items():
            run = folder / f"inverse_transform-{distribution}"
            found = numbers(run, "inverse_transform")
            keys = ("map", "mean_error", "sup_error", "ks", "ks_exact", "wasserstein1", "wasserstein1_exact")
            lines.append([name, *(number(found.get(key)) for key in keys)])
            pictures += picture(run, "theory/inverse_transform.png", f"{name}: learned and exact map")
        head = ["distribution", "learned map", "mean error", "largest error", "KS", "KS, exact", "W1", "W1, exact"]
        caption = "errors between the 1 % and 99 % quantiles in standard deviations; distances of 100,000 samples"
        return [Table(head, lines, caption), *pictures]


class Objective(Chapter):
    """The original game beside the one without the second logarithm."""

    title = "The objective and its saddle point"
    statement = (
        "The game's value is E log D(x) + E log(1 - D(G(z))); its best D is p/(p+q), and where q = p, D is 1/2 and the "
        "value -log 4. Without the second logarithm the best D is min(1, p/q): at q = p it says 1 and the value is 0."
    )

    def experiments(self) -> list[Experiment]:
        return [
            Experiment(
                name=f"objective-{loss}",
                overrides=(
                    "experiment=inverse_transform",
                    "distribution@dataset.distribution=gaussian_mixture",
                    f"loss={loss}",
                    *("penalty.r1.weight=0.01", "penalty.r2.weight=0.01"),  # else D is smoother than the best one
                    "train.images=600_000",
                    "diagnostic=[optimal_discriminator,objective,inverse_transform]",
                ),
                minutes=1.0,
            )
            for loss in ("minimax", "minimax_linear")
        ]

    def parts(self, folder: Path) -> list[Table | Picture | str]:
        lines, pictures = [], []
        for loss, name in {"minimax": "with both logarithms", "minimax_linear": "without the second"}.items():
            run = folder / f"objective-{loss}"
            of_d, of_m = numbers(run, "optimal_discriminator"), numbers(run, "objective")
            of_g = numbers(run, "inverse_transform")
            values = [of_m.get(key) for key in ("value_train", "value_holdout", "linear_holdout", "accuracy_holdout")]
            lines.append([name, *map(number, [of_d.get("distance_to_best"), *values, of_g.get("ks")])])
            pictures += picture(run, "theory/optimal_discriminator.png", f"{name}: densities, best and learned D")
        head = ["game", "mean |D - D*|", "M, training", "M, held-out", "without the second log", "D is right", "KS"]
        caption = (
            "M = E log D(x) + E log(1 - D(G(z))) of the learned players in both rows, -log 4 = -1.386 at the saddle "
            "point of the first game; then E log D(x) + E[1 - D(G(z))] on held-out data, 0 at that of the second. "
            "D* and both values belong to G as it stands, KS to G's moving average, from which samples are made"
        )
        return [
            Picture(png(drawn(_two_games())), "what the missing logarithm changes"),
            Table(head, lines, caption),
            *pictures,
        ]


def _two_games() -> Figure:
    """The best D over the ratio p/q, and the value of either game where q is p shifted, both by their definition."""
    picture, (best, value) = figure(2)
    ratio = torch.linspace(0, 3, 301, dtype=torch.float64)
    x = torch.linspace(-14, 14, 8001, dtype=torch.float64)
    shifts = torch.linspace(-4, 4, 81, dtype=torch.float64)
    for loss, label, color in (
        (Minimax(), "with both logarithms", BLUE),
        (MinimaxLinear(), "without the second", RED),
    ):
        best.plot(ratio, loss.optimal(ratio, torch.ones_like(ratio)), color=color, label=label)
        value.plot(shifts, [_value(loss, x, shift) for shift in shifts], color=color, label=label)
    best.set(title="best D", xlabel="p(x) / q(x)")
    value.set(title="value of the game under the best D", xlabel="shift of q against p, both N(., 1)")
    value.axhline(-float(torch.tensor(4.0).log()), color=GREY, linestyle="--", linewidth=0.8)
    best.legend(frameon=False)
    value.legend(frameon=False)
    return picture


def _value(loss: Loss, x: Tensor, shift: Tensor) -> float:
    """-(loss of the best D), the integral taken over `x`; minus the constant 1 that the loss leaves out."""
    p, q = (torch.exp(-0.5 * (x - centre) ** 2) / (2 * torch.pi) ** 0.5 for centre in (torch.zeros(()), shift))
    best = loss.optimal(p, q)
    assert best is not None
    best = torch.where(p + q > 1e-300, best, 0.5).clamp(1e-12, 1 - 1e-12)
    second = (1 - best).log() if not isinstance(loss, MinimaxLinear) else 1 - best
    return float(torch.trapezoid(p * best.log() + q * second, x))
