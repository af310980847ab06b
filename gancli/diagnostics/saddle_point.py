"""Around the saddle point: where the game pulls and where it turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gancli.diagnostics.base import Diagnostic, Run, Shown
from gancli.diagnostics.vector_field import NOISE, VectorField
from gancli.errors import InvalidCheckpoint, SettingError
from gancli.game import PLAYERS
from gancli.networks.dirac import DiracDiscriminator, DiracGenerator
from gancli.reporting.plots import BLUE, GREY, PALE, RED, figure
from gancli.training.checkpoint import read

_AVERAGED = 16_384  # samples whose mean the arrows show: all alike, but for what augmentation makes of them
_NEAR = 0.1  # of the way between two checkpoints: at its end


class PhasePlane(Diagnostic):
    """The Dirac-GAN's way through the plane of its two parameters, on the game's vector field.

    Mescheder et al., ICML 2018, figure 3; the equilibrium is (0, 0).
    """

    title = "phase plane"

    def suits(self, run: Run) -> bool:
        game = run.trainer.game
        dirac = isinstance(game.generator, DiracGenerator) and isinstance(game.discriminator, DiracDiscriminator)
        return dirac and len(run.series("parameter/theta")[0]) > 0

    def __call__(self, run: Run) -> Shown:
        _, theta = run.series("parameter/theta")
        _, psi = run.series("parameter/psi")
        distance = np.hypot(theta, psi)
        few, half = max(1, len(distance) // 20), (len(distance) + 1) // 2
        first, middle, last = (float(some.mean()) for some in (distance[:1], distance[:half][-few:], distance[-few:]))
        steps = run.trainer.step
        numbers = {"distance_first": first, "distance_middle": middle, "distance_last": last, "steps": steps}
        text = f"distance to the equilibrium {first:.3g} at first, {last:.3g} at last, after {steps:,} steps"
        reach = 1.15 * float(np.abs([theta, psi]).max())
        field = VectorField(run, count=_AVERAGED)
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
                raise SettingError(f"{name}={value}: at least 1")
        self.count, self.samples = count, samples

    def suits(self, run: Run) -> bool:
        return True

    def __call__(self, run: Run) -> Shown:
        field = VectorField(run, count=self.samples)
        found, missing = field.eigenvalues(self.count)
        text, numbers = pulled(found, missing=missing, of=field.size)
        picture, (axis,) = figure()
        axis.axvline(0, color=GREY, linewidth=0.8)
        axis.axhline(0, color=GREY, linewidth=0.8)
        axis.plot(found.real, found.imag, "o", color=BLUE, markersize=4)
        axis.set(xlabel="real part: attraction on the left", ylabel="imaginary part: rotation")
        return Shown(text=text, numbers=numbers, figure=picture)


class PathAngle(Diagnostic):
    """The angle between the vector field and the straight way from an old checkpoint to the newest one.

    c(a) = cos(w' - w, v(w + a (w' - w))), a from 0 to 1.5 (Berard et al., ICLR 2020, section 4.1). A change of
    sign at 1 is attraction, a bump there rotation. samples: in the batch. points: along the way, at least 16, so
    that some are near the end.
    """

    title = "path angle"

    def __init__(self, *, samples: int = 256, points: int = 31) -> None:
        for name, value, least in (("samples", samples, 3), ("points", points, 16)):
            if value < least:
                raise SettingError(f"{name}={value}: at least {least}")
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
        text, numbers = describe_path_angle(share.numpy(), np.array(cosines))
        picture, (angle, norm) = figure(2)
        for axis, values, title in ((angle, cosines, "cosine"), (norm, norms, "norm of the field")):
            axis.plot(share, values, color=BLUE)
            axis.axvline(1, color=RED, linestyle="--", linewidth=0.9)
            axis.set(title=title, xlabel="share of the way; 1 is the newest checkpoint")
        angle.axhline(0, color=GREY, linewidth=0.8)
        return Shown(text=text, numbers=numbers, figure=picture)


def pulled(found: NDArray[np.complex128], *, missing: int, of: int) -> tuple[str, dict[str, float]]:
    """What eigenvalues (n,), the largest first, say of attraction and rotation, in words and in numbers.

    missing: of those asked for, how many were not found. of: how many there are.
    """
    numbers: dict[str, float] = {"found": len(found), "missing": missing}
    if not len(found):
        return f"of {of:,} eigenvalues the iteration found none", numbers
    noise = NOISE * float(np.abs(found[0]))
    known = found[np.abs(found) > noise]
    repelling, turning = float(found.real.max()), float(np.abs(found.imag).max())
    turn = float(np.max(np.abs(known.imag) / np.abs(known), initial=0.0))
    numbers |= {"largest_real": repelling, "largest_imaginary": turning, "largest_turn": turn}
    text = (
        f"of {len(found)} of {of:,} eigenvalues the largest real part is {repelling:.3g} "
        f"({'something repels' if repelling > noise else 'nothing repels'}) and the largest imaginary part "
        f"{turning:.3g} ({'the game turns' if turn > 0.5 else 'it pulls more than it turns'})"
    )
    return text + (f"; {missing} more were not found" if missing else ""), numbers


def describe_path_angle(share: NDArray[np.float64], cosines: NDArray[np.float64]) -> tuple[str, dict[str, float]]:
    """What cosines (n,) at `share` (n,) of the way say of its end, at 1, in words and in numbers.

    "change" is the place nearest to 1 where the sign changes, and missing where it never does. "bump" is how far the
    cosine leaves the range between its first and its last value, near 1.
    """
    before, after = float(cosines[0]), float(cosines[-1])
    near = cosines[np.abs(share - 1) < _NEAR + 1e-9]
    bump = max(float(near.max()) - max(before, after), min(before, after) - float(near.min()), 0.0)
    numbers = {"cosine_before": before, "cosine_after": after, "bump": bump}
    a, c = share[cosines != 0], cosines[cosines != 0]
    changes = np.flatnonzero(c[:-1] * c[1:] < 0)
    text = f"the cosine goes from {before:.2f} to {after:.2f} past the end: "
    if not len(changes):
        text += "its sign stays, so the end does not attract"
    else:
        places = a[changes] - c[changes] * (a[changes + 1] - a[changes]) / (c[changes + 1] - c[changes])
        nearest = int(np.abs(places - 1).argmin())
        numbers["change"] = place = float(places[nearest])
        if abs(place - 1) > _NEAR:
            text += f"its sign changes at {place:.2f} of the way, not at the end, which is no equilibrium"
        elif c[changes[nearest]] > 0:
            text += "its sign changes at the end, which attracts along this way"
        else:
            text += "its sign changes at the end from minus to plus, so the end repels along this way"
    return text + (f"; a bump of {bump:.2f} there tells of rotation" if bump > 0.1 else ""), numbers


def _segment(run: Run) -> list[Path]:
    """The oldest checkpoint that is there and the newest."""
    files = run.trainer.checkpoints.files()
    return [files[0], files[-1]] if len(files) > 1 else []


def _point(file: Path, field: VectorField) -> Tensor:
    try:
        state: dict[str, Any] = read(file)
    except InvalidCheckpoint as error:
        raise OSError(f"{file} {error}") from None
    for player in PLAYERS:
        field.game.network(player).load_state_dict(state[player])
    return field.point()
