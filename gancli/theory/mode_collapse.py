"""Mode collapse on a ring of Gaussians, and methods against it."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from gancli.reporting.html import Gallery, Heading, Image, Part, Table, Terms
from gancli.reporting.plots import BLUE, GREY, RED, figure
from gancli.theory.base import (
    Chapter,
    Experiment,
    diverged,
    format_spread,
    gallery,
    images_of,
    last_evaluation,
    plotted,
)

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
_MEANINGS = {
    "runs": "how the runs of the method ended, one for each seed",
    "modes hit": f"of {MODES}, those with any sample within 3 standard deviations σ",
    "modes held": "those with at least 1 % of the samples there: the rest are crumbs",
    "high quality": "share of samples within 3 σ of a mode",
    "diversity": "variance of the samples over that of real ones; 1 is right",
    "reverse KL": "KL divergence of the shares of the modes from equal shares, in nats; 0 is right",
}
_LESSON: list[Part] = [
    "The saddle point asks for q = p, but no step of the training does. At each step G only looks for samples that "
    "the present D takes for real, and the best answer to a fixed D is one single point: the x where D(x) is largest. "
    "So G gathers there, D learns that this point is generated, G moves on to the next mode, and so on round the "
    "ring, or it stays at a few modes for good. Such a G has lost modes of the data: mode collapse. It is the order "
    "of min and max that fails: max over D of V, minimised by G, wants p; min over G of V, answered by D, wants a "
    "point.",
    "D judges one sample at a time, and each of them may be good. Remedies let D see that the set is wrong: penalties "
    "keep D smooth, so that no single point is far better than its surroundings (R1); D sees several samples at once, "
    "and notices that they are alike (packs, minibatch statistics); or the loss compares each generated sample with a "
    "real one, so that a mode without samples costs as much as a bad sample (relativistic losses).",
]
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
        samples: list[Image] = []
        for method, seeds in runs.items():
            cells = [format_spread(v[key] for v in values[method] if key in v) for key in COLUMNS.values()]
            outcomes = [
                "diverged" if diverged(run) else outcome(v) for run, v in zip(seeds, values[method], strict=True)
            ]
            rows.append([method, _count(outcomes), *cells])
            samples += images_of(seeds[0], "samples.png", f"{method}, seed 0")
        caption = "mean ± standard deviation over seeds"
        shown = ["Generated samples (red) over the density of the data (blue), of each method's first run:"]
        return [
            *_LESSON,
            Heading("Measured: eight modes in a ring, and six methods"),
            "Eight narrow Gaussians lie on a circle, each a mode of the data. The steps are large on purpose: so large "
            "that the plain game collapses.",
            Table(["method", "runs", *COLUMNS], rows, caption),
            Terms(_MEANINGS),
            compare_with_baseline(values),
            Gallery(_plots(values), plots=True),
            *(shown if samples else []),
            *gallery(samples, plots=False),
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


def _plots(values: Mapping[str, Sequence[Values]]) -> list[Image]:
    """Draws a bar for each method: modes held, with modes hit, and the share of high-quality samples."""
    finished = {method: [v for v in seeds if v] for method, seeds in values.items()}
    modes_plot, (modes,) = figure()
    quality_plot, (quality,) = figure()
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
        axis.set_yticks(range(len(finished)), list(finished))
        axis.invert_yaxis()
    modes.set(title=f"modes held, of {MODES}", xlim=(0, MODES + 0.5))
    quality.set(title="high-quality samples", xlim=(0, 1.05))
    return [
        plotted(modes_plot, f"modes held (bars) and hit by any sample (diamonds); the aim is {MODES}"),
        plotted(quality_plot, "quality: a collapsed generator may have good samples, of too few modes"),
    ]


def _folder_name(method: str, seed: int) -> str:
    return "ring-" + "".join(c if c.isalnum() else "_" for c in method) + f"-{seed}"
