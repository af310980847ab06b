"""On the line: the inverse transform method, and the best discriminator, both known exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gancli.diagnostics.base import Diagnostic, Run, Shown, frozen
from gancli.distributions import Distribution
from gancli.errors import SettingError
from gancli.metrics.base import Samples
from gancli.metrics.modes import Line
from gancli.priors import TruncatedGaussian
from gancli.randomness import seeded
from gancli.reporting.plots import BLUE, GREY, RED, figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _on_the_line(run: Run) -> bool:
    game = run.trainer.game
    known = run.trainer.dataset.distribution is not None and not game.generator.num_classes
    return known and game.prior.dim == 1 and not isinstance(game.prior, TruncatedGaussian)


class InverseTransform(Diagnostic):
    """The learned map from U(0, 1) to the line against F^-1, or F^-1(1 - u), its mirror image.

    A monotone map that turns U(0, 1) into a distribution with CDF F is one of those two (Devroye, 1986, theorem II.2.1).
    Noise of another distribution enters by its quantiles. Errors are those between the 1 % and the 99 % quantile, in
    standard deviations of the distribution. samples: for the Kolmogorov-Smirnov and Wasserstein-1 distances.
    """

    title = "inverse transform method"

    def __init__(self, *, samples: int = 100_000) -> None:
        if samples < 2:
            raise SettingError(f"samples={samples}: at least 2")
        self.samples = samples

    def suits(self, run: Run) -> bool:
        return _on_the_line(run)

    def __call__(self, run: Run) -> Shown:
        trainer, distribution = run.trainer, run.trainer.dataset.distribution
        assert distribution is not None
        generator = trainer.ema.network
        u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
        learned = frozen(generator, trainer.game.prior.inverse_cdf(u[:, None]).to(run.noise(1)))[:, 0].double()
        wide = distribution.inverse_cdf(u)
        std = float(wide.std())
        inner = (u > 0.01) & (u < 0.99)
        errors = {share: (learned - distribution.inverse_cdf(share))[inner].abs() / std for share in (u, 1 - u)}
        share, error = min(errors.items(), key=lambda pair: float(pair[1].mean()))
        mirrored = share is not u
        backward = _backward(learned[inner], falling=mirrored) / std
        distances = Line()
        made = frozen(generator, run.noise(self.samples))
        exact = distribution.sample(self.samples, seeded("exact"))[:, None]
        ours, floor = (distances(Samples(some, None), Samples(some, None), trainer.dataset) for some in (made, exact))
        numbers: dict[str, float | str] = {
            "mean_error": float(error.mean()),
            "sup_error": float(error.max()),
            "map": f"{'mirror image' if mirrored else 'F^-1'}, {'monotone' if backward == 0 else 'not monotone'}",
            "largest_step_back": backward,
            **ours,
            "ks_exact": floor["ks"],
            "wasserstein1_exact": floor["wasserstein1"],
        }
        text = (
            f"the learned map is {numbers['map']}; mean error {error.mean():.4f}, largest {error.max():.4f} standard "
            f"deviations between the 1 % and 99 % quantiles; KS {ours['ks']:.4f} with {self.samples:,} samples "
            f"(exact ones: {floor['ks']:.4f})"
        )
        return Shown(text=text, numbers=numbers, figure=self._figure(u, learned, distribution, share, made[:, 0]))

    def _figure(self, u: Tensor, learned: Tensor, distribution: Distribution, share: Tensor, made: Tensor) -> Figure:
        picture, (noise, cdf, maps) = figure(3, width=4.2)
        noise.plot([-0.2, 0, 1, 1.2], [0, 0, 1, 1], color=BLUE)
        noise.set(title="CDF of the noise U", xlabel="u", ylabel="P(U <= u)")
        low, high = (float(distribution.inverse_cdf(torch.tensor(end, dtype=torch.float64))) for end in (0.001, 0.999))
        x = torch.linspace(low, high, 400, dtype=torch.float64)
        cdf.plot(x, distribution.cdf(x), color=BLUE, label="F")
        sorted_ = made.double().sort().values[:: max(1, len(made) // 1000)]
        cdf.plot(sorted_, torch.linspace(0, 1, len(sorted_)), color=RED, linestyle="--", label="CDF of G(u)")
        cdf.set(title="CDF of X", xlabel="x", ylabel="P(X <= x)", xlim=(low, high))
        cdf.legend(frameon=False)
        maps.plot(u, distribution.inverse_cdf(share), color=BLUE, label="exact map")
        maps.plot(u, learned, color=RED, linestyle="--", label="learned map G")
        maps.set(title="From U to X", xlabel="u", ylabel="x", ylim=(low, high))
        maps.legend(frameon=False)
        return picture


def _backward(values: Tensor, *, falling: bool) -> float:
    """How far a map that should rise (or fall) ever goes the other way: 0 where it is monotone."""
    rising = -values if falling else values
    return float((rising.cummax(0).values - rising).max())


class OptimalDiscriminator(Diagnostic):
    """The learned D beside the best one against this generator, D* = p / (p + q) for the original game.

    Goodfellow et al., NeurIPS 2014, proposition 1. p is the distribution's density, q that of G(z): the noise is cut into
    `pieces` of equal probability, and what lies between their images has theirs.
    """

    title = "optimal discriminator"

    def __init__(self, *, pieces: int = 20_000, bins: int = 200) -> None:
        for name, value in {"pieces": pieces, "bins": bins}.items():
            if value < 10:
                raise SettingError(f"{name}={value}: at least 10")
        self.pieces, self.bins = pieces, bins

    def suits(self, run: Run) -> bool:
        one = torch.ones(1)
        return _on_the_line(run) and run.trainer.game.loss.optimal(one, one) is not None

    def __call__(self, run: Run) -> Shown:
        game, distribution = run.trainer.game, run.trainer.dataset.distribution
        assert distribution is not None
        u = torch.linspace(0, 1, self.pieces + 1, dtype=torch.float64)[:, None].clamp(1e-6, 1 - 1e-6)
        edges = frozen(game.generator, game.prior.inverse_cdf(u).to(run.noise(1)))[:, 0].double()
        low, high = (float(distribution.inverse_cdf(torch.tensor(end, dtype=torch.float64))) for end in (0.001, 0.999))
        margin = 0.1 * (high - low)
        x = torch.linspace(low - margin, high + margin, self.bins + 1, dtype=torch.float64)
        middle, q = (x[1:] + x[:-1]) / 2, pushed(edges, x)
        p = distribution.cdf(x).diff() / x.diff()  # of the same bins, so that jumps cost nothing
        best = game.loss.optimal(p, q)
        assert best is not None
        learned = frozen(game.discriminator, middle[:, None].to(run.noise(1))).double().sigmoid()
        weight = (p + q) * x.diff() / 2
        error = float(((learned - best).abs() * weight).nansum() / weight.sum())
        picture, (densities, players) = figure(2)
        densities.plot(middle, p, color=BLUE, label="p, of the data")
        densities.plot(middle, q, color=RED, label="q, of G(z)")
        densities.set(title="densities", xlabel="x", ylim=(0, 2 * float(p.max())))
        densities.legend(frameon=False)
        players.plot(middle, best, color=BLUE, label="best D")
        players.plot(middle, learned, color=RED, linestyle="--", label="learned D")
        players.axhline(0.5, color=GREY, linewidth=0.8)
        players.set(title="D(x)", xlabel="x", ylim=(0, 1.02))
        players.legend(frameon=False)
        at_half = float(((best - 0.5).abs() * weight).nansum() / weight.sum())
        text = f"|D - D*| is {error:.3f} in the mean over (p + q) / 2; |D* - 1/2| is {at_half:.3f}"
        return Shown(text=text, numbers={"distance_to_best": error, "best_from_half": at_half}, figure=picture)


def pushed(edges: Tensor, x: Tensor) -> Tensor:
    """Density in the bins between `x` (n + 1,) of a distribution whose probability lies evenly between neighbours of `edges`.

    edges: (m + 1,), in any order. Returns (n,).
    """
    low, high = torch.minimum(edges[1:], edges[:-1]), torch.maximum(edges[1:], edges[:-1])
    width = (high - low).clamp_min(1e-12)
    below = torch.stack([((at - low) / width).clamp(0, 1).mean() for at in x])
    return below.diff() / x.diff()
