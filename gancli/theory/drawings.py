"""Drawings of the theory itself, computed from its formulas and from no run."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gancli.distributions import Distribution, GaussianMixture
from gancli.game_value import SADDLE_VALUE
from gancli.losses import Loss, Minimax, MinimaxLinear
from gancli.reporting.html import Image
from gancli.reporting.plots import BLUE, GREEN, GREY, PALE, RED, figure
from gancli.theory.base import plotted

Values = NDArray[np.float64]
GAMES = {"both logarithms": Minimax(), "without the second": MinimaxLinear()}


@cache
def cdf() -> Image:
    """Draws the way from u to F^-1(u) for a mixture of two normal distributions."""
    distribution = GaussianMixture(means=[-2.0, 2.0], stds=[0.7, 0.7])
    plot, (axis,) = figure()
    x = torch.linspace(-4.5, 4.5, 400, dtype=torch.float64)
    axis.plot(x, distribution.cdf(x), color=BLUE, label="F(x)")
    axis.fill_between(x, distribution.density(x), color=PALE, label="density F′(x)")
    u = (torch.arange(15, dtype=torch.float64) + 0.5) / 15
    for height, place in zip(u, distribution.inverse_cdf(u), strict=True):
        axis.plot([-4.5, place, place], [height, height, 0], color=RED, linewidth=0.6, alpha=0.7)
        axis.plot([place], [0], "v", color=RED, markersize=5, clip_on=False)
    axis.set(xlabel="x", ylabel="u = F(x)", xlim=(-4.5, 4.5), ylim=(0, 1.02), title="from u to x = F⁻¹(u)")
    axis.legend(frameon=False, loc="upper left")
    return plotted(
        plot,
        "Read it from left to right: 15 evenly spaced u go to the curve F and down to x (red). Where F is steep, many "
        "u land close together: the density is high there.",
    )


@cache
def inverse_cdf() -> Image:
    """Draws F^-1 and its mirror image for the same mixture."""
    distribution: Distribution = GaussianMixture(means=[-2.0, 2.0], stds=[0.7, 0.7])
    plot, (axis,) = figure()
    u = torch.linspace(0.001, 0.999, 400, dtype=torch.float64)
    axis.plot(u, distribution.inverse_cdf(u), color=BLUE, label="F⁻¹(u)")
    axis.plot(u, distribution.inverse_cdf(1 - u), color=RED, linestyle="--", label="F⁻¹(1 - u)")
    axis.set(xlabel="noise u", ylabel="sample x", title="the two monotone generators")
    axis.legend(frameon=False, loc="upper center")
    return plotted(
        plot,
        "The same curve with its axes exchanged is the generator: noise in, sample out. It crosses the gap between the "
        "two bumps in a steep step. Its mirror image makes the same distribution, since 1 - U is uniform too.",
    )


@cache
def optimal_discriminator() -> Image:
    """Draws p log D + q log(1 - D) over D for three pairs of densities, with the maxima at p / (p + q)."""
    plot, (axis,) = figure()
    d = np.linspace(0.005, 0.995, 300)
    for (p, q), color in {(0.8, 0.2): BLUE, (0.5, 0.5): GREEN, (0.2, 0.8): RED}.items():
        value, best = p * np.log(d) + q * np.log(1 - d), p / (p + q)
        axis.plot(d, value, color=color, label=f"p = {p}, q = {q}")
        axis.plot([best], [p * math.log(best) + q * math.log(1 - best)], "o", color=color)
    axis.set(xlabel="D(x)", ylabel="p log D + q log(1 - D)", ylim=(-3, 0), title="the best D at one point x")
    axis.legend(frameon=False, loc="lower center")
    return plotted(
        plot, "At each x, D has one best value, p/(p + q) (dots): the share of real ones among samples at x."
    )


@cache
def optimal_discriminators() -> Image:
    """Draws the optimal D of both games over the ratio of the densities."""
    plot, (axis,) = figure()
    ratio = torch.linspace(0, 3, 301, dtype=torch.float64)
    for (name, loss), color in zip(GAMES.items(), (BLUE, RED), strict=True):
        axis.plot(ratio, loss.optimal(ratio, torch.ones_like(ratio)), color=color, label=name)
    axis.set(title="optimal D", xlabel="p(x) / q(x)", ylabel="D*(x)")
    axis.legend(frameon=False)
    return plotted(
        plot, "Without the second logarithm the best D is 1 wherever p ≥ q, so at q = p it is 1 and not 1/2."
    )


@cache
def value_at_optimal_discriminator() -> Image:
    """Draws the value of both games at the optimal D, for p = N(0, 1) and q a shifted p."""
    plot, (axis,) = figure()
    x = torch.linspace(-14, 14, 8001, dtype=torch.float64)
    shifts = torch.linspace(-4, 4, 81, dtype=torch.float64)
    for (name, loss), color in zip(GAMES.items(), (BLUE, RED), strict=True):
        axis.plot(shifts, [_value(loss, x, shift) for shift in shifts], color=color, label=name)
    axis.axhline(SADDLE_VALUE, color=GREY, linestyle="--", linewidth=0.8)
    axis.set(title="what G minimises if D is optimal", xlabel="shift of q against p", ylabel="max over D of V")
    axis.legend(frameon=False, loc="center", bbox_to_anchor=(0.5, 0.45))
    return plotted(
        plot,
        "p and q are normal with standard deviation 1. Blue: V = -log 4 + 2 JSD(p, q), least at q = p, where it "
        "touches -log 4 (dashes), and flat far away, where it nears 0.",
    )


@cache
def generator_losses() -> Image:
    """Draws the slopes of the generator's losses over the logit of D."""
    plot, (axis,) = figure()
    logit = torch.linspace(-6, 6, 200, dtype=torch.float64)
    axis.plot(logit, logit.sigmoid(), color=BLUE, label="minimax, log(1 - D)")
    axis.plot(logit, (-logit).sigmoid(), color=RED, label="non-saturating, -log D")
    axis.set(
        xlabel="logit of D at a generated sample", ylabel="size of the slope", title="slope of G's loss", ylim=(0, 1.4)
    )
    axis.legend(frameon=False, loc="upper center")
    return plotted(
        plot,
        "To the left D is sure that the sample is generated. There the minimax loss has no slope left, although these "
        "are the samples to improve; the non-saturating one has its full slope.",
    )


