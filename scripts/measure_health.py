"""Trains runs that are made to be healthy, young, collapsed and so on, and tabulates what the health monitor says.

    python scripts/measure_health.py                 # all of them: about ten minutes of one thread
    python scripts/measure_health.py young healthy   # some, by name

Prints one row of Markdown per run: what was expected, and every alert after how many thousand images. Exits with 1
where an alert was wrong or one was missing.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from gancli import config
from gancli.commands import train
from gancli.errors import Diverged
from gancli.networks.layers import ClassEmbedding
from gancli.training.evaluation import PeriodicEvaluation, Result
from gancli.training.position import Position


@dataclass(frozen=True, kw_only=True)
class Case:
    """words: of the command line. expected: kinds of alerts that must come, and `allowed`: that may come.

    embedding: factor on the class embeddings of the generator, which start from N(0, 0.1^2).
    """

    words: str
    expected: frozenset[str] = frozenset()
    allowed: frozenset[str] = frozenset({"young"})
    embedding: float = 1.0


def case(words: str, *expected: str, allowed: str = "", embedding: float = 1.0) -> Case:
    return Case(
        words=words,
        expected=frozenset(expected),
        allowed=frozenset(["young", *allowed.split()]),
        embedding=embedding,
    )


SHORT = "train.images=80_000 evaluation.every=20_000"
RING = "dataset=gaussian_ring network=mlp"
SGD = "optimizer@optimizer.generator=sgd optimizer@optimizer.discriminator=sgd"
CASES = {
    "healthy": case(""),
    "healthy, conditional": case("conditional=true"),
    "healthy, often measured": case(SHORT),
    "healthy ring": case("experiment=gaussian_ring train.images=600_000 evaluation.every=100_000"),
    "young": case("train.images=4_000 evaluation.every=2_000", "young"),
    "young, conditional": case("conditional=true train.images=4_000 evaluation.every=2_000", "young"),
    "collapsed to some modes": case("experiment=mode_collapse", "modes", allowed="collapse"),
    "collapsed to a point": case(
        f"{RING} {SHORT} penalty=none optimizer.generator.lr=2e-2", "collapse", allowed="modes quality saturation"
    ),
    "collapsed within classes": case(f"{SHORT} conditional=true", "collapse", embedding=10.0),
    "memorising": case("dataset.limit=200 train.images=200_000 evaluation.every=50_000", "overfitting"),
    "discriminator too strong": case(
        f"{SHORT} penalty=none optimizer.discriminator.lr=5e-3 optimizer.generator.lr=2e-5", "saturation"
    ),
    "diverging slowly": case(
        f"{SHORT} +schedule@optimizer.generator.lr=linear "
        "optimizer.generator.lr.start=1e-3 optimizer.generator.lr.begin=0.5 optimizer.generator.lr.end=3",
        "quality",
        allowed="collapse gradient saturation",
    ),
    "diverging at once": case(f"{SHORT} {SGD} optimizer.generator.lr=100 optimizer.discriminator.lr=100", "diverged"),
}


def alerts(words: list[str], *, embedding: float) -> dict[str, list[int]]:
    """Returns the images after which each kind of alert came, in the order of their first."""
    found = defaultdict[str, list[int]](list)
    check, start = PeriodicEvaluation.check_health, ClassEmbedding.__init__

    def note(self: PeriodicEvaluation, result: Result, position: Position) -> None:
        for alert in result.alerts:
            found[alert.kind].append(position.images)
        check(self, result, position)

    def scaled(self: ClassEmbedding, latent_dim: int, num_classes: int) -> None:
        start(self, latent_dim, num_classes)
        if self.embedding is not None:
            self.embedding.weight.data.mul_(embedding)

    PeriodicEvaluation.check_health = note  # type: ignore[method-assign]
    ClassEmbedding.__init__ = scaled  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder:
            settings = config.compose("train", words)
            train.run(settings, folder=Path(folder) / "run", overrides=words)
    except Diverged as error:
        found["diverged"].append(error.good_images)
    finally:
        PeriodicEvaluation.check_health = check  # type: ignore[method-assign]
        ClassEmbedding.__init__ = start  # type: ignore[method-assign]
    return found


def main() -> None:
    if {"-h", "--help"} & set(sys.argv):
        print(__doc__)
        return
    logging.basicConfig(level=logging.ERROR)
    names = [name for name in CASES if not sys.argv[1:] or name in sys.argv[1:]]
    print("| run | `gancli train …` | said, after thousand images |\n| --- | --- | --- |", flush=True)
    wrong = False
    for name in names:
        chosen = CASES[name]
        found = alerts([*chosen.words.split(), "device.threads=1", "diagnostic=none"], embedding=chosen.embedding)
        said = "; ".join(
            f"{kind} {', '.join(f'{images / 1000:.0f}' for images in times)}" for kind, times in found.items()
        )
        right = chosen.expected <= found.keys() <= chosen.expected | chosen.allowed
        wrong |= not right
        more = "" if chosen.embedding == 1 else f", embeddings times {chosen.embedding:g}"
        words = f"`{chosen.words}`" if chosen.words else "the defaults"
        print(f"| {name}{more} | {words} | {said or 'nothing'}{'' if right else ' (wrong)'} |", flush=True)
    sys.exit(wrong)


if __name__ == "__main__":
    main()
