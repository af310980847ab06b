"""The detector on series whose behaviour is known."""

import numpy as np
import pytest

from gancli.diagnostics.behaviour import CURES, verdict

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


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
def test_the_unit_does_not_matter(factor):
    for values, expected in SERIES.values():
        assert verdict(factor * values) == expected


def test_each_verdict_has_a_cure():
    assert set(CURES) == {"converges", "cycles", "diverges", "drifts"}
