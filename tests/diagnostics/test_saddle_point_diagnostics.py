"""What is said of eigenvalues, of the way between two checkpoints and of the Dirac-GAN's plane."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gancli.augment.instance_noise import InstanceNoise
from gancli.datasets.points import Dirac
from gancli.device import Stream, seeded
from gancli.diagnostics import saddle
from gancli.diagnostics.base import Run
from gancli.game import Game
from gancli.losses import Minimax
from gancli.networks.dirac import DiracDiscriminator, DiracGenerator
from gancli.penalties import R1
from gancli.priors import Uniform

ROUNDING = [3e-8 + 4e-8j, 3e-8 - 4e-8j]  # of eigenvalues that are 0


def run_of(*, points=(), penalties=None, augment=None, rows=(), step=0, monkeypatch=None):
    """A Dirac-GAN's run with checkpoints at `points`, (theta, psi) each."""
    more = {"augment": augment} if augment else {}
    game = Game(
        generator=DiracGenerator(latent_dim=1, image_shape=(1,)),
        discriminator=DiracDiscriminator(image_shape=(1,)),
        loss=Minimax(),
        prior=Uniform(dim=1),
        stream=Stream(seeded("noise"), device=torch.device("cpu")),
        penalties=penalties or {},
        **more,
    )
    states = {
        Path(str(number)): {"generator": {"theta": torch.tensor(theta)}, "discriminator": {"psi": torch.tensor(psi)}}
        for number, (theta, psi) in enumerate(points)
    }
    if monkeypatch is not None:
        monkeypatch.setattr(saddle, "read", states.__getitem__)
    checkpoints = SimpleNamespace(files=lambda: list(states))
    trainer = SimpleNamespace(
        game=game, dataset=Dirac(), progress=1.0, seed=0, step=step, images=2 * step, checkpoints=checkpoints
    )
    run = Run(Path("nowhere"), trainer)
    run.rows = list(rows)
    return run


NODE, SPIRAL = {"r1": R1(weight=2.0)}, {"r1": R1(weight=0.4)}  # at weight 1 pull and rotation are alike


@pytest.mark.parametrize(
    ("penalties", "points", "change", "words"),
    [
        (NODE, [(1.0, 0.3), (0.0, 0.0)], 1.0, "at the end, which attracts"),
        (SPIRAL, [(1.0, 0.9), (0.0, 0.0)], 1.0, "at the end, which attracts"),
        (NODE, [(0.3, 1.0), (-0.12, -0.4)], 1 / 1.4, "of the way, not at the end, which is no equilibrium"),
        (NODE, [(0.3, 1.0), (0.06, 0.2)], 1.25, "of the way, not at the end, which is no equilibrium"),
        (NODE, [(1.0, 1.0), (1.0, 0.5)], None, "its sign stays"),
    ],
    ids=["node", "spiral", "overshoot", "not there yet", "elsewhere"],
)
def test_the_path_angle_says_whether_the_end_attracts(penalties, points, change, words, monkeypatch):
    shown = saddle.PathAngle(samples=3)(run_of(points=points, penalties=penalties, monkeypatch=monkeypatch))
    assert words in shown.text
    assert shown.numbers.get("change") == (None if change is None else pytest.approx(change, abs=0.03))
    assert shown.numbers["bump"] < 0.1 and "rotation" not in shown.text


def test_near_an_equilibrium_that_turns_the_angle_has_a_bump(monkeypatch):
    """Beside it, the pure rotation goes along the way; far from it, at right angles."""
    shown = saddle.PathAngle(samples=3)(run_of(points=[(1.0, 0.0), (0.0, 0.02)], monkeypatch=monkeypatch))
    assert shown.numbers["bump"] > 0.5 and "tells of rotation" in shown.text


def test_what_cosines_say():
    share = np.linspace(0, 1.5, 31)
    text, numbers = saddle.judged(share, share - 1)
    assert "so the end repels" in text and numbers["change"] == pytest.approx(1.0)
    text, numbers = saddle.judged(share, np.zeros(31))
    assert "its sign stays" in text and numbers["bump"] == 0
    text, numbers = saddle.judged(share, 0.5 - share / 10 + 0.4 * np.exp(-100 * (share - 0.5) ** 2))
    assert numbers["bump"] == 0, "a bump on the way there is none of the end"


def test_rounding_neither_turns_nor_repels():
    text, numbers = saddle.pulled(np.array([-1.0 + 0.3j, -1.0 - 0.3j, *ROUNDING]), missing=0, of=9)
    assert numbers["largest_turn"] == pytest.approx(0.287, abs=1e-3)
    assert "nothing repels" in text and "it pulls more than it turns" in text and "4 of 9" in text
    text, _ = saddle.pulled(np.array([-1.0 + 1.0j, -1.0 - 1.0j, 1e-3]), missing=2, of=9)
    assert "something repels" in text and "the game turns" in text and "2 more were not found" in text


def test_a_dead_game_and_an_iteration_that_found_nothing():
    text, numbers = saddle.pulled(np.zeros(2, dtype=complex), missing=0, of=2)
    assert "nothing repels" in text and numbers["largest_turn"] == 0
    text, numbers = saddle.pulled(np.zeros(0, dtype=complex), missing=24, of=1000)
    assert "found none" in text and numbers == {"found": 0, "missing": 24}


def test_the_phase_plane_tells_steps_and_distances(monkeypatch):
    rows = [{"images": 4 * n, "parameter/theta": 3 / n, "parameter/psi": 4 / n} for n in range(1, 101)]
    shown = saddle.PhasePlane()(run_of(rows=rows, step=200))
    assert "after 200 steps" in shown.text
    assert shown.numbers["distance_first"] == 5 and shown.numbers["steps"] == 200
    assert shown.numbers["distance_middle"] == pytest.approx(5 / 48, rel=0.01)
    assert shown.numbers["distance_last"] == pytest.approx(5 / 98, rel=0.01)
    assert not saddle.PhasePlane().suits(run_of())


def test_the_arrows_are_those_of_the_mean_under_noise():
    """-psi std^2 / 2 pulls psi to 0, near the equilibrium, where without noise nothing does."""
    field = saddle.VectorField(run_of(augment=InstanceNoise(std=1.0)), count=saddle._AVERAGED)
    field.move(torch.tensor([0.0, 0.1], dtype=torch.float64))
    assert field.at_point().detach()[1].item() == pytest.approx(-0.05, abs=0.01)


@pytest.mark.parametrize(
    ("settings", "named"), [({"points": 15}, "points=15: at least 16"), ({"samples": 2}, "samples=2")]
)
def test_bad_settings_are_named(settings, named):
    with pytest.raises(ValueError, match=f"^{named}"):
        saddle.PathAngle(**settings)
