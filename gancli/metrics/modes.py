"""Metrics for distributions that are known: their modes, or their CDF."""

from __future__ import annotations

import torch

from gancli.datasets.base import Dataset
from gancli.metrics.base import Metric, Number, Samples
from gancli.metrics.features import Features

_HELD_SHARE = 0.01  # of all samples, that must be of high quality and in a mode for the mode to count as held


class Modes(Metric):
    """The number of modes found, the share of high-quality samples, and reverse KL between the shares of modes.

    A sample belongs to its nearest Gaussian, or to the class that the extractor predicts (stacked MNIST: three
    digits). It is of high quality within three standard deviations of its Gaussian; a mode is found where at least
    one such sample is (Srivastava et al., NeurIPS 2017, section 4.1). Since one stray sample suffices for that,
    modes_held counts the modes that hold a hundredth of all samples, of high quality; modes_held and high_quality are
    for points only. reverse_kl is KL(q || p) in nats, where q are the generated samples' shares and p the
    distribution's (Lin et al., NeurIPS 2018, section 4.1).
    """

    def numbers(self, features: Features | None) -> dict[str, Number]:
        numbers = {
            "reverse_kl": Number("lower", "KL(samples' shares of modes || true ones), in nats"),
            "modes": Number("higher", "modes with at least one sample of high quality"),
        }
        if features is None:
            numbers["modes_held"] = Number("higher", "modes that hold 1 % of the samples, of high quality")
            numbers["high_quality"] = Number("higher", "share of samples within 3 standard deviations of a mode")
        return numbers

    def suits(self, dataset: Dataset, features: Features | None) -> bool:
        return dataset.mode_shares is not None and (features is None or features.accuracy is not None)

    def __call__(self, generated: Samples, real: Samples, dataset: Dataset) -> dict[str, float]:
        assert dataset.mode_shares is not None
        logits = generated.logits if len(dataset.shape) == 3 else None
        index, good = dataset.modes_of(generated.data, logits)
        shares = dataset.mode_shares.double()
        counts = torch.bincount(index, minlength=len(shares)).double()
        hits = torch.bincount(index[good], minlength=len(shares))
        q = counts / counts.sum().clamp_min(1)
        terms = torch.where(q > 0, q * (q / shares).log(), 0.0)
        values = {"reverse_kl": float(terms.sum()) if len(index) else float("nan"), "modes": float((hits > 0).sum())}
        if len(dataset.shape) == 1:
            values["modes_held"] = float((hits >= max(1, _HELD_SHARE * len(generated))).sum())
            values["high_quality"] = float(good.double().sum()) / len(generated)
        return values


class Line(Metric):
    """Distances between the samples' empirical CDF F_n and the CDF F of a known distribution on the line.

    ks: sup |F_n - F| (Kolmogorov, 1933), on both sides of each sample, where both may jump. wasserstein1: the integral
    of |F_n^-1 - F^-1|, by the midpoint rule at n points.
    """

    def numbers(self, features: Features | None) -> dict[str, Number]:
        return {
            "ks": Number("lower", "largest difference to the true CDF, 0 to 1"),
            "wasserstein1": Number("lower", "Wasserstein-1 distance to the true distribution"),
        }

    def suits(self, dataset: Dataset, features: Features | None) -> bool:
        return dataset.distribution is not None

    def __call__(self, generated: Samples, real: Samples, dataset: Dataset) -> dict[str, float]:
        assert dataset.distribution is not None
        x = generated.data[:, 0].double().sort().values
        n = len(x)
        steps = torch.arange(n + 1, dtype=torch.float64) / n
        before = dataset.distribution.cdf(torch.nextafter(x, torch.full_like(x, -torch.inf)))
        lower, upper = (torch.searchsorted(x, x, right=right).double() / n for right in (False, True))
        ks = torch.maximum((before - lower).abs(), (dataset.distribution.cdf(x) - upper).abs()).max()
        quantiles = dataset.distribution.inverse_cdf((steps[:-1] + steps[1:]) / 2)
        return {"ks": float(ks), "wasserstein1": float((x - quantiles).abs().mean())}
