"""Exact answers for one-dimensional data: the inverse transform method, and the optimal discriminator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gancli.diagnostics.base import Diagnostic, DiagnosticResult, TrainedRun, evaluate_in_batches
from gancli.distributions import Distribution
from gancli.errors import require_at_least, require_memory
from gancli.metrics.base import Samples
from gancli.metrics.modes import Line
from gancli.priors import TruncatedGaussian
from gancli.randomness import seeded
from gancli.reporting.plots import BLUE, GREY, RED, figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _has_exact_answers(run: TrainedRun) -> bool:
    """Whether the data's distribution is known and one-dimensional, the noise too, and the game unconditional."""
    game = run.trainer.game
    known = run.trainer.dataset.distribution is not None and not game.generator.num_classes
    return known and game.prior.dim == 1 and not isinstance(game.prior, TruncatedGaussian)


def _plot_range(distribution: Distribution) -> tuple[float, float]:
    """Returns the 0.1 % and the 99.9 % quantile."""
    low, high = distribution.inverse_cdf(torch.tensor([0.001, 0.999], dtype=torch.float64))
    return float(low), float(high)


class InverseTransform(Diagnostic):
    """The learned map from U(0, 1) to the data against F^-1(u), or against its mirror image F^-1(1 - u).

    A monotone map that turns U(0, 1) into the distribution with CDF F is one of those two (Devroye, Non-Uniform Random
    Variate Generation, 1986, theorem II.2.1). Other noise is mapped through its quantiles. The errors are those between
    the 1 % and the 99 % quantile, in standard deviations of the distribution. samples: for the Kolmogorov-Smirnov and
    the Wasserstein-1 distance. Raises SettingError.
    """

    title = "inverse transform method"

    def __init__(self, *, samples: int = 100_000) -> None:
        require_at_least(2, samples=samples)
        require_memory(100 * samples, samples=samples)
        self.samples = samples

    def suits(self, run: TrainedRun) -> bool:
        return _has_exact_answers(run)

    def __call__(self, run: TrainedRun) -> DiagnosticResult:
        trainer, distribution = run.trainer, run.trainer.dataset.distribution
        assert distribution is not None
        generator = trainer.ema.network
        u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
        noise = trainer.game.prior.inverse_cdf(u[:, None]).to(run.noise(1))
        learned = evaluate_in_batches(generator, noise)[:, 0].double()
        std = float(distribution.inverse_cdf(u).std())
        inner = (u > 0.01) & (u < 0.99)
        rising, falling = ((learned - distribution.inverse_cdf(p))[inner].abs() / std for p in (u, 1 - u))
        mirrored = bool(falling.mean() < rising.mean())
        error = falling if mirrored else rising
        step_back = _largest_step_back(learned[inner], falling=mirrored) / std
        generated = evaluate_in_batches(generator, run.noise(self.samples))
        exact = distribution.sample(self.samples, seeded("exact"))[:, None]
        distances, distances_exact = (
            Line()(Samples(samples, None), Samples(samples, None), trainer.dataset) for samples in (generated, exact)
        )
        numbers: dict[str, float | str] = {
            "mean_error": float(error.mean()),
            "sup_error": float(error.max()),
            "map": f"{'mirror image' if mirrored else 'F^-1'}, {'monotone' if step_back == 0 else 'not monotone'}",
            "largest_step_back": step_back,
            **distances,
            "ks_exact": distances_exact["ks"],
            "wasserstein1_exact": distances_exact["wasserstein1"],
        }
        text = (
            f"the learned map is {numbers['map']}; mean error {error.mean():.4f}, largest {error.max():.4f} standard "
            f"deviations between the 1 % and 99 % quantiles; KS {distances['ks']:.4f} with {self.samples:,} samples "
            f"(exact ones: {distances_exact['ks']:.4f})"
        )
        exact_map = distribution.inverse_cdf(1 - u if mirrored else u)
        plot = _plot_maps(u, learned, exact_map, distribution, generated[:, 0])
        return DiagnosticResult(text=text, numbers=numbers, figure=plot)


