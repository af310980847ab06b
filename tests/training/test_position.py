"""What is due where a run stands, by images and by time."""

import pytest

from gancli.training.position import Position


def at(seconds, step_seconds=1.0, *, images=100, progress=0.5):
    return Position(images=images, step_images=10, seconds=seconds, step_seconds=step_seconds, progress=progress)


def due(minutes, *, until, first=10.0):
    return [second for second in range(1, until) if at(float(second)).passed_time(minutes, first=first)]


def test_times_lie_close_together_at_first_and_then_equally_far_apart():
    assert due(5.0, until=1000) == [10, 30, 60, 120, 240, 540, 840]
    assert due(5.0, until=1000, first=60.0) == [60, 120, 240, 540, 840]
    assert due(1.0, until=250) == [10, 30, 60, 120, 180, 240]
    assert due(0.1, until=20, first=60.0) == [6, 12, 18]
    assert due(None, until=1000) == []


def test_a_long_step_passes_several_times_at_once():
    assert at(100.0, 95.0).passed_time(5.0) and not at(100.0, 30.0).passed_time(5.0)
    assert at(60.0, 0.5).passed_time(5.0) and not at(60.5, 0.5).passed_time(5.0), "each time once"


def test_images():
    assert at(0.0, images=100).passed(100) and not at(0.0, images=110).passed(100) and at(0.0, images=105).passed(50)


def test_the_time_left_follows_what_ends_the_run():
    assert at(30.0, progress=0.25).seconds_left == pytest.approx(90.0)
    assert at(0.0, progress=0.0).seconds_left == float("inf") and at(9.0, progress=1.0).seconds_left == 0.0
