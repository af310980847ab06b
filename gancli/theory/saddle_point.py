"""Gradient descent around the saddle point: which methods converge, circle or diverge on the Dirac-GAN."""

from __future__ import annotations

import cmath
from pathlib import Path

from gancli.game import PLAYERS
from gancli.reporting.html import Formula, Gallery, Heading, Image, Part, Table, Terms
from gancli.reporting.plots import BLUE, RED, figure
from gancli.theory import drawings
from gancli.theory.base import (
    Chapter,
    Experiment,
    diagnostic_numbers,
    diverged,
    format_number,
    gallery,
    images_of,
    panels_of,
    plotted,
)
from gancli.training.run_folder import RunFolder

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


_DRAWN = {  # methods whose runs are drawn -> what to see
    "minimax": "simultaneous steps spiral outwards, alternating ones keep circling",
    "non-saturating": "the same rotation, with a weak pull inwards that dies out near the equilibrium",
    "WGAN-GP": "its penalty wants slope 1, which does not vanish at the equilibrium: no rest",
    "R1": "its penalty wants slope 0, as the equilibrium has: both come to rest",
    "optimistic": "each step anticipates the next one, and both spiral in",
}
_MEANINGS = {
    "simultaneous": "both players step from the same state",
    "alternating": "D steps first, and G answers the new D",
    "theory": "what is proved, for most rows by Mescheder et al. (ICML 2018): converges (as fast as a geometric "
    "series), sublinearly (ever more slowly), or does not; for both updates where they differ",
    "as the theory says": "whether the distances of the two runs end so",
}
_NETWORKS_COLUMNS = {  # head of a column -> number of the diagnostic
    "largest real part": "largest_real",
    "of G's own block": "own_generator",
    "of D's own block": "own_discriminator",
    "largest imaginary part": "largest_imaginary",
    "gradient of G": "gradient_generator",
    "gradient of D": "gradient_discriminator",
}
_NETWORKS_MEANINGS = {
    "largest real part": "of the eigenvalues of the whole Jacobian, on one batch; above 0 some direction repels",
    "of G's, D's own block": "the same if the other player held still: how the player's own loss curves downwards most",
    "largest imaginary part": "of the eigenvalues that were found: the speed of the fastest rotation among them",
    "gradient of G, of D": "its length, over all weights of the player; 0 at an equilibrium",
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
            "diagnostic.eigenvalues.count=12",
            "diagnostic.eigenvalues.products=200",
            "diagnostic.eigenvalues.samples=256",
            "diagnostic.eigenvalues.blocks=true",
            "diagnostic.path_angle.samples=256",
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
        plane = images_of(
            runs["minimax"][0][0],
            "theory/phase_plane.png",
            "How to read a phase plane: each point is a state of the game, with θ of the generator to the right and ψ "
            "of the discriminator upwards; a grey arrow is the way that gradient descent goes from there. The blue "
            "line is a run, minimax with simultaneous steps, from its start (dot) to its end (square); the "
            "equilibrium is +.",
        )
        planes = [_trajectories(name, runs[name][0]) for name in _DRAWN]
        return [
            *_lesson(),
            Heading("Measured: which methods reach the equilibrium"),
            "The Dirac-GAN has all real samples at 0 and all generated ones at θ; D's logit is ψx. Nothing simpler is "
            "a GAN, and it shows what each method does to the rotation.",
            *gallery([*plane, *(image for image in planes if image)]),
            Table(head, rows, caption),
            Terms(_MEANINGS),
            Heading("Measured: eigenvalues at the equilibrium"),
            _eigenvalue_table(folder),
            *_networks_parts(folder),
        ]

    def _row(self, name: str, runs: list[Path], theory: tuple[str, ...]) -> list[str]:
        """Returns a method's row: the last distance of each of its runs, and whether they ended as in `theory`."""
        cells = [
            "diverged" if diverged(run) else format_number(diagnostic_numbers(run, "phase_plane").get("distance_last"))
            for run in runs
        ]
        outcomes = [outcome(run) for run in runs]
        agrees = "–" if self.length < 1 or None in outcomes else "yes" if tuple(outcomes) == theory else "NO"
        return [name, *cells, *[""] * (len(UPDATES) - len(cells)), " / ".join(dict.fromkeys(theory)), agrees]


def _lesson() -> list[Part]:
    return [
        Heading("A saddle, and two ways to walk on it"),
        "V is a landscape over the weights of both players. G walks downhill in its weights, D uphill in its own, and "
        "the equilibrium is a saddle: a maximum for D, a minimum for G. Gradient descent of a single player rolls into "
        "a valley. Here nobody owns the landscape: each move of one player tilts the slope under the other.",
        Gallery([drawings.level_lines(), drawings.section_through_saddle(), drawings.steps()], plots=True),
        "Both players can step at once (simultaneous), or in turn, with the second one answering the first "
        "(alternating). The order matters: simultaneous steps add a little distance at every step of a pure rotation, "
        "alternating ones do not. Neither loses any.",
        Heading("What eigenvalues say"),
        "Write w for all weights of both players and v(w) for the direction in which they move: minus each player's "
        "gradient of its own loss. At an equilibrium v is 0, and near it v is linear, with the Jacobian matrix J of "
        "the derivatives of v. A disturbance is then a sum of parts, one for each eigenvalue λ of J:",
        Formula("v(w* + d) ≈ J d\nd(t) = sum of c e^(λt)\ne^(λt) = e^(at) (cos bt + i sin bt)  for λ = a + bi"),
        Terms(
            {
                "w*, d": "the weights at the equilibrium, and a small distance from them; c: its parts at the start",
                "a, the real part": "decay if negative, growth if positive, by the factor e^a in a unit of time",
                "b, the imaginary part": "rotation: b radians in a unit of time",
                "t, time": "learning rate h times steps; a step multiplies a part by 1 + hλ, so that |1 + hλ| < 1 is "
                "needed",
            }
        ),
        "Rotation is the game itself: what G gains, D loses, so their mixed derivatives have opposite signs, and J has "
        "imaginary eigenvalues. A minimisation never has any: its J is symmetric. Without a negative real part "
        "the smallest step leads outwards. R1 and R2 add one, by making D's landscape curve back to slope 0; consensus "
        "adds one for both players; optimistic and extragradient steps look ahead instead, which helps at the same "
        "eigenvalues.",
        Gallery([drawings.eigenvalue_plane(), drawings.eigenvalue_motions()], plots=True),
    ]


def _eigenvalue_table(folder: Path) -> Table:
    rows = []
    for name, (_, exact) in AT_EQUILIBRIUM.items():
        numbers = diagnostic_numbers(folder / f"equilibrium-{_slug(name)}", "eigenvalues")
        computed = [numbers.get("largest_real"), numbers.get("largest_imaginary")]
        rows.append([name, *(format_number(value, 6) for value in (*computed, exact.real, abs(exact.imag)))])
    head = ["at the equilibrium", "real part", "imaginary part", "exact real part", "exact imaginary part"]
    caption = (
        "computed from the networks, and by the formula λ = -γ/2 ± √(γ²/4 - 1/4): γ is the weight of R1 and R2, half "
        "of Roth's, half the variance of instance noise, here 0.5, measured on a million samples of it; consensus of "
        "weight w has -w/4 ± i/2"
    )
    return Table(head, rows, caption)


def _networks_parts(folder: Path) -> list[Part]:
    """Returns the eigenvalues of two games of networks, and where those that repel come from."""
    rows: list[list[str]] = []
    plots: list[Image] = []
    missing: list[Part] = []
    for name, penalty in {"networks-minimax": "no penalty", "networks-r1": "R1"}.items():
        run = folder / name
        numbers = diagnostic_numbers(run, "eigenvalues")
        rows.append([penalty, *(format_number(numbers.get(key)) for key in _NETWORKS_COLUMNS.values())])
        caption = f"{penalty}: the eigenvalues found; those right of the vertical line repel"
        plots += images_of(run, "theory/eigenvalues.png", caption)
        angle = panels_of(
            run,
            "path_angle",
            (
                f"{penalty}: cosine of the angle between the gradient field and the straight way from the first "
                "checkpoint (0) to the last (1). Falling through 0 at 1: the end attracts along this way",
            ),
        )
        plots += angle
        if not angle:
            missing.append(f"No path angle of two networks with {penalty}: the run left fewer than two checkpoints.")
    return [
        Heading("Measured: two networks on the ring of eight Gaussians"),
        "Of two networks with thousands of weights the outermost eigenvalues can be computed too. The theory would "
        "have all real parts at most 0 with R1. They are not, for a reason: its theorem holds at an equilibrium, "
        "where D is constant around the data and no player's gradient is left. Training with a finite rate and batch "
        "stops short of it: the gradients in the table are not 0. There the Jacobian also contains how each player's "
        "own loss curves in its own weights, on the diagonal, and the loss of a network curves both ways. R1 damps "
        "D's block and leaves G's alone; G's block is 0 only where D is constant. So compare the columns: the largest "
        "real part of the game is close to that of G's own block, and far smaller with R1 than without.",
        Table(["penalty", *_NETWORKS_COLUMNS], rows),
        Terms(_NETWORKS_MEANINGS),
        *gallery(plots),
        *missing,
    ]


def _trajectories(name: str, runs: list[Path]) -> Image | None:
    """Draws the runs of one method, one per update, in axes that are the same for all methods; None for no run."""
    plot, (axis,) = figure(height=4.0)
    for run, update, color in zip(runs, UPDATES, (RED, BLUE), strict=True):
        states = [row for row in RunFolder(run).read_metrics() if "parameter/theta" in row]
        theta, psi = ([row[f"parameter/{key}"] for row in states] for key in ("theta", "psi"))
        axis.plot(theta, psi, color=color, linewidth=0.8, label=update)
    if not any(len(line.get_xdata()) for line in axis.lines):
        return None
    axis.plot([0], [0], "+", color="black", markersize=12, markeredgewidth=2)
    axis.set(xlim=(-2, 2), ylim=(-2, 2), aspect="equal", title=name, xlabel="θ", ylabel="ψ")
    axis.legend(frameon=False, loc="upper right", fontsize=8)
    return plotted(plot, f"{name}: {_DRAWN[name]}")


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
