"""The diagnostic `behaviour` on series whose behaviour is known."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.signal import lfilter

from gancli.diagnostics.behaviour import REMEDIES, Behaviour, game_verdict, remedy_for_limit, verdict
from gancli.errors import SettingError
from gancli.losses import Minimax, MinimaxLinear

ROW = np.arange(400)
WAVE = np.sin(ROW / 7)
NOISE = np.random.default_rng(0).normal(size=400)
SERIES = {
    "a wave that shrinks": (WAVE * np.exp(-ROW / 80), "converges"),
    "a decay": (np.exp(-ROW / 40), "converges"),
    "noise around a level": (3 + 0.1 * NOISE, "converges"),
    "noise around a level, after a decay": (3 * np.exp(-ROW / 20) + 0.1 * NOISE, "converges"),
    "a constant": (np.full(400, 2.0), "converges"),
    "a wave": (WAVE, "cycles"),
    "a wave in noise": (WAVE + 0.2 * NOISE, "cycles"),
    "a slow wave": (np.sin(ROW / 20), "cycles"),
    "a square wave": (np.sign(WAVE) + 0.05 * NOISE, "cycles"),
    "a wave that grows": (WAVE * np.exp(ROW / 150), "diverges"),
    "exponential growth": (np.exp(ROW / 60) + 0.01 * NOISE, "diverges"),
    "values that are not finite": (np.where(ROW > 390, np.nan, 1.0), "diverges"),
    "a straight line in noise": (ROW / 400 + 0.01 * NOISE, "drifts"),
}


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("name", SERIES)
def test_the_verdict_is_that_of_the_series_in_any_unit(name, factor):
    values, expected = SERIES[name]
    assert verdict(factor * values) == expected


@pytest.mark.parametrize("rows", [100, 400])
@pytest.mark.parametrize("autocorrelation", [0.0, 0.5, 0.9])
def test_stationary_noise_is_seldom_called_other_than_converged(rows, autocorrelation):
    alarms = 0
    for seed in range(100):
        noise = np.random.default_rng(seed).normal(size=(4, rows + 100))
        series = lfilter([1], [1, -autocorrelation], noise)[:, 100:]
        alarms += game_verdict({str(index): verdict(values) for index, values in enumerate(series)}) != "converges"
    assert alarms < 5


@pytest.mark.parametrize("periods", [1.05, 1.5, 3.0])
def test_a_wave_longer_than_the_log_is_not_called_divergent(periods):
    for phase in np.linspace(0, 2 * np.pi, 12, endpoint=False):
        assert verdict(np.sin(2 * np.pi * np.arange(200) / (periods * 200) + phase)) in ("converges", "drifts")


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        (lambda row, noise: np.sin(row / 8) + 0.3 * noise, "cycles"),
        (lambda row, noise: np.sin(row / 5) * np.exp(row / 100) + 0.2 * noise, "diverges"),
        (lambda row, noise: np.exp(row / 40) + 0.3 * noise, "diverges"),
        (lambda row, noise: np.exp(row / 60) * noise, "diverges"),
        (lambda row, noise: np.exp(-row / 60) * np.sin(row / 5) + 0.02 * noise, "converges"),
        (lambda row, noise: np.exp(-row / 60) + 0.02 * noise, "converges"),
        (lambda row, noise: row / 200 + 0.05 * noise, "drifts"),
    ],
)
def test_behaviour_in_noise_is_seldom_missed(series, expected):
    row = np.arange(200)
    verdicts = [verdict(series(row, np.random.default_rng(seed).normal(size=200))) for seed in range(40)]
    assert verdicts.count(expected) >= 36


def test_the_verdict_on_the_game_is_the_worst_that_two_series_share():
    assert game_verdict({"a": "cycles"}) == "cycles"
    assert game_verdict({"a": "diverges", "b": "converges", "c": "converges"}) == "converges"
    assert game_verdict({"a": "diverges", "b": "cycles", "c": "converges"}) == "cycles"
    assert game_verdict({"a": "converges", "b": "diverges"}, not_finite=["b"]) == "diverges"


def constant_run(loss, **levels):
    """A run whose log has 120 rows with constant scalars."""
    images = np.arange(120.0)
    series = {name.replace("__", "/"): np.full(120, value) for name, value in levels.items()}
    return SimpleNamespace(
        rows=[{}] * 120,
        series=lambda name: (images, series[name]) if name in series else (images[:0], images[:0]),
        trainer=SimpleNamespace(game=SimpleNamespace(loss=loss)),
    )


def test_a_game_that_converged_elsewhere_than_to_its_saddle_point_gets_a_remedy():
    saddle = {"game__value": -1.386, "accuracy__real": 0.5, "accuracy__fake": 0.52}
    discriminator_wins = {"game__value": -0.01, "accuracy__real": 1.0, "accuracy__fake": 0.99}
    assert Behaviour()(constant_run(Minimax(), **saddle)).text.endswith(REMEDIES["converges"])
    result = Behaviour()(constant_run(Minimax(), **discriminator_wins))
    assert result.numbers["verdict"] == "converges" and "D wins (value -0.01" in result.text
    linear = Behaviour()(constant_run(MinimaxLinear(), **discriminator_wins))
    assert linear.text.endswith(REMEDIES["converges"]), "this loss has its saddle point at D = 1"
    assert "not the saddle point" in remedy_for_limit(-4.0, 0.5, 0.1)
    assert remedy_for_limit(None, 0.5, 0.5) == REMEDIES["converges"]


def test_too_few_rows_are_refused():
    with pytest.raises(SettingError, match=r"^least=23: at least 24"):
        Behaviour(least=23)
