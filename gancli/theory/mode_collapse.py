"""Mode collapse on the ring, and what is done against it."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gancli.reporting.html import Picture, Table
from gancli.reporting.image_grids import png
from gancli.reporting.plots import BLUE, GREY, RED, drawn, figure
from gancli.theory.base import Chapter, Experiment, diverged, evaluated, picture, spread

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
_COLUMNS = {
    "modes hit": "modes",
    "modes held": "modes_held",
    "high quality": "high_quality",
    "diversity": "diversity",
    "reverse KL": "reverse_kl",
}
_GOOD = 0.5  # share of samples of high quality below which a run shows no modes, so none that it lost
_AWAY = 3.0  # variance over that of real samples from which on G has left the picture


class ModeCollapse(Chapter):
    """Modes of eight found, method by method."""

    title = "Mode collapse"
    statement = (
        "Nothing in the game asks for variety: G may put all of its samples where D errs most just now, and lose the "
        "other modes for good. Smoothing D, showing it several samples at once, or judging pairs is said to help."
    )

    def experiments(self) -> list[Experiment]:
        return [
            Experiment(
                name=_name(method, seed),
                overrides=("experiment=mode_collapse", f"seed={seed}", *overrides),
                minutes=0.3,
            )
            for method, overrides in METHODS.items()
            for seed in range(self.seeds)
        ]

    def parts(self, folder: Path) -> list[Table | Picture | str]:
        runs = {method: [folder / _name(method, seed) for seed in range(self.seeds)] for method in METHODS}
        found = {method: [_values(run) for run in some] for method, some in runs.items()}
        lines, samples = [], []
        for method, some in runs.items():
            cells = [spread(each[key] for each in found[method] if key in each) for key in _COLUMNS.values()]
            lines.append([method, _counted(some, found[method]), *cells])
            samples += picture(some[0], "samples.png", f"{method}, seed 0: samples over the density")
        caption = (
            f"mean ± standard deviation over seeds; of {MODES} modes, hit by any sample within 3 σ, and held by 1 % of "
            "the samples there; high quality: share within 3 σ; diversity: variance over that of real samples"
        )
        return [
            Table(["method", "runs", *_COLUMNS], lines, caption),
            helped(found),
            Picture(png(drawn(_figure(found))), "modes and quality by method, with the standard deviation over seeds"),
            *samples,
        ]


def outcome(values: Values) -> str:
    """What became of a run, in words, from its last evaluation; nothing where there was none.

    A collapsed run has good samples, but of at most half of the modes.
    """
    if not values:
        return "no result"
    if not values["diversity"] <= _AWAY:  # nor is a NaN
        return "ran away"
    if values["high_quality"] < _GOOD:
        return "not sharp"
    held = values["modes_held"]
    return "all modes" if held >= MODES else "collapsed" if held <= MODES / 2 else "modes lost"


def helped(found: Mapping[str, Sequence[Values]]) -> str:
    """Which methods hold more modes than the plain game, by more than both standard deviations together."""
    held = {name: [each["modes_held"] for each in some if each] for name, some in found.items()}
    plain = held.pop(BASELINE)
    if not plain:
        return f"Nothing can be said of what helps: no run with {BASELINE} came to its end."
    better: list[str] = []
    other: list[str] = []
    for name, values in held.items():
        if values:
            gain = statistics.mean(values) - statistics.mean(plain)
            (better if gain > _deviation(values) + _deviation(plain) else other).append(name)
    said = f"With {BASELINE}, {spread(plain)} of {MODES} modes were held ({_words(map(outcome, found[BASELINE]))}). "
    return (
        f"{said}More, beyond both spreads, with: {', '.join(better) or 'none'}. "
        f"Not so with: {', '.join(other) or 'none'}."
    )


def _values(run: Path) -> Values:
    """The last evaluation of a run that came to its end."""
    return {} if diverged(run) else evaluated(run)


def _counted(runs: Sequence[Path], found: Sequence[Values]) -> str:
    """ "4 collapsed, 1 diverged"."""
    return _words("diverged" if diverged(run) else outcome(each) for run, each in zip(runs, found, strict=True))


def _words(outcomes: Iterable[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in Counter(outcomes).most_common())


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _figure(found: Mapping[str, Sequence[Values]]) -> Figure:
    """Bars from left to right, a method in each row: modes held (and hit), and share of high quality."""
    made, (modes, quality) = figure(2)
    known = {name: [each for each in some if each] for name, some in found.items()}
    for row, some in enumerate(known.values()):
        for axis, key, color in ((modes, "modes_held", BLUE), (quality, "high_quality", RED)):
            if some:
                values = [each[key] for each in some]
                bars = {"color": color, "ecolor": GREY, "capsize": 4}
                axis.barh(row, statistics.mean(values), xerr=_deviation(values), height=0.6, **bars)
        if some:
            hit = statistics.mean(each["modes"] for each in some)
            modes.plot(hit, row, "D", color=BLUE, markerfacecolor="white")
    for axis in (modes, quality):
        axis.set_yticks(range(len(known)), list(known) if axis is modes else [""] * len(known))
        axis.invert_yaxis()
    modes.set(title=f"modes held, of {MODES} (diamonds: hit)", xlim=(0, MODES + 0.5))
    quality.set(title="share of samples of high quality", xlim=(0, 1.05))
    return made


def _name(method: str, seed: int) -> str:
    return "ring-" + "".join(c if c.isalnum() else "_" for c in method) + f"-{seed}"
