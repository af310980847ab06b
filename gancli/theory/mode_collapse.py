"""Mode collapse on a ring of Gaussians, and methods against it."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gancli.reporting.html import Image, Part, Table
from gancli.reporting.image_grids import encode_png
from gancli.reporting.plots import BLUE, GREY, RED, figure, render
from gancli.theory.base import Chapter, Experiment, diverged, format_spread, images_of, last_evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Values = Mapping[str, float]
BASELINE = "no remedy"
METHODS: dict[str, tuple[str, ...]] = {
    BASELINE: (),
    "R1": ("penalty=[r1]",),
    "packs of 4": ("pack=4",),
    "minibatch statistics": ("network.discriminator.minibatch=std",),
    "relativistic + R1 + R2": ("loss=relativistic", "penalty=[r1,r2]"),
    "minimax loss, no remedy": ("loss=minimax",),
}
MODES = 8
COLUMNS = {  # head of a column -> value of the evaluation
    "modes hit": "modes",
    "modes held": "modes_held",
    "high quality": "high_quality",
    "diversity": "diversity",
    "reverse KL": "reverse_kl",
}
_MIN_QUALITY = 0.5  # share of high-quality samples below which modes cannot be told apart
_MAX_DIVERSITY = 3.0  # variance over that of real samples above which the generator has left the data


class ModeCollapse(Chapter):
    """How many of eight modes each method finds, over several seeds."""

    title = "Mode collapse"
    statement = (
        "Nothing in the game asks for variety: G may put all of its samples where D errs most at present, and lose the "
        "other modes for good. A smoother D, a D that sees several samples at once, or one that compares real samples "
        "with generated ones is said to help."
    )

    def experiments(self) -> list[Experiment]:
        return [
            Experiment(
                name=_folder_name(method, seed),
                overrides=("experiment=mode_collapse", f"seed={seed}", *overrides),
                minutes=0.3,
            )
            for method, overrides in METHODS.items()
            for seed in range(self.seeds)
        ]

    def parts(self, folder: Path) -> list[Part]:
        runs = {method: [folder / _folder_name(method, seed) for seed in range(self.seeds)] for method in METHODS}
        values = {method: [_final_values(run) for run in seeds] for method, seeds in runs.items()}
        rows: list[list[str]] = []
        samples: list[Part] = []
        for method, seeds in runs.items():
            cells = [format_spread(v[key] for v in values[method] if key in v) for key in COLUMNS.values()]
            outcomes = [
                "diverged" if diverged(run) else outcome(v) for run, v in zip(seeds, values[method], strict=True)
            ]
            rows.append([method, _count(outcomes), *cells])
            samples += images_of(seeds[0], "samples.png", f"{method}, seed 0: samples over the density")
        caption = (
            f"mean ± standard deviation over seeds; of {MODES} modes, hit by any sample within 3 σ, and held by 1 % of "
            "the samples there; high quality: share within 3 σ; diversity: variance over that of real samples"
        )
        plot = encode_png(render(_plot(values)))
        return [
            Table(["method", "runs", *COLUMNS], rows, caption),
            compare_with_baseline(values),
            Image(plot, "modes and quality of each method, with the standard deviation over seeds"),
            *samples,
        ]


def outcome(values: Values) -> str:
    """Returns the outcome of a run in words, from its last evaluation; "no result" for an empty one.

    A collapsed run has good samples, but holds at most half of the modes.
    """
    if not values:
        return "no result"
    if not values["diversity"] <= _MAX_DIVERSITY:  # written so that NaN counts as too large
        return "left the data"
    if values["high_quality"] < _MIN_QUALITY:
        return "low quality"
    held = values["modes_held"]
    return "all modes" if held >= MODES else "collapsed" if held <= MODES / 2 else "modes lost"


def compare_with_baseline(values: Mapping[str, Sequence[Values]]) -> str:
    """Returns which methods hold more modes than the plain game, by more than both standard deviations together."""
    held = {method: [v["modes_held"] for v in seeds if v] for method, seeds in values.items()}
    baseline = held.pop(BASELINE)
    if not baseline:
        return f"The methods cannot be compared: no run with {BASELINE} finished."
    better: list[str] = []
    others: list[str] = []
    for method, counts in held.items():
        if counts:
            gain = statistics.mean(counts) - statistics.mean(baseline)
            (better if gain > _deviation(counts) + _deviation(baseline) else others).append(method)
    return (
        f"With {BASELINE}, {format_spread(baseline)} of {MODES} modes were held "
        f"({_count(map(outcome, values[BASELINE]))}). More, by more than both standard deviations, with: "
        f"{', '.join(better) or 'none'}. Not so with: {', '.join(others) or 'none'}."
    )


def _final_values(run: Path) -> Values:
    """Returns the last evaluation of a run; an empty dict for a run that diverged."""
    return {} if diverged(run) else last_evaluation(run)


def _count(outcomes: Iterable[str]) -> str:
    """Returns text such as "4 collapsed, 1 diverged"."""
    return ", ".join(f"{count} {name}" for name, count in Counter(outcomes).most_common())


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _plot(values: Mapping[str, Sequence[Values]]) -> Figure:
    """Draws a row of bars for each method: modes held, with modes hit, and the share of high-quality samples."""
    plot, (modes, quality) = figure(2)
    finished = {method: [v for v in seeds if v] for method, seeds in values.items()}
    for row, seeds in enumerate(finished.values()):
        if not seeds:
            continue
        for axis, key, color in ((modes, "modes_held", BLUE), (quality, "high_quality", RED)):
            heights = [v[key] for v in seeds]
            style = {"color": color, "ecolor": GREY, "capsize": 4}
            axis.barh(row, statistics.mean(heights), xerr=_deviation(heights), height=0.6, **style)
        hit = statistics.mean(v["modes"] for v in seeds)
        modes.plot(hit, row, "D", color=BLUE, markerfacecolor="white")
    for axis in (modes, quality):
        axis.set_yticks(range(len(finished)), list(finished) if axis is modes else [""] * len(finished))
        axis.invert_yaxis()
    modes.set(title=f"modes held, of {MODES} (diamonds: hit)", xlim=(0, MODES + 0.5))
    quality.set(title="share of high-quality samples", xlim=(0, 1.05))
    return plot


def _folder_name(method: str, seed: int) -> str:
    return "ring-" + "".join(c if c.isalnum() else "_" for c in method) + f"-{seed}"
