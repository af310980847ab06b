"""Simultaneous gradient descent around the saddle point: circles, spirals, convergence."""

from __future__ import annotations

import cmath
from pathlib import Path
from typing import ClassVar

from gancli.game import PLAYERS
from gancli.reporting.html import Picture, Table
from gancli.theory.base import Chapter, Experiment, diverged, number, numbers, picture

_OPTIMISTIC = tuple(
    word
    for player in PLAYERS
    for word in (f"optimizer@optimizer.{player}=optimistic_sgd", f"optimizer.{player}.lr=0.2")
)
_OF_MANY = ("log.every=2048", "log.pictures=1_024_000", "checkpoint.every=1_024_000")  # samples in a batch
UPDATES = ("simultaneous", "alternating")
CONVERGES, SUBLINEARLY, DOES_NOT = "converges", "sublinearly", "does not"
METHODS: dict[str, tuple[tuple[str, ...], tuple[str, str]]] = {  # name -> overrides, the theory for each update
    "minimax": ((), (DOES_NOT, DOES_NOT)),
    # A step of h takes h r^3 / 16 off the distance r, to third order and on average over a turn. A simultaneous one
    # also adds h^2 r / 8, so it stays at r = sqrt(2 h); an alternating one does not, so r = sqrt(8 / (h steps)).
    "non-saturating": (("loss=nonsaturating",), (DOES_NOT, SUBLINEARLY)),
    "Wasserstein": (("loss=wasserstein",), (DOES_NOT, DOES_NOT)),
    "WGAN": (
        (
            "loss=wasserstein",
            "optimizer@optimizer.discriminator=clipped_sgd",
            "optimizer.discriminator.lr=0.2",
            "optimizer.discriminator.clip=1.0",
        ),
        (DOES_NOT, DOES_NOT),
    ),
    "WGAN-GP": (("loss=wasserstein", "penalty=[wgan_gp]", "penalty.wgan_gp.weight=1.0"), (DOES_NOT, DOES_NOT)),
    "DRAGAN": (("penalty=[dragan]", "penalty.dragan.weight=1.0"), (DOES_NOT, DOES_NOT)),
    "instance noise": (
        ("augment=instance_noise", "augment.std=1.0", "train.batch_size=1024", "train.images=1_024_000", *_OF_MANY),
        (CONVERGES, CONVERGES),
    ),
    "consensus": (("penalty=[consensus]", "penalty.consensus.weight=1.0"), (CONVERGES, CONVERGES)),
    "Roth": (("penalty=[roth]", "penalty.roth.weight=1.0"), (CONVERGES, CONVERGES)),
    "R1": (("penalty=[r1]", "penalty.r1.weight=1.0"), (CONVERGES, CONVERGES)),
    "R2": (("penalty=[r2]", "penalty.r2.weight=1.0"), (CONVERGES, CONVERGES)),
    "optimistic": (_OPTIMISTIC, (CONVERGES, CONVERGES)),
}
_CLOSE = 0.02  # of the first distance: at the equilibrium
_FALLING = 0.85  # of the first distance and of that at half of the run, of which 1 / sqrt(steps) makes 0.7, a circle 1


def _pulled(gamma: float) -> complex:
    """-gamma/2 + sqrt(gamma^2/4 - f'(0)^2), f'(0) = 1/2 (Mescheder et al., ICML 2018, section 3)."""
    return cmath.sqrt(gamma**2 / 4 - 0.25) - gamma / 2


AT_REST: dict[str, tuple[tuple[str, ...], complex]] = {  # name -> overrides, the eigenvalue at the equilibrium
    "minimax": ((), _pulled(0.0)),
    "instance noise": (
        ("augment=instance_noise", "augment.std=1.0", "diagnostic.eigenvalues.samples=1_000_000"),
        _pulled(0.5),
    ),
    "consensus": (("penalty=[consensus]", "penalty.consensus.weight=1.0"), complex(-0.25, 0.5)),
    "Roth": (("penalty=[roth]", "penalty.roth.weight=1.0"), _pulled(0.5)),
    "R1": (("penalty=[r1]", "penalty.r1.weight=0.5"), _pulled(0.5)),
    "R2": (("penalty=[r2]", "penalty.r2.weight=0.5"), _pulled(0.5)),
}


