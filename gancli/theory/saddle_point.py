"""Gradient descent around the saddle point: which methods converge, circle or diverge on the Dirac-GAN."""

from __future__ import annotations

import cmath
from pathlib import Path

from gancli.game import PLAYERS
from gancli.reporting.html import Part, Table
from gancli.theory.base import Chapter, Experiment, diagnostic_numbers, diverged, format_number, images_of

_OPTIMISTIC = tuple(
    override
    for player in PLAYERS
    for override in (f"optimizer@optimizer.{player}=optimistic_sgd", f"optimizer.{player}.lr=0.2")
)
# Batches of 1,024 samples, as the noise has to be averaged; the intervals, in images, grow with the batch.
_LARGE_BATCHES = (
    "train.batch_size=1024",
    "train.images=1_024_000",
    "log.every=2048",
    "log.pictures=1_024_000",
    "checkpoint.every=1_024_000",
)
UPDATES = ("simultaneous", "alternating")
CONVERGES, SUBLINEARLY, DOES_NOT = "converges", "sublinearly", "does not"
METHODS: dict[str, tuple[tuple[str, ...], tuple[str, str]]] = {  # name -> overrides; the theory for each update
    "minimax": ((), (DOES_NOT, DOES_NOT)),
    # With learning rate h a step shortens the distance r by h r^3 / 16, to third order and averaged over a turn. A
    # simultaneous step also adds h^2 r / 8, so r tends to sqrt(2 h); an alternating one does not, so r tends to 0 like
    # sqrt(8 / (h steps)).
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
        ("augment=instance_noise", "augment.std=1.0", *_LARGE_BATCHES),
        (CONVERGES, CONVERGES),
    ),
    "consensus": (("penalty=[consensus]", "penalty.consensus.weight=1.0"), (CONVERGES, CONVERGES)),
    "Roth": (("penalty=[roth]", "penalty.roth.weight=1.0"), (CONVERGES, CONVERGES)),
    "R1": (("penalty=[r1]", "penalty.r1.weight=1.0"), (CONVERGES, CONVERGES)),
    "R2": (("penalty=[r2]", "penalty.r2.weight=1.0"), (CONVERGES, CONVERGES)),
    "optimistic": (_OPTIMISTIC, (CONVERGES, CONVERGES)),
}
_CONVERGED = 0.02  # largest last distance over the first one of a run that converges
# Largest last distance of a run that converges sublinearly, over the first one and over that at half of the run;
# a decay like 1 / sqrt(steps) has 0.7 for the second ratio, a circle 1.
_DECAYING = 0.85


def _eigenvalue(gamma: float) -> complex:
    """Returns -gamma/2 + sqrt(gamma^2/4 - f'(0)^2) with f'(0) = 1/2 (Mescheder et al., ICML 2018, section 3)."""
    return cmath.sqrt(gamma**2 / 4 - 0.25) - gamma / 2


AT_EQUILIBRIUM: dict[str, tuple[tuple[str, ...], complex]] = {  # name -> overrides; the exact eigenvalue
    "minimax": ((), _eigenvalue(0.0)),
    "instance noise": (
        ("augment=instance_noise", "augment.std=1.0", "diagnostic.eigenvalues.samples=1_000_000"),
        _eigenvalue(0.5),
    ),
    "consensus": (("penalty=[consensus]", "penalty.consensus.weight=1.0"), complex(-0.25, 0.5)),
    "Roth": (("penalty=[roth]", "penalty.roth.weight=1.0"), _eigenvalue(0.5)),
    "R1": (("penalty=[r1]", "penalty.r1.weight=0.5"), _eigenvalue(0.5)),
    "R2": (("penalty=[r2]", "penalty.r2.weight=0.5"), _eigenvalue(0.5)),
}


