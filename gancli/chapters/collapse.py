"""Mode collapse on the ring, and what is done against it."""

from __future__ import annotations

from pathlib import Path

from gancli.chapters.base import Chapter, Experiment, evaluated, picture, spread
from gancli.page import Picture, Table

METHODS: dict[str, tuple[str, ...]] = {
    "minimax": (),
    "minimax + R1": ("penalty=[r1]",),
    "minimax, packs of 4": ("pack=4",),
    "minimax, minibatch statistics": ("network.discriminator.minibatch=std",),
    "relativistic + R1 + R2": ("loss=relativistic", "penalty=[r1,r2]"),
}


class ModeCollapse(Chapter):
    """Modes of eight found, method by method."""

    title = "Mode collapse"
    statement = (
        "In the minimax game G may put all of its samples where D errs most just now, and lose the other modes. "
        "What smooths D, shows it several samples at once, or judges samples in pairs keeps them."
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
        lines, pictures = [], []
        for method in METHODS:
            found = [evaluated(folder / _name(method, seed)) for seed in range(self.seeds)]
            cells = [
                spread(each[key] for each in found if key in each) for key in ("modes", "high_quality", "reverse_kl")
            ]
            lines.append([method, str(sum(bool(each) for each in found)), *cells])
            pictures += picture(folder / _name(method, 0), "samples.png", f"{method}, seed 0: samples over the density")
        head = ["method", "runs to the end", "modes of 8", "high quality", "reverse KL"]
        return [Table(head, lines, "mean ± standard deviation over seeds; high quality: within 3 σ"), *pictures]


def _name(method: str, seed: int) -> str:
    return "ring-" + "".join(c if c.isalnum() else "_" for c in method) + f"-{seed}"