class SaddlePoint(Chapter):
    """The table of Mescheder et al., ICML 2018, by measured distances; eigenvalues against their closed form."""

    title = "Saddle point and gradient descent"
    statement = (
        "Around the equilibrium the game turns: eigenvalues of its Jacobian are imaginary, and gradient descent "
        "circles or spirals outwards. Instance noise, consensus, zero-centred penalties give them negative real parts; "
        "a look ahead leaves them as they are, and takes steps that end at the equilibrium all the same."
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
            *(f"optimizer.{player}.lr=0.0" for player in PLAYERS),
            "train.images=4",
            "diagnostic=[eigenvalues]",
        )
        for name, (overrides, _) in AT_REST.items():
            words = ("experiment=dirac_gan", *at_rest, *overrides)
            runs.append(Experiment(name=f"equilibrium-{_word(name)}", overrides=words))
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
        runs = {
            name: ([folder / f"dirac-{_word(name)}-{update}" for update in UPDATES], theory)
            for name, (_, theory) in METHODS.items()
        }
        ahead = ([folder / "dirac-extragradient"], (CONVERGES,))
        lines = [self._row(name, *each) for name, each in {**runs, "extragradient": ahead}.items()]
        head = ["method", *UPDATES, "theory", "as the theory says"]
        steps = {numbers(run, "phase_plane").get("steps", 0) for each, _ in runs.values() for run in each} - {0}
        caption = (
            f"distance to the equilibrium after {' or '.join(f'{count:,}' for count in sorted(steps)) or 'no'} steps, "
            "which began at 1.41; the Dirac-GAN, learning rates 0.2; WGAN clips to ±1"
        )
        planes: list[Table | Picture | str] = []
        for name in ("minimax", "WGAN-GP", "R1", "R2"):
            for run, update in zip(runs[name][0], UPDATES, strict=True):
                planes += picture(run, "theory/phase_plane.png", f"{name}, {update}")
        return [Table(head, lines, caption), *planes, self._closed_form(folder), *self._of_networks(folder)]

    def _row(self, name: str, runs: list[Path], theory: tuple[str, ...]) -> list[str]:
        """Of a method: the last distance of each of its runs, and whether they ended as in `theory`."""
        cells = [
            "diverged" if diverged(run) else number(numbers(run, "phase_plane").get("distance_last")) for run in runs
        ]
        found = [_outcome(run) for run in runs]
        verdict = "–" if self.length < 1 or None in found else "yes" if tuple(found) == theory else "NO"
        return [name, *cells, *[""] * (len(UPDATES) - len(cells)), " / ".join(dict.fromkeys(theory)), verdict]

    @staticmethod
    def _closed_form(folder: Path) -> Table:
        lines = []
        for name, (_, exact) in AT_REST.items():
            found = numbers(folder / f"equilibrium-{_word(name)}", "eigenvalues")
            computed = [found.get("largest_real"), found.get("largest_imaginary")]
            lines.append([name, *(number(value, 6) for value in (*computed, exact.real, abs(exact.imag)))])
        head = ["at the equilibrium", "real part", "imaginary part", "exact real part", "exact imaginary part"]
        caption = (
            "eigenvalues λ = -γ/2 ± √(γ²/4 - 1/4): γ is the weight of R1 and R2, half of Roth's, half the variance of "
            "instance noise, here 0.5, measured on a million samples of it; consensus of weight w has -w/4 ± i/2"
        )
        return Table(head, lines, caption)

    @staticmethod
    def _of_networks(folder: Path) -> list[Table | Picture | str]:
        parts: list[Table | Picture | str] = []
        for name, what in {"networks-minimax": "no penalty", "networks-r1": "R1"}.items():
            parts += picture(folder / name, "theory/eigenvalues.png", f"two networks on the ring, {what}: eigenvalues")
            angle = picture(folder / name, "theory/path_angle.png", f"two networks on the ring, {what}: path angle")
            parts += angle or [f"No path angle of two networks with {what}: the run left fewer than two checkpoints."]
        return parts


def _word(name: str) -> str:
    return name.lower().replace(" ", "_")


def _outcome(run: Path) -> str | None:
    """Whether a run came to the equilibrium; None where it left nothing to tell by."""
    if diverged(run):
        return DOES_NOT
    found = numbers(run, "phase_plane")
    if not found:
        return None
    first, middle, last = (found[f"distance_{when}"] for when in ("first", "middle", "last"))
    if last < _CLOSE * first:
        return CONVERGES
    return SUBLINEARLY if last < _FALLING * min(first, middle) else DOES_NOT


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
