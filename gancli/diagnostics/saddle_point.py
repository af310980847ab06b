"""Diagnostics of the game's dynamics around its saddle point: attraction and rotation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gancli.diagnostics.base import Diagnostic, DiagnosticResult, TrainedRun
from gancli.diagnostics.vector_field import ROUNDING, VectorField
from gancli.errors import InvalidTensorFile, UserError, require_at_least, require_between, require_memory
from gancli.game import PLAYERS
from gancli.networks.dirac import DiracDiscriminator, DiracGenerator
from gancli.progress import progress
from gancli.reporting.plots import BLUE, GREY, PALE, RED, figure
from gancli.training.checkpoint import read

_ARROW_SAMPLES = 16_384  # in the batch of the drawn vector field: real samples are all equal, augmented ones are not
_NEAR_END = 0.1  # largest distance to the end of the path that counts as "at the end", as a share of the path


class PhasePlane(Diagnostic):
    """The trajectory of the Dirac-GAN's two parameters on the vector field of the game; the equilibrium is (0, 0).

    Mescheder et al., ICML 2018, figure 3.
    """

    title = "phase plane"

    def suits(self, run: TrainedRun) -> bool:
        game = run.trainer.game
        dirac = isinstance(game.generator, DiracGenerator) and isinstance(game.discriminator, DiracDiscriminator)
        return dirac and len(run.series("parameter/theta")[0]) > 0

    def __call__(self, run: TrainedRun) -> DiagnosticResult:
        _, theta = run.series("parameter/theta")
        _, psi = run.series("parameter/psi")
        distance = np.hypot(theta, psi)
        window, half = max(1, len(distance) // 20), (len(distance) + 1) // 2
        parts = distance[:1], distance[:half][-window:], distance[-window:]
        first, middle, last = (float(part.mean()) for part in parts)
        steps = run.trainer.step
        numbers = {"distance_first": first, "distance_middle": middle, "distance_last": last, "steps": steps}
        text = f"distance to the equilibrium {first:.3g} at first, {last:.3g} at last, after {steps:,} steps"
        reach = 1.15 * float(np.abs([theta, psi]).max())
        field = VectorField(run, count=_ARROW_SAMPLES)
        line = torch.linspace(-reach, reach, 17, dtype=torch.float64)
        arrows = []
        for point in torch.cartesian_prod(line, line):
            field.set_parameters(point)
            arrows.append(field.evaluate().detach())
        u, v = torch.stack(arrows).view(17, 17, 2).unbind(2)
        plot, (axis,) = figure(height=4.2)
        axis.quiver(line, line, u.T, v.T, color=PALE, angles="xy")
        axis.plot(theta, psi, color=BLUE, linewidth=0.9)
        axis.plot(theta[:1], psi[:1], "o", color=BLUE, label="start")
        axis.plot(theta[-1:], psi[-1:], "s", color=RED, label="end")
        axis.plot([0], [0], "+", color="black", markersize=12, label="equilibrium")
        axis.set(xlabel="θ, of the generator", ylabel="ψ, of the discriminator", aspect="equal")
        axis.legend(frameon=False, loc="upper right")
        return DiagnosticResult(text=text, numbers=numbers, figure=plot)


class Eigenvalues(Diagnostic):
    """Eigenvalues of the Jacobian of the game's vector field at the present parameters.

    A negative real part attracts, a positive one repels, an imaginary part rotates; with learning rate h a simultaneous
    step converges only where |1 + h lambda| < 1 (Mescheder et al., NeurIPS 2017, section 3). count: eigenvalues of each
    kind, the largest ones and those with the largest real parts, in a game of more than 400 parameters. products: most
    Jacobian-vector products there; each keeps a vector as long as both networks in memory. samples: in the batch.
    blocks: whether to compute the largest eigenvalue of each player's own block too, which says how its own loss curves
    where the other player holds still. Raises SettingError.
    """

    title = "eigenvalues of the game"

    def __init__(self, *, count: int = 3, products: int = 80, samples: int = 64, blocks: bool = False) -> None:
        require_at_least(1, count=count, samples=samples)
        require_between(1, 100_000, products=products)
        require_memory(100 * samples, samples=samples)
        self.count, self.products, self.samples, self.blocks = count, products, samples, blocks

    def suits(self, run: TrainedRun) -> bool:
        return True

    def __call__(self, run: TrainedRun) -> DiagnosticResult:
        field = VectorField(run, count=self.samples)
        values, missing = field.eigenvalues(self.count, products=self.products)
        text, numbers = describe_eigenvalues(values, missing=missing, size=field.size)
        v = field.evaluate().detach()
        numbers |= {f"gradient_{player}": float(v[field.block(player)].norm()) for player in PLAYERS}
        for player in PLAYERS if self.blocks else ():
            own, _ = field.eigenvalues(1, player=player, products=self.products)
            if len(own):
                numbers[f"own_{player}"] = float(own.real.max())
                text += f"; of the {player}'s own block {own.real.max():.3g}"
        plot, (axis,) = figure()
        axis.axvline(0, color=GREY, linewidth=0.8)
        axis.axhline(0, color=GREY, linewidth=0.8)
        axis.plot(values.real, values.imag, "o", color=BLUE, markersize=4)
        axis.set(xlabel="real part (negative: attraction)", ylabel="imaginary part (rotation)")
        return DiagnosticResult(text=text, numbers=numbers, figure=plot)


class PathAngle(Diagnostic):
    """The angle between the vector field and the straight path from the oldest checkpoint to the newest one.

    c(a) = cos(w' - w, v(w + a (w' - w))) for a from 0 to 1.5 (Berard et al., ICLR 2020, section 4.1). A change of sign
    at a = 1 shows attraction, a bump there rotation. samples: in the batch. points: along the path, at least 16, so
    that several are near its end. Raises SettingError.
    """

    title = "path angle"

    def __init__(self, *, samples: int = 64, points: int = 31) -> None:
        require_at_least(3, samples=samples)
        require_between(16, 10_000, points=points)
        require_memory(100 * samples, samples=samples)
        self.samples, self.points = samples, points

    def suits(self, run: TrainedRun) -> bool:
        return len(run.trainer.checkpoints.files()) > 1

    def __call__(self, run: TrainedRun) -> DiagnosticResult:
        field = VectorField(run, count=self.samples)
        files = run.trainer.checkpoints.files()
        old, new = (_load_parameters(file, field) for file in (files[0], files[-1]))
        direction = new - old
        share = torch.linspace(0, 1.5, self.points, dtype=torch.float64)
        cosines, norms = [], []
        for a in progress(share, title=self.title, total=self.points):
            field.set_parameters(old + a * direction)
            v = field.evaluate().detach()
            cosines.append(float(torch.cosine_similarity(v, direction, dim=0, eps=1e-30)))
            norms.append(float(v.norm()))
        text, numbers = describe_path_angle(share.numpy(), np.array(cosines))
        plot, (angle, norm) = figure(2)
        for axis, values, title in ((angle, cosines, "cosine"), (norm, norms, "norm of the field")):
            axis.plot(share, values, color=BLUE)
            axis.axvline(1, color=RED, linestyle="--", linewidth=0.9)
            axis.set(title=title, xlabel="share of the path; 1 is the newest checkpoint")
        angle.axhline(0, color=GREY, linewidth=0.8)
        return DiagnosticResult(text=text, numbers=numbers, figure=plot)


def describe_eigenvalues(values: NDArray[np.complex128], *, missing: int, size: int) -> tuple[str, dict[str, float]]:
    """Returns a sentence and numbers on attraction and rotation. values: eigenvalues (n,), the largest first.

    missing: how many eigenvalues were looked for but not found. size: how many the Jacobian has.
    """
    numbers: dict[str, float] = {"found": len(values), "missing": missing}
    if not len(values):
        return f"of {size:,} eigenvalues the iteration found none", numbers
    tolerance = ROUNDING * float(np.abs(values[0]))
    nonzero = values[np.abs(values) > tolerance]
    real, imaginary = float(values.real.max()), float(np.abs(values.imag).max())
    turn = float(np.max(np.abs(nonzero.imag) / np.abs(nonzero), initial=0.0))
    numbers |= {"largest_real": real, "largest_imaginary": imaginary, "largest_turn": turn}
    text = (
        f"of {len(values)} of {size:,} eigenvalues the largest real part is {real:.3g} "
        f"({'some direction repels' if real > tolerance else 'no direction repels'}) and the largest imaginary part "
        f"{imaginary:.3g} ({'rotation dominates' if turn > 0.5 else 'attraction or repulsion dominates'})"
    )
    return text + (f"; {missing} more were not found" if missing else ""), numbers


def describe_path_angle(share: NDArray[np.float64], cosines: NDArray[np.float64]) -> tuple[str, dict[str, float]]:
    """Returns a sentence and numbers on the end of the path, from the cosines (n,) at `share` (n,) of its length.

    "change" is the place nearest to 1 where the sign changes; it is missing where the sign never does. "bump" is how
    far the cosine near 1 leaves the range between its first and its last value.
    """
    before, after = float(cosines[0]), float(cosines[-1])
    near_end = cosines[np.abs(share - 1) < _NEAR_END + 1e-9]
    bump = max(float(near_end.max()) - max(before, after), min(before, after) - float(near_end.min()), 0.0)
    numbers = {"cosine_before": before, "cosine_after": after, "bump": bump}
    a, c = share[cosines != 0], cosines[cosines != 0]
    changes = np.flatnonzero(c[:-1] * c[1:] < 0)
    text = f"the cosine goes from {before:.2f} to {after:.2f} past the end: "
    if not len(changes):
        text += "its sign does not change, so the end does not attract"
    else:
        places = a[changes] - c[changes] * (a[changes + 1] - a[changes]) / (c[changes + 1] - c[changes])
        nearest = int(np.abs(places - 1).argmin())
        numbers["change"] = place = float(places[nearest])
        if abs(place - 1) > _NEAR_END:
            text += f"its sign changes at {place:.2f} of the path, not at the end, which is no equilibrium"
        elif c[changes[nearest]] > 0:
            text += "its sign changes at the end, which attracts along this path"
        else:
            text += "its sign changes at the end from minus to plus, so the end repels along this path"
    return text + (f"; a bump of {bump:.2f} there shows rotation" if bump > 0.1 else ""), numbers


def _load_parameters(file: Path, field: VectorField) -> Tensor:
    """Loads a checkpoint into the field's networks and returns the parameters (n,). Raises OSError, UserError."""
    try:
        state: dict[str, Any] = read(file)
    except InvalidTensorFile as error:
        raise OSError(f"{file} {error}") from None
    for player in PLAYERS:
        field.game.network(player).load_state_dict(state[player])
    parameters = field.parameters()
    if not parameters.isfinite().all():
        raise UserError(f"{file}: holds weights that are not finite; move it away, so that the path begins elsewhere")
    return parameters
