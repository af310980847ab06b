"""Around the saddle point: where the game pulls and where it turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gancli.checkpoint import Unreadable, read
from gancli.diagnostics.base import Diagnostic, Run, Shown
from gancli.diagnostics.field import PLAYERS, VectorField
from gancli.networks.dirac import DiracDiscriminator, DiracGenerator
from gancli.plots import BLUE, GREY, PALE, RED, figure


class PhasePlane(Diagnostic):
    """The Dirac-GAN's way through the plane of its two parameters, on the game's vector field.

    Mescheder et al., ICML 2018, figure 3; the equilibrium is (0, 0).
    """

    title = "phase plane"

    def suits(self, run: Run) -> bool:
        game = run.trainer.game
        return isinstance(game.generator, DiracGenerator) and isinstance(game.discriminator, DiracDiscriminator)

    def __call__(self, run: Run) -> Shown:
        _, theta = run.series("parameter/theta")
        _, psi = run.series("parameter/psi")
        distance = np.hypot(theta, psi)
        first, last = float(distance[0]), float(distance[-max(1, len(distance) // 20) :].mean())
        numbers = {"distance_first": first, "distance_last": last}
        text = f"distance to the equilibrium {first:.3g} at first, {last:.3g} at last, after {len(theta)} steps"
        reach = 1.15 * float(np.abs([theta, psi]).max())
        field = VectorField(run, count=2)
        line = torch.linspace(-reach, reach, 17, dtype=torch.float64)
        arrows = []
        for point in torch.cartesian_prod(line, line):
            field.move(point)
            arrows.append(field.at_point().detach())
        u, v = torch.stack(arrows).view(17, 17, 2).unbind(2)
        picture, (axis,) = figure(height=5.0)
        axis.quiver(line, line, u.T, v.T, color=PALE, angles="xy")
        axis.plot(theta, psi, color=BLUE, linewidth=0.9)
        axis.plot(theta[:1], psi[:1], "o", color=BLUE, label="start")
        axis.plot(theta[-1:], psi[-1:], "s", color=RED, label="end")
        axis.plot([0], [0], "+", color="black", markersize=12, label="equilibrium")
        axis.set(xlabel="θ, of the generator", ylabel="ψ, of the discriminator", aspect="equal")
        axis.legend(frameon=False, loc="upper right")
        return Shown(text=text, numbers=numbers, figure=picture)


class Eigenvalues(Diagnostic):
    """Eigenvalues of the Jacobian of the game's vector field where the run stands.

    A negative real part attracts, a positive one repels; an imaginary part turns, and with learning rate h a
    simultaneous step converges only where |1 + h lambda| < 1 (Mescheder et al., NeurIPS 2017, section 3).
    count: how many of a large game. samples: in the batch that it is played on.
    """

    title = "eigenvalues of the game"

    def __init__(self, *, count: int = 12, samples: int = 256) -> None:
        for name, value in {"count": count, "samples": samples}.items():
            if value < 1:
                raise ValueError(f"{name}={value}: at least 1")
        self.count, self.samples = count, samples

    def suits(self, run: Run) -> bool:
        return True

    def __call__(self, run: Run) -> Shown:
        field = VectorField(run, count=self.samples)
        found = field.eigenvalues(self.count)
        repelling, turning = float(found.real.max()), float(np.abs(found.imag).max())
        turn = float(np.max(np.abs(found.imag) / np.maximum(np.abs(found), 1e-300)))
        numbers = {"largest_real": repelling, "largest_imaginary": turning, "largest_turn": turn, "found": len(found)}
        text = (
            f"of {len(found)} of {field.size:,} eigenvalues the largest real part is {repelling:.3g} "
            f"({'something repels' if repelling > 1e-8 else 'nothing repels'}) and the largest imaginary part "
            f"{turning:.3g} ({'the game turns' if turn > 0.5 else 'it pulls more than it turns'})"
        )
        picture, (axis,) = figure()
        axis.axvline(0, color=GREY, linewidth=0.8)
        axis.axhline(0, color=GREY, linewidth=0.8)
        axis.plot(found.real, found.imag, "o", color=BLUE, markersize=4)
        axis.set(xlabel="real part: attraction on the left", ylabel="imaginary part: rotation")
        return Shown(text=text, numbers=numbers, figure=picture)


class PathAngle(Diagnostic):
    """The angle between the vector field and the straight way from an old checkpoint to the newest one.

    c(a) = cos(w' - w, v(w + a (w' - w))), a from 0 to past 1 (Berard et al., ICLR 2020, section 4.1). A change of
    sign at 1 is attraction, a bump there rotation. samples: in the batch. points: along the way.
    """

    title = "path angle"

    def __init__(self, *, samples: int = 256, points: int = 31) -> None:
        for name, value in {"samples": samples, "points": points}.items():
            if value < 3:
                raise ValueError(f"{name}={value}: at least 3")
        self.samples, self.points = samples, points

    def suits(self, run: Run) -> bool:
        return len(_segment(run)) == 2

    def __call__(self, run: Run) -> Shown:
        field = VectorField(run, count=self.samples)
        old, new = (_point(file, field) for file in _segment(run))
        way = new - old
        share = torch.linspace(0, 1.5, self.points, dtype=torch.float64)
        cosines, norms = [], []
        for a in share:
            field.move(old + a * way)
            v = field.at_point().detach()
            cosines.append(float(torch.cosine_similarity(v, way, dim=0, eps=1e-30)))
            norms.append(float(v.norm()))
        before, after = cosines[0], cosines[-1]
        turns = max(cosines) - max(before, after)
        changes = before > 0 > after
        numbers = {"cosine_before": before, "cosine_after": after, "bump": turns}
        text = f"the cosine goes from {before:.2f} to {after:.2f} past the end: " + (
            "its sign changes, so the end attracts" if changes else "its sign stays, so the end does not attract"
        )
        text += f"; a bump of {turns:.2f} tells of rotation" if turns > 0.1 else ""
        picture, (angle, norm) = figure(2)
        for axis, values, title in ((angle, cosines, "cosine"), (norm, norms, "norm of the field")):
            axis.plot(share, values, color=BLUE)
            axis.axvline(1, color=RED, linestyle="--", linewidth=0.9)
            axis.set(title=title, xlabel="share of the way; 1 is the newest checkpoint")
        angle.axhline(0, color=GREY, linewidth=0.8)
        return Shown(text=text, numbers=numbers, figure=picture)


def _segment(run: Run) -> list[Path]:
    """The oldest checkpoint that is there and the newest."""
    files = run.trainer.checkpoints.files()
    return [files[0], files[-1]] if len(files) > 1 else []


def _point(file: Path, field: VectorField) -> Tensor:
    try:
        state: dict[str, Any] = read(file)
    except Unreadable as error:
        raise OSError(f"{file} {error}") from None
    for player in PLAYERS:
        field.game.network(player).load_state_dict(state[player])
    return field.point()