def _plot_maps(u: Tensor, learned: Tensor, exact_map: Tensor, distribution: Distribution, generated: Tensor) -> Figure:
    """Draws the CDF of the noise, that of the data and of `generated` (m,), and the maps at `u`, all (n,)."""
    plot, (noise, cdf, maps) = figure(3)
    noise.plot([-0.2, 0, 1, 1.2], [0, 0, 1, 1], color=BLUE)
    noise.set(title="CDF of the noise U", xlabel="u", ylabel="P(U <= u)")
    low, high = _plot_range(distribution)
    x = torch.linspace(low, high, 400, dtype=torch.float64)
    cdf.plot(x, distribution.cdf(x), color=BLUE, label="F")
    quantiles = generated.double().sort().values[:: max(1, len(generated) // 1000)]
    cdf.plot(quantiles, torch.linspace(0, 1, len(quantiles)), color=RED, linestyle="--", label="CDF of G(u)")
    cdf.set(title="CDF of X", xlabel="x", ylabel="P(X <= x)", xlim=(low, high))
    cdf.legend(frameon=False)
    maps.plot(u, exact_map, color=BLUE, label="exact map")
    maps.plot(u, learned, color=RED, linestyle="--", label="learned map G")
    maps.set(title="From U to X", xlabel="u", ylabel="x", ylim=(low, high))
    maps.legend(frameon=False)
    return plot


def _largest_step_back(values: Tensor, *, falling: bool) -> float:
    """Returns how far the values (n,) of a map that should rise, or fall, go the other way; 0 for a monotone map."""
    rising = -values if falling else values
    return float((rising.cummax(0).values - rising).max())


class OptimalDiscriminator(Diagnostic):
    """The learned D beside the optimal one against this generator: D* = p / (p + q) for the original game.

    Goodfellow et al., NeurIPS 2014, proposition 1. p is the data's density and q that of G(z): the noise is divided
    into `pieces` intervals of equal probability, whose images under G have that probability too. bins: in which p and q
    are computed. Raises SettingError.
    """

    title = "optimal discriminator"

    def __init__(self, *, pieces: int = 20_000, bins: int = 200) -> None:
        require_at_least(10, pieces=pieces, bins=bins)
        require_memory(100 * (pieces + bins), pieces=pieces, bins=bins)
        self.pieces, self.bins = pieces, bins

    def suits(self, run: TrainedRun) -> bool:
        one = torch.ones(1)
        return _has_exact_answers(run) and run.trainer.game.loss.optimal(one, one) is not None

    def __call__(self, run: TrainedRun) -> DiagnosticResult:
        game, distribution = run.trainer.game, run.trainer.dataset.distribution
        assert distribution is not None
        u = torch.linspace(0, 1, self.pieces + 1, dtype=torch.float64)[:, None].clamp(1e-6, 1 - 1e-6)
        images = evaluate_in_batches(game.generator, game.prior.inverse_cdf(u).to(run.noise(1)))[:, 0].double()
        low, high = _plot_range(distribution)
        margin = 0.1 * (high - low)
        x = torch.linspace(low - margin, high + margin, self.bins + 1, dtype=torch.float64)
        middle, q = (x[1:] + x[:-1]) / 2, pushforward_density(images, x)
        p = distribution.cdf(x).diff() / x.diff()  # averaged over the same bins as q, so that jumps make no error
        optimal = game.loss.optimal(p, q)
        assert optimal is not None
        learned = evaluate_in_batches(game.discriminator, middle[:, None].to(run.noise(1))).double().sigmoid()
        weight = (p + q) * x.diff() / 2
        error = float(((learned - optimal).abs() * weight).nansum() / weight.sum())
        plot, (densities, discriminators) = figure(2)
        densities.plot(middle, p, color=BLUE, label="p, of the data")
        densities.plot(middle, q, color=RED, label="q, of G(z)")
        densities.set(title="densities", xlabel="x", ylim=(0, 2 * float(p.max())))
        densities.legend(frameon=False)
        discriminators.plot(middle, optimal, color=BLUE, label="optimal D")
        discriminators.plot(middle, learned, color=RED, linestyle="--", label="learned D")
        discriminators.axhline(0.5, color=GREY, linewidth=0.8)
        discriminators.set(title="D(x)", xlabel="x", ylim=(0, 1.02))
        discriminators.legend(frameon=False)
        from_half = float(((optimal - 0.5).abs() * weight).nansum() / weight.sum())
        text = f"the mean of |D - D*| over (p + q) / 2 is {error:.3f}, that of |D* - 1/2| is {from_half:.3f}"
        numbers = {"distance_to_best": error, "best_from_half": from_half}
        return DiagnosticResult(text=text, numbers=numbers, figure=plot)


def pushforward_density(images: Tensor, x: Tensor) -> Tensor:
    """Returns the density (n,) in the bins between `x` (n + 1,) of a distribution that a map pushes forward.

    images: (m + 1,), in any order, of the ends of m intervals of equal probability under the map. The probability of
    each interval is spread evenly between its two images.
    """
    low, high = torch.minimum(images[1:], images[:-1]), torch.maximum(images[1:], images[:-1])
    width = (high - low).clamp_min(1e-12)
    cdf = torch.stack([((end - low) / width).clamp(0, 1).mean() for end in x])
    return cdf.diff() / x.diff()
