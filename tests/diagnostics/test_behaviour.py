"""The detector on series whose behaviour is known."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.signal import lfilter

from gancli.diagnostics.behaviour import CURES, Behaviour, of_game, settled, verdict
from gancli.losses import Minimax, MinimaxLinear

AT = np.arange(400)
WAVE = np.sin(AT / 7)
NOISE = np.random.default_rng(0).normal(size=400)
SERIES = {
    "a spiral inwards": (WAVE * np.exp(-AT / 80), "converges"),
    "a straight way down": (np.exp(-AT / 40), "converges"),
    "noise around a level": (3 + 0.1 * NOISE, "converges"),
    "noise around a level, after a fall": (3 * np.exp(-AT / 20) + 0.1 * NOISE, "converges"),
    "nothing moves": (np.full(400, 2.0), "converges"),
    "a circle": (WAVE, "cycles"),
    "a circle in noise": (WAVE + 0.2 * NOISE, "cycles"),
    "a slow circle": (np.sin(AT / 20), "cycles"),
    "a circle that is not round": (np.sign(WAVE) + 0.05 * NOISE, "cycles"),
    "a spiral outwards": (WAVE * np.exp(AT / 150), "diverges"),
    "faster and faster away": (np.exp(AT / 60) + 0.01 * NOISE, "diverges"),
    "not a number": (np.where(AT > 390, np.nan, 1.0), "diverges"),
    "still on its way": (AT / 400 + 0.01 * NOISE, "drifts"),
}


@pytest.mark.parametrize("name", SERIES)
def test_the_verdict_is_what_the_series_does(name):
    values, expected = SERIES[name]
    assert verdict(values) == expected


@pytest.mark.parametrize("rows", [100, 400])
@pytest.mark.parametrize("alike", [0.0, 0.5, 0.9])
def test_stationary_noise_is_seldom_taken_for_more(rows, alike):
    alarms = 0
    for seed in range(100):
        noise = np.random.default_rng(seed).normal(size=(4, rows + 100))
        series = lfilter([1], [1, -alike], noise)[:, 100:]  # autocorrelation `alike` from row to row
        alarms += of_game({str(index): verdict(values) for index, values in enumerate(series)}) != "converges"
    assert alarms < 5


@pytest.mark.parametrize("periods", [1.05, 1.5, 3.0])
def test_a_wave_longer_than_the_log_is_no_divergence(periods):
    for phase in np.linspace(0, 2 * np.pi, 12, endpoint=False):
        assert verdict(np.sin(2 * np.pi * np.arange(200) / (periods * 200) + phase)) in ("converges", "drifts")


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (lambda at, noise: np.sin(at / 8) + 0.3 * noise, "cycles"),
        (lambda at, noise: np.sin(at / 5) * np.exp(at / 100) + 0.2 * noise, "diverges"),
        (lambda at, noise: np.exp(at / 40) + 0.3 * noise, "diverges"),
        (lambda at, noise: np.exp(at / 60) * noise, "diverges"),
        (lambda at, noise: np.exp(-at / 60) * np.sin(at / 5) + 0.02 * noise, "converges"),
        (lambda at, noise: np.exp(-at / 60) + 0.02 * noise, "converges"),
        (lambda at, noise: at / 200 + 0.05 * noise, "drifts"),
    ],
)
def test_behaviour_in_noise_is_seldom_missed(made, expected):
    at = np.arange(200)
    found = [verdict(made(at, np.random.default_rng(seed).normal(size=200))) for seed in range(40)]
    assert found.count(expected) >= 36


def test_two_series_decide():
    assert of_game({"a": "cycles"}) == "cycles"
    assert of_game({"a": "diverges", "b": "converges", "c": "converges"}) == "converges"
    assert of_game({"a": "diverges", "b": "cycles", "c": "converges"}) == "cycles"
    assert of_game({"a": "converges", "b": "diverges"}, broken=["b"]) == "diverges"


def _run(loss, **levels):
    """A run of 120 rows that sit still at `levels`."""
    at = np.arange(120.0)
    series = {name.replace("__", "/"): np.full(120, value) for name, value in levels.items()}
    return SimpleNamespace(
        rows=[{}] * 120,
        series=lambda name: (at, series[name]) if name in series else (at[:0], at[:0]),
        trainer=SimpleNamespace(game=SimpleNamespace(loss=loss)),
    )


def test_only_a_game_at_its_saddle_point_needs_nothing():
    at_rest = {"game__value": -1.386, "accuracy__real": 0.5, "accuracy__fake": 0.52}
    dead = {"game__value": -0.01, "accuracy__real": 1.0, "accuracy__fake": 0.99}
    assert Behaviour()(_run(Minimax(), **at_rest)).text.endswith(CURES["converges"])
    shown = Behaviour()(_run(Minimax(), **dead))
    assert shown.numbers["verdict"] == "converges" and "D wins (the value is -0.01" in shown.text
    assert Behaviour()(_run(MinimaxLinear(), **dead)).text.endswith(CURES["converges"]), "its saddle point is at D = 1"
    assert "not at the saddle point" in settled(-4.0, 0.5, 0.1)
    assert settled(None, 0.5, 0.5) == CURES["converges"]


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
def test_the_unit_does_not_matter(factor):
    for values, expected in SERIES.values():
        assert verdict(factor * values) == expected


def test_each_verdict_has_a_cure():
    assert set(CURES) == {"converges", "cycles", "diverges", "drifts"}
