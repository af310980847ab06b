"""The inverse transform method: in one dimension the generator's best map is known."""

from __future__ import annotations

from pathlib import Path

from gancli.reporting.html import Formula, Gallery, Heading, Image, Part, Table, Terms
from gancli.theory import drawings
from gancli.theory.base import Chapter, Experiment, diagnostic_numbers, format_number, gallery, panels_of

DISTRIBUTIONS = {
    "normal": "normal",
    "exponential": "exponential",
    "gaussian_mixture": "mixture of two normal distributions",
}
COLUMNS = {  # head of a column -> number of the diagnostic
    "learned map": "map",
    "mean error": "mean_error",
    "largest error": "sup_error",
    "KS": "ks",
    "KS, exact": "ks_exact",
    "W1": "wasserstein1",
    "W1, exact": "wasserstein1_exact",
}
_MEANINGS = {
    "learned map": "whether G is nearer to F⁻¹(u) or to its mirror image F⁻¹(1 - u), and whether it is monotone",
    "mean error, largest error": "distance of G(u) from that map between the 1 % and the 99 % quantile, in standard "
    "deviations of X",
    "KS": "Kolmogorov-Smirnov distance: the largest gap between the CDF of 100,000 samples and F; 0 to 1",
    "W1": "Wasserstein-1 distance: the area between both CDFs, in the units of X",
    "exact": "the same for 100,000 samples of X itself: what chance alone leaves, and the aim of the column before",
}


class InverseTransform(Chapter):
    """Generators that map one uniform number to the line, against F^-1."""

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
            for distribution in DISTRIBUTIONS
        ]

    def parts(self, folder: Path) -> list[Part]:
        rows: list[list[str]] = []
        cdfs: list[Image] = []
        maps: list[Image] = []
        for distribution, name in DISTRIBUTIONS.items():
            run = folder / f"inverse_transform-{distribution}"
            numbers = diagnostic_numbers(run, "inverse_transform")
            rows.append([name, *(format_number(numbers.get(key)) for key in COLUMNS.values())])
            captions = (
                "",  # the CDF of the noise is the same for all
                f"{name}: F (blue) and the CDF of the generated samples (red, dashed)",
                f"{name}: F⁻¹ or its mirror image (blue) and the generator itself (red, dashed)",
            )
            panels = panels_of(run, "inverse_transform", captions)
            cdfs += panels[1:2]
            maps += panels[2:]
        return [
            *self._lesson(),
            Table(["distribution of X", *COLUMNS], rows),
            Terms(_MEANINGS),
            *(["Each dashed curve should cover the one below it; the tails are learned last."] if maps else []),
            *gallery([*cdfs, *maps]),
        ]

    def _lesson(self) -> list[Part]:
        return [
            Heading("From noise to samples"),
            "The cumulative distribution function (CDF) of a random number X says for each x how probable it is that X "
            "is at most x. It rises from 0 to 1; its slope, where it has one, is the density. Its inverse F⁻¹ (the "
            "quantile function) asks the other way round: below which x does the share u of all samples lie?",
            Formula("F(x) = P(X ≤ x)\nF⁻¹(u) = the smallest x with F(x) ≥ u,  for 0 < u < 1"),
            "A computer's random numbers are uniform on (0, 1). F⁻¹ maps them to samples of X, whatever X is. The "
            "proof has two lines: F⁻¹(u) ≤ x exactly if u ≤ F(x), since F rises; and U is below a number t between 0 "
            "and 1 with probability t. So",
            Formula("P(F⁻¹(U) ≤ x) = P(U ≤ F(x)) = F(x)"),
            Gallery([drawings.cdf(), drawings.inverse_cdf()], plots=True),
            Heading("A generator is a learned inverse transform"),
            "A generative model that maps noise to samples, without a formula for their density, is called implicit. "
            "For images nobody can write down F, and there is no single inverse in many dimensions. A GAN therefore "
            "learns the map: the generator G turns noise z into a sample G(z), and a second network, the "
            "discriminator, tells it only where its samples differ from real ones. On the line we can check the "
            "result: no monotone map other than F⁻¹(u) and F⁻¹(1 - u) turns uniform noise into X.",
            Heading("Measured: three distributions"),
            "Each generator is a small network with one uniform number as its noise. It saw samples of X, never F.",
        ]
