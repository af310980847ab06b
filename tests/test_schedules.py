from __future__ import annotations

import math

import pytest

from gancli.errors import SettingError
from gancli.schedules import BurnIn, Constant, Cosine, Linear, at


def test_constant_does_not_change() -> None:
    assert [Constant(value=0.3)(progress) for progress in (0.0, 0.5, 1.0)] == [0.3] * 3


def test_linear_changes_at_a_constant_rate_between_begin_and_finish() -> None:
    ramp = Linear(start=2.0, end=6.0, begin=0.25, finish=0.75)
    points = {0.0: 2.0, 0.25: 2.0, 0.375: 3.0, 0.5: 4.0, 0.625: 5.0, 0.75: 6.0, 1.0: 6.0, 1.5: 6.0}
    assert {progress: ramp(progress) for progress in points} == pytest.approx(points)


def test_cosine_is_flat_at_both_ends() -> None:
    ramp = Cosine(start=1.0, end=-1.0)
    for progress in (0.0, 0.1, 0.25, 0.5, 0.9, 1.0):
        assert ramp(progress) == pytest.approx(math.cos(math.pi * progress), abs=1e-12)
    assert ramp(0.01) - ramp(0.0) == pytest.approx(0.0, abs=1e-3)
    assert ramp(0.51) - ramp(0.5) == pytest.approx(-0.01 * math.pi, rel=1e-2)


def test_burn_in_stays_at_its_value_after_until() -> None:
    burn_in = BurnIn(start=10.0, value=1.0, until=0.2)
    assert burn_in(0.0) == 10.0
    assert burn_in(0.1) == pytest.approx(5.5)
    assert burn_in(0.2) == burn_in(0.6) == burn_in(1.0) == 1.0


def test_at_replaces_schedules_inside_lists_and_tuples() -> None:
    ramp = Linear(start=0.0, end=1.0)
    assert at(ramp, 0.25) == 0.25
    assert at([ramp, 0.9], 0.25) == (0.25, 0.9)
    assert at((0.5, (ramp, "x")), 0.75) == (0.5, (0.75, "x"))
    assert at(3, 0.5) == 3
    assert at(None, 0.5) is None
    assert at("text", 0.5) == "text"


@pytest.mark.parametrize("make", [Linear, Cosine])
@pytest.mark.parametrize(("begin", "finish"), [(-0.1, 0.5), (0.5, 0.5), (0.6, 0.4), (0.0, 1.1)])
def test_ramps_outside_the_run_are_refused(make: type, begin: float, finish: float) -> None:
    with pytest.raises(SettingError, match=f"^begin={begin}, finish={finish}: "):
        make(start=0.0, end=1.0, begin=begin, finish=finish)


@pytest.mark.parametrize("until", [0.0, -1.0, 1.5])
def test_burn_in_outside_the_run_is_refused(until: float) -> None:
    with pytest.raises(SettingError, match=f"^until={until}: "):
        BurnIn(start=1.0, value=0.0, until=until)
