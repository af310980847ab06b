"""Eigenvalues, the path between two checkpoints, and the phase plane of the Dirac-GAN."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gancli.augment.instance_noise import InstanceNoise
from gancli.datasets.points import Dirac
from gancli.diagnostics import saddle_point
from gancli.diagnostics.base import TrainedRun
from gancli.diagnostics.vector_field import VectorField
from gancli.errors import SettingError, UserError
from gancli.game import Game
from gancli.losses import Minimax
from gancli.networks.dirac import DiracDiscriminator, DiracGenerator
from gancli.penalties import R1
from gancli.priors import Uniform
from gancli.randomness import Stream, seeded

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
        monkeypatch.setattr(saddle_point, "read", states.__getitem__)
    checkpoints = SimpleNamespace(files=lambda: list(states))
    trainer = SimpleNamespace(
        game=game, dataset=Dirac(), progress=1.0, seed=0, step=step, images=2 * step, checkpoints=checkpoints
    )
    run = TrainedRun(Path("nowhere"), trainer)
    run.rows = list(rows)
    return run


NODE, SPIRAL = {"r1": R1(weight=2.0)}, {"r1": R1(weight=0.4)}  # real eigenvalues, and complex ones


@pytest.mark.parametrize(
    ("penalties", "points", "change", "text"),
    [
        (NODE, [(1.0, 0.3), (0.0, 0.0)], 1.0, "at the end, which attracts"),
        (SPIRAL, [(1.0, 0.9), (0.0, 0.0)], 1.0, "at the end, which attracts"),
        (NODE, [(0.3, 1.0), (-0.12, -0.4)], 1 / 1.4, "of the path, not at the end, which is no equilibrium"),
        (NODE, [(0.3, 1.0), (0.06, 0.2)], 1.25, "of the path, not at the end, which is no equilibrium"),
        (NODE, [(1.0, 1.0), (1.0, 0.5)], None, "its sign does not change"),
    ],
    ids=["node", "spiral", "overshoot", "not there yet", "elsewhere"],
)
def test_the_path_angle_says_whether_the_end_attracts(penalties, points, change, text, monkeypatch):
    result = saddle_point.PathAngle(samples=3)(run_of(points=points, penalties=penalties, monkeypatch=monkeypatch))
    assert text in result.text
    assert result.numbers.get("change") == (None if change is None else pytest.approx(change, abs=0.03))
    assert result.numbers["bump"] < 0.1 and "rotation" not in result.text


def test_the_path_angle_has_a_bump_near_an_equilibrium_with_rotation(monkeypatch):
    """Near it, the pure rotation is parallel to the path; far from it, orthogonal."""
    result = saddle_point.PathAngle(samples=3)(run_of(points=[(1.0, 0.0), (0.0, 0.02)], monkeypatch=monkeypatch))
    assert result.numbers["bump"] > 0.5 and "shows rotation" in result.text


def test_the_description_of_cosines_along_the_path():
    share = np.linspace(0, 1.5, 31)
    text, numbers = saddle_point.describe_path_angle(share, share - 1)
    assert "so the end repels" in text and numbers["change"] == pytest.approx(1.0)
    text, numbers = saddle_point.describe_path_angle(share, np.zeros(31))
    assert "its sign does not change" in text and numbers["bump"] == 0
    text, numbers = saddle_point.describe_path_angle(share, 0.5 - share / 10 + 0.4 * np.exp(-100 * (share - 0.5) ** 2))
    assert numbers["bump"] == 0, "a bump far from the end does not count"


def test_a_path_from_weights_that_are_not_finite_is_refused(monkeypatch):
    run = run_of(points=[(float("nan"), 0.0), (0.0, 0.0)], monkeypatch=monkeypatch)
    with pytest.raises(UserError, match=r"^0: holds weights that are not finite"):
        saddle_point.PathAngle(samples=3)(run)


@pytest.mark.parametrize("blocks", [False, True])
def test_the_eigenvalues_of_each_players_block_are_computed_on_demand(blocks):
    result = saddle_point.Eigenvalues(samples=3, blocks=blocks)(run_of(penalties=NODE))  # at theta = psi = 1
    numbers, slope = result.numbers, 1 / (1 + np.exp(-1))  # loss_D = softplus(psi theta) + |psi|^2 + a constant
    assert numbers["gradient_generator"] == pytest.approx(slope)
    assert numbers["gradient_discriminator"] == pytest.approx(slope + 2)
    assert ("own_discriminator" in numbers) == ("of the discriminator's own block" in result.text) == blocks
    if blocks:
        assert numbers["own_discriminator"] == pytest.approx(-slope * (1 - slope) - 2)


def test_rounding_errors_of_zero_eigenvalues_do_not_count():
    text, numbers = saddle_point.describe_eigenvalues(
        np.array([-1.0 + 0.3j, -1.0 - 0.3j, *ROUNDING]), missing=0, size=9
    )
    assert numbers["largest_turn"] == pytest.approx(0.287, abs=1e-3)
    assert "no direction repels" in text and "attraction or repulsion dominates" in text and "4 of 9" in text
    text, _ = saddle_point.describe_eigenvalues(np.array([-1.0 + 1.0j, -1.0 - 1.0j, 1e-3]), missing=2, size=9)
    assert "some direction repels" in text and "rotation dominates" in text and "2 more were not found" in text


def test_the_description_of_zero_eigenvalues_and_of_none():
    text, numbers = saddle_point.describe_eigenvalues(np.zeros(2, dtype=complex), missing=0, size=2)
    assert "no direction repels" in text and numbers["largest_turn"] == 0
    text, numbers = saddle_point.describe_eigenvalues(np.zeros(0, dtype=complex), missing=24, size=1000)
    assert "found none" in text and numbers == {"found": 0, "missing": 24}


def test_the_phase_plane_reports_steps_and_distances(monkeypatch):
    rows = [{"images": 4 * n, "parameter/theta": 3 / n, "parameter/psi": 4 / n} for n in range(1, 101)]
    result = saddle_point.PhasePlane()(run_of(rows=rows, step=200))
    assert "after 200 steps" in result.text
    assert result.numbers["distance_first"] == 5 and result.numbers["steps"] == 200
    assert result.numbers["distance_middle"] == pytest.approx(5 / 48, rel=0.01)
    assert result.numbers["distance_last"] == pytest.approx(5 / 98, rel=0.01)
    assert not saddle_point.PhasePlane().suits(run_of())


def test_the_drawn_field_averages_over_instance_noise():
    """Near the equilibrium the noise adds -psi std^2 / 2 to the field."""
    field = VectorField(run_of(augment=InstanceNoise(std=1.0)), count=saddle_point._ARROW_SAMPLES)
    field.set_parameters(torch.tensor([0.0, 0.1], dtype=torch.float64))
    assert field.evaluate().detach()[1].item() == pytest.approx(-0.05, abs=0.01)


@pytest.mark.parametrize(("settings", "named"), [({"points": 15}, "points=15: from 16"), ({"samples": 2}, "samples=2")])
def test_bad_settings_are_named(settings, named):
    with pytest.raises(SettingError, match=f"^{named}"):
        saddle_point.PathAngle(**settings)
