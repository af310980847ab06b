"""Results reach standard output whatever its encoding."""

import io
import sys

import pytest

from gancli.reporting.stdout import print_lines, terminal_width


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [
        ("utf-8", "Fréchet ↓ 1 ± 2 MMD²\nb\n"),
        ("ascii", "Frechet v 1 +- 2 MMD2\nb\n"),
        ("latin-1", "Frechet v 1 +- 2 MMD2\nb\n"),
    ],
)
def test_characters_that_the_encoding_lacks_are_replaced(monkeypatch, encoding, printed):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    print_lines(["Fréchet ↓ 1 ± 2 MMD²", "b"])
    assert raw.getvalue().decode(encoding) == printed


def test_only_the_main_process_prints(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    print_lines(["a"])
    assert capsys.readouterr().out == ""


def test_only_a_terminal_has_a_width(monkeypatch):
    assert terminal_width() is None
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "77")
    assert terminal_width() == 77
