"""Simultaneous gradient descent around the saddle point: circles, spirals, convergence."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from gancli.chapters.base import Chapter, Experiment, number, numbers, picture
from gancli.page import Picture, Table

PLAYERS = ("generator", "discriminator")
_OPTIMISTIC = tuple(
    word
    for player in PLAYERS
    for word in (f"optimizer@optimizer.{player}=optimistic_sgd", f"optimizer.{player}.lr=0.2")
)
_OF_MANY = ("log.every=2048", "log.pictures=1_024_000", "checkpoint.every=1_024_000")  # samples in a batch
UPDATES = ("simultaneous", "alternating")
METHODS: dict[str, tuple[tuple[str, ...], bool]] = {  # name -> overrides, whether the theory has it converge
    "minimax": ((), False),
    "non-saturating": (("loss=nonsaturating",), False),
    "WGAN": (("loss=wasserstein",), False),
    "WGAN-GP": (("loss=wasserstein", "penalty=[wgan_gp]", "penalty.wgan_gp.weight=1.0"), False),
    "DRAGAN": (("penalty=[dragan]", "penalty.dragan.weight=1.0"), False),
    "instance noise": (
        ("augment=instance_noise", "augment.std=1.0", "train.batch_size=1024", "train.images=1_024_000", *_OF_MANY),
        True,
    ),
    "consensus": (("penalty=[consensus]", "penalty.consensus.weight=1.0"), True),
    "R1": (("penalty=[r1]", "penalty.r1.weight=1.0"), True),
    "R2": (("penalty=[r2]", "penalty.r2.weight=1.0"), True),
    "optimistic": (_OPTIMISTIC, True),
}
_CLOSE = 0.02  # of the first distance: at the equilibrium


class SaddlePoint(Chapter):
    """The table of Mescheder et al., ICML 2018, by measured distances; eigenvalues against their closed form."""

    title = "Saddle point and gradient descent"
    statement = (
        "Around the equilibrium the game turns: eigenvalues of its Jacobian are imaginary, and gradient descent "
        "circles or spirals outwards. Instance noise, consensus, R1, R2 and a look ahead give them negative real parts."
    )

    def experiments(self) -> list[Experiment]:
        runs = [
            Experiment(
                name=f"dirac-{_word(name)}-{update}",
                overrides=("experiment=dirac_gan", f"update={update}", *overrides),
                minutes=0.6 if name == "instance noise" else 0.1,
            )
            for name, (overrides, _) in METHODS.items()
            for update in UPDATES
        ]
        runs.append(Experiment(name="dirac-extragradient", overrides=("experiment=dirac_gan", "update=extragradient")))
        at_rest = (
            "network.generator.theta=0.0",
            "network.discriminator.psi=0.0",
            "train.images=4",
            "diagnostic=[eigenvalues]",
        )
        for name, overrides in {"minimax": (), "r1": ("penalty=[r1]", "penalty.r1.weight=0.5")}.items():
            runs.append(
                Experiment(name=f"equilibrium-{name}", overrides=("experiment=dirac_gan", *at_rest, *overrides))
            )
        return [*runs, *(self._networks())]

    @staticmethod
    def _networks() -> list[Experiment]:
        """A game of two small networks, without and with a penalty."""
        common: tuple[str, ...] = ("experiment=mode_collapse", *(f"network.{p}.width=32" for p in PLAYERS))
        common += tuple(w for p in PLAYERS for w in (f"optimizer.{p}.lr=1e-3", f"optimizer.{p}.betas=[0.0,0.99]"))
        common += ("train.images=600_000", "checkpoint.every=150_000", "checkpoint.keep=4")
        common += ("diagnostic=[eigenvalues,path_angle]",)
        return [
            Experiment(name="networks-minimax", overrides=common, minutes=0.4),
            Experiment(name="networks-r1", overrides=(*common, "penalty=[r1]"), minutes=0.4),
        ]

    def parts(self, folder: Path) -> list[Table | Picture | str]:
        lines = []
        for name, (_, converges) in METHODS.items():
            found = [numbers(folder / f"dirac-{_word(name)}-{update}", "phase_plane") for update in UPDATES]
            lines.append(_row(name, found, converges))
        lines.append(_row("extragradient", [numbers(folder / "dirac-extragradient", "phase_plane")], True))
        head = ["method", "simultaneous", "alternating", "theory", "as the theory says"]
        caption = (
            "distance to the equilibrium after 1,000 steps, which began at 1.41; the Dirac-GAN, learning rates 0.2"
        )
        table = Table(head, lines, caption)
        planes = []
        for name, update in (
            ("minimax", "simultaneous"),
            ("minimax", "alternating"),
            ("WGAN-GP", "simultaneous"),
            ("R1", "simultaneous"),
        ):
            planes += picture(folder / f"dirac-{_word(name)}-{update}", "theory/phase_plane.png", f"{name}, {update}")
        return [table, *planes, self._closed_form(folder), *self._of_networks(folder)]

    @staticmethod
    def _closed_form(folder: Path) -> Table:
        """-gamma/2 ± sqrt(gamma^2/4 - f'(0)^2), f'(0) = 1/2 (Mescheder et al., ICML 2018, section 3)."""
        lines = []
        for name, gamma in {"minimax": 0.0, "r1": 0.5}.items():
            found = numbers(folder / f"equilibrium-{name}", "eigenvalues")
            exact = -gamma / 2 + (gamma**2 / 4 - 0.25 + 0j) ** 0.5
            computed = [found.get("largest_real"), found.get("largest_imaginary")]
            lines.append([name, *(number(value, 6) for value in (*computed, exact.real, abs(exact.imag)))])
        head = ["at the equilibrium", "real part", "imaginary part", "exact real part", "exact imaginary part"]
        return Table(head, lines, "eigenvalues λ = -γ/2 ± √(γ²/4 - 1/4); for R1 γ is its weight, here 0.5")

    @staticmethod
    def _of_networks(folder: Path) -> list[Table | Picture | str]:
        parts: list[Table | Picture | str] = []
        for name, what in {"networks-minimax": "no penalty", "networks-r1": "R1"}.items():
            parts += picture(folder / name, "theory/eigenvalues.png", f"two networks on the ring, {what}: eigenvalues")
            parts += picture(folder / name, "theory/path_angle.png", f"two networks on the ring, {what}: path angle")
        return parts


def _word(name: str) -> str:
    return name.lower().replace(" ", "_")


def _row(name: str, found: list[dict[str, Any]], converges: bool) -> list[str]:
    last = [each.get("distance_last") for each in found]
    close = [each["distance_last"] < _CLOSE * each["distance_first"] for each in found if each]
    cells = [number(value) for value in last] + [""] * (2 - len(last))
    return [
        name,
        *cells,
        "converges" if converges else "does not",
        "yes" if all(c == converges for c in close) else "NO",
    ]


class Behaviour(Chapter):
    """Runs made to converge, to cycle and to diverge, and what the detector says of them."""

    title = "Oscillation and divergence"
    statement = (
        "A game can end in three ways: the players settle, chase each other for ever, or overshoot more and more. "
        "Which of them it is can be read from the logged series alone, and each has its cure."
    )
    runs: ClassVar[dict[str, tuple[str, ...]]] = {
        "converges": ("experiment=dirac_gan", "penalty=[r1]", "penalty.r1.weight=0.2", "train.images=1_000"),
        "cycles": ("experiment=dirac_gan", "update=alternating"),
        "diverges": ("experiment=dirac_gan", "loss=wasserstein"),
    }

    def experiments(self) -> list[Experiment]:
        return [
            Experiment(name=f"behaviour-{made}", overrides=(*words, "diagnostic=[behaviour]"))
            for made, words in self.runs.items()
        ]

    def parts(self, folder: Path) -> list[Table | Picture | str]:
        lines, pictures = [], []
        for made in self.runs:
            run = folder / f"behaviour-{made}"
            lines.append([made, number(numbers(run, "behaviour").get("verdict"))])
            pictures += picture(run, "theory/behaviour.png", f"made so that it {made}")
        return [Table(["made so that it", "the detector says that it"], lines), *pictures]