class SaddlePoint(Chapter):
    """The table of Mescheder et al., ICML 2018, by measured distances, and eigenvalues against their closed form."""

    title = "Saddle point and gradient descent"
    statement = (
        "Around the equilibrium the game rotates: eigenvalues of its Jacobian are imaginary, and gradient descent "
        "circles or spirals outwards. Instance noise, consensus and zero-centred penalties give them negative real "
        "parts; optimistic and extragradient steps leave them as they are, and converge all the same."
    )

    def experiments(self) -> list[Experiment]:
        runs = [
            Experiment(
                name=f"dirac-{_slug(name)}-{update}",
                overrides=("experiment=dirac_gan", f"update={update}", *overrides),
                minutes=0.6 if name == "instance noise" else 0.1,
            )
            for name, (overrides, _) in METHODS.items()
            for update in UPDATES
        ]
        runs.append(Experiment(name="dirac-extragradient", overrides=("experiment=dirac_gan", "update=extragradient")))
        stay = (
            "experiment=dirac_gan",
            "network.generator.theta=0.0",
            "network.discriminator.psi=0.0",
            *(f"optimizer.{player}.lr=0.0" for player in PLAYERS),
            "train.images=4",
            "diagnostic=[eigenvalues]",
        )
        runs += [
            Experiment(name=f"equilibrium-{_slug(name)}", overrides=(*stay, *overrides))
            for name, (overrides, _) in AT_EQUILIBRIUM.items()
        ]
        return [*runs, *self._networks()]

    @staticmethod
    def _networks() -> list[Experiment]:
        """Returns a game of two small networks, without and with a penalty."""
        common = (
            "experiment=mode_collapse",
            *(f"network.{player}.width=32" for player in PLAYERS),
            *(f"optimizer.{player}.{setting}" for player in PLAYERS for setting in ("lr=1e-3", "betas=[0.0,0.99]")),
            "train.images=600_000",
            "checkpoint.every=150_000",
            "checkpoint.keep=4",
            "diagnostic=[eigenvalues,path_angle]",
        )
        return [
            Experiment(name="networks-minimax", overrides=common, minutes=0.4),
            Experiment(name="networks-r1", overrides=(*common, "penalty=[r1]"), minutes=0.4),
        ]

    def parts(self, folder: Path) -> list[Part]:
        runs = {
            name: ([folder / f"dirac-{_slug(name)}-{update}" for update in UPDATES], theory)
            for name, (_, theory) in METHODS.items()
        }
        extragradient = ([folder / "dirac-extragradient"], (CONVERGES,))
        rows = [self._row(name, *row) for name, row in {**runs, "extragradient": extragradient}.items()]
        head = ["method", *UPDATES, "theory", "as the theory says"]
        counts = {diagnostic_numbers(run, "phase_plane").get("steps", 0) for pair, _ in runs.values() for run in pair}
        steps = " or ".join(f"{count:,}" for count in sorted(counts - {0})) or "no"
        caption = (
            f"distance to the equilibrium after {steps} steps, from 1.41 at the start; the Dirac-GAN with learning "
            "rates 0.2; WGAN clips to ±1"
        )
        planes: list[Part] = []
        for name in ("minimax", "WGAN-GP", "R1", "R2"):
            for run, update in zip(runs[name][0], UPDATES, strict=True):
                planes += images_of(run, "theory/phase_plane.png", f"{name}, {update}")
        return [Table(head, rows, caption), *planes, _eigenvalue_table(folder), *_network_images(folder)]

    def _row(self, name: str, runs: list[Path], theory: tuple[str, ...]) -> list[str]:
        """Returns a method's row: the last distance of each of its runs, and whether they ended as in `theory`."""
        cells = [
            "diverged" if diverged(run) else format_number(diagnostic_numbers(run, "phase_plane").get("distance_last"))
            for run in runs
        ]
        outcomes = [outcome(run) for run in runs]
        agrees = "–" if self.length < 1 or None in outcomes else "yes" if tuple(outcomes) == theory else "NO"
        return [name, *cells, *[""] * (len(UPDATES) - len(cells)), " / ".join(dict.fromkeys(theory)), agrees]


def _eigenvalue_table(folder: Path) -> Table:
    rows = []
    for name, (_, exact) in AT_EQUILIBRIUM.items():
        numbers = diagnostic_numbers(folder / f"equilibrium-{_slug(name)}", "eigenvalues")
        computed = [numbers.get("largest_real"), numbers.get("largest_imaginary")]
        rows.append([name, *(format_number(value, 6) for value in (*computed, exact.real, abs(exact.imag)))])
    head = ["at the equilibrium", "real part", "imaginary part", "exact real part", "exact imaginary part"]
    caption = (
        "eigenvalues λ = -γ/2 ± √(γ²/4 - 1/4): γ is the weight of R1 and R2, half of Roth's, half the variance of "
        "instance noise, here 0.5, measured on a million samples of it; consensus of weight w has -w/4 ± i/2"
    )
    return Table(head, rows, caption)


def _network_images(folder: Path) -> list[Part]:
    parts: list[Part] = []
    for name, penalty in {"networks-minimax": "no penalty", "networks-r1": "R1"}.items():
        run, title = folder / name, f"two networks on the ring, {penalty}"
        parts += images_of(run, "theory/eigenvalues.png", f"{title}: eigenvalues")
        angle = images_of(run, "theory/path_angle.png", f"{title}: path angle")
        parts += angle or [f"No path angle of two networks with {penalty}: the run left fewer than two checkpoints."]
    return parts


def _slug(name: str) -> str:
    return name.lower().replace(" ", "_")


def outcome(run: Path) -> str | None:
    """Returns whether a run came to the equilibrium; None for a run without the diagnostic `phase_plane`."""
    if diverged(run):
        return DOES_NOT
    numbers = diagnostic_numbers(run, "phase_plane")
    if not numbers:
        return None
    first, middle, last = (numbers[f"distance_{when}"] for when in ("first", "middle", "last"))
    if last < _CONVERGED * first:
        return CONVERGES
    return SUBLINEARLY if last < _DECAYING * min(first, middle) else DOES_NOT