@cache
def vanishing_gradient() -> Image:
    """Draws the gradient that moves a shifted normal distribution back to p, against the optimal D, of both losses."""
    plot, (axis,) = figure()
    x = torch.linspace(-14, 20, 8001, dtype=torch.float64)
    shifts = torch.linspace(0, 6, 61, dtype=torch.float64)
    minimax, nonsaturating = [], []
    for shift in shifts:  # the optimal logit is log p/q = -shift x + shift^2 / 2, with slope -shift in x
        q = torch.exp(-0.5 * (x - shift) ** 2) / (2 * torch.pi) ** 0.5
        share = (-shift * x + 0.5 * shift**2).sigmoid()
        minimax.append(float(shift * torch.trapezoid(q * share, x)))
        nonsaturating.append(float(shift * torch.trapezoid(q * (1 - share), x)))
    axis.plot(shifts, minimax, color=BLUE, label="minimax")
    axis.plot(shifts, nonsaturating, color=RED, label="non-saturating")
    axis.set(xlabel="shift of q against p", ylabel="gradient for G", title="pull towards the data")
    axis.legend(frameon=False)
    return plotted(
        plot,
        "How strongly the optimal D pulls G back, by how far q is from p. The pull of the minimax loss "
        "weakens beyond two standard deviations and dies out; that of the non-saturating loss grows with the distance.",
    )


@cache
def level_lines() -> Image:
    """Draws the level lines of the Dirac-GAN's value over both parameters, and where each player moves."""
    plot, (axis,) = figure(height=4.0)
    line = np.linspace(-2, 2, 161)
    theta, psi = np.meshgrid(line, line)
    value = _dirac_value(theta, psi)
    levels = np.sort([SADDLE_VALUE, *np.arange(-5.0, -0.7, 0.3)])
    axis.contourf(theta, psi, value, levels=levels, cmap="coolwarm", alpha=0.35, extend="both")
    lines = axis.contour(theta, psi, value, levels=levels, cmap="coolwarm", linewidths=0.8)
    axis.clabel(lines, levels=levels[::2], fontsize=8, fmt="%.1f", colors="black")
    grid = np.linspace(-1.75, 1.75, 8)
    t, p = np.meshgrid(grid, grid)
    slope = 1 / (1 + np.exp(-t * p))
    axis.quiver(t, p, slope * p, -slope * t, color="#555", angles="xy", scale=18, width=0.005)
    axis.plot([0], [0], "+", color="black", markersize=12, markeredgewidth=2)
    axis.set(
        xlabel="θ, of the generator", ylabel="ψ, of the discriminator", aspect="equal", title="level lines of V(θ, ψ)"
    )
    return plotted(
        plot,
        "G can only move left and right and wants V small (blue); D can only move up and down and wants V large (red). "
        "The grey arrows are both moves together: they do not point at the saddle (+) but around it.",
    )


