"""The inverse transform method: in one dimension the generator's best map is known."""

from __future__ import annotations

from pathlib import Path

from gancli.reporting.html import Part, Table
from gancli.theory.base import Chapter, Experiment, diagnostic_numbers, format_number, images_of

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
        images: list[Part] = []
        for distribution, name in DISTRIBUTIONS.items():
            run = folder / f"inverse_transform-{distribution}"
            numbers = diagnostic_numbers(run, "inverse_transform")
            rows.append([name, *(format_number(numbers.get(key)) for key in COLUMNS.values())])
            images += images_of(run, "theory/inverse_transform.png", f"{name}: learned and exact map")
        caption = "errors between the 1 % and 99 % quantiles in standard deviations; distances of 100,000 samples"
        return [Table(["distribution", *COLUMNS], rows, caption), *images]
