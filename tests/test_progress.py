"""A bar in a terminal, rate-limited lines elsewhere, nothing in other processes."""

import logging

import pytest

from gancli import progress as module
from gancli.progress import progress


class Clock:
    """A clock that each item advances by two seconds."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def slow(monkeypatch):
    """`slow(n)` yields n lists of five, two seconds each, as `progress` passes them on."""
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)

    def call(count):
        for item in progress([[0] * 5] * count, title="neighbours", total=5 * count, size=len):
            clock.now += 2
            yield item

    return call


def test_lines_are_few_where_there_is_no_terminal(slow, caplog, capsys):
    caplog.set_level(logging.INFO)
    assert list(slow(10)) == [[0] * 5] * 10
    assert [record.message for record in caplog.records] == [
        "neighbours: 10 of 50, 16 s left",
        "neighbours: 35 of 50, 6 s left",
    ]
    assert capsys.readouterr().err == "", "no bar"


def test_fast_work_is_silent(caplog):
    caplog.set_level(logging.INFO)
    assert list(progress(range(3), title="x", total=3)) == [0, 1, 2]
    assert not caplog.records


def test_a_terminal_shows_a_bar_of_the_main_process_only(slow, caplog, capsys, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    list(slow(10))
    shown = capsys.readouterr().err
    assert "neighbours" in shown and "/50" in shown and not caplog.records
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    list(slow(10))
    assert capsys.readouterr().err == "" and not caplog.records