@cache
def section_through_saddle() -> Image:
    """Draws the Dirac-GAN's value along both diagonals through its saddle point."""
    plot, (axis,) = figure(height=4.0)
    s = np.linspace(-2, 2, 200)
    axis.plot(s, _dirac_value(s, -s), color=RED, label="along ψ = -θ")
    axis.plot(s, _dirac_value(s, s), color=BLUE, label="along ψ = θ")
    axis.plot([0], [SADDLE_VALUE], "+", color="black", markersize=12, markeredgewidth=2)
    axis.set(xlabel="θ", ylabel="V", title="two cuts through the saddle")
    axis.legend(frameon=False)
    return plotted(
        plot,
        "From the saddle, V rises on one diagonal and falls on the other, as on a mountain pass; its height is "
        "V = -log 4 = -1.386.",
    )


@cache
def eigenvalue_plane() -> Image:
    """Draws three eigenvalues of each kind in the complex plane, and where a simultaneous step converges."""
    plot, (axis,) = figure(height=4.0)
    angle = np.linspace(0, 2 * np.pi, 200)
    axis.fill(-1 + np.cos(angle), np.sin(angle), color=PALE, alpha=0.6, label="|1 + hλ| < 1, for h = 1")
    for (real, imaginary), color in _EIGENVALUES.items():
        axis.plot([real, real], [imaginary, -imaginary], "o", color=color)
    axis.axvline(0, color=GREY, linewidth=0.8)
    axis.axhline(0, color=GREY, linewidth=0.8)
    axis.set(xlabel="real part of λ", ylabel="imaginary part of λ", aspect="equal", title="eigenvalues λ")
    axis.set(xlim=(-2.2, 1), ylim=(-1.6, 1.6))
    axis.legend(frameon=False, loc="upper left", fontsize=8)
    return plotted(
        plot,
        "Left of the vertical axis a disturbance dies out, right of it it grows; the farther from the horizontal axis, "
        "the faster it turns. A step of learning rate h converges only from inside the disc, whose radius is 1/h.",
    )


@cache
def eigenvalue_motions() -> Image:
    """Draws the disturbance over time for the eigenvalues of `eigenvalue_plane`."""
    plot, (axis,) = figure(height=4.0)
    t = np.linspace(0, 14, 300)
    for (real, imaginary), color in _EIGENVALUES.items():
        name = f"{real:g} ± {imaginary:g}i" if imaginary else f"{real:g}"
        axis.plot(t, np.exp(real * t) * np.cos(imaginary * t), color=color, label=f"λ = {name}")
    axis.set(xlabel="time: learning rate × steps", ylabel="disturbance", ylim=(-3, 3), title="what each of them does")
    axis.legend(frameon=False, fontsize=8, loc="lower left")
    return plotted(
        plot,
        "The same eigenvalues in the same colours: decay, a turn that dies out, an endless turn, a turn that grows.",
    )


_EIGENVALUES = {(-0.5, 0.0): GREEN, (-0.25, 1.0): BLUE, (0.0, 1.0): GREY, (0.1, 1.0): RED}


@cache
def steps() -> Image:
    """Draws simultaneous and alternating steps of the game V = θψ from one start."""
    plot, (axis,) = figure(height=4.0)
    rate, count = 0.35, 18
    for name, color in (("simultaneous", RED), ("alternating", BLUE)):
        theta, psi = [1.0], [0.0]
        for _ in range(count):
            next_psi = psi[-1] - rate * theta[-1]
            theta.append(theta[-1] + rate * (psi[-1] if name == "simultaneous" else next_psi))
            psi.append(next_psi)
        axis.plot(theta, psi, ".-", color=color, linewidth=0.9, label=name)
    axis.plot([0], [0], "+", color="black", markersize=12, markeredgewidth=2)
    axis.set(xlabel="θ", ylabel="ψ", aspect="equal", title="two orders of the steps")
    axis.legend(frameon=False, fontsize=8, loc="upper right")
    return plotted(
        plot,
        f"{count} steps of learning rate {rate} in the simplest game, with the loss -θψ for G and θψ for D. "
        "Simultaneous steps leave every circle on a tangent and spiral outwards; alternating ones stay on an ellipse.",
    )


def _dirac_value(theta: Values, psi: Values) -> Values:
    """Returns V of the Dirac-GAN, with all real samples at 0 and all generated ones at theta."""
    value: Values = -math.log(2) - np.logaddexp(0, theta * psi)
    return value


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
