"""What a command prints arrives, whatever the streams are, and does no harm to a terminal."""

import io
import logging
import subprocess
import sys

import pytest
import yaml

from gancli.config import config_dir
from gancli.reporting.streams import LogFormatter, print_lines, terminal_width

PRINT = r"""
import os, sys
from gancli.config import config_dir
from gancli.reporting.streams import prepare_streams, print_lines
prepare_streams()
file = open("file", "w")
for _ in range(2):
    print("a\u2026", file=sys.stderr, flush=True)
    os.write(2, b"")  # as of a library in C
print_lines(["Fr\u00e9chet\u2026"])
"""


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [
        ("utf-8", "Fréchet ↓ 1 ± 2 MMD²\nb\\xe9\n"),
        ("ascii", "Frechet v 1 +- 2 MMD2\nb\\xe9\n"),
        ("latin-1", "Fréchet v 1 ± 2 MMD²\nb\\xe9\n"),
    ],
)
def test_characters_that_the_encoding_lacks_are_replaced(monkeypatch, encoding, printed):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    print_lines(["Fréchet ↓ 1 ± 2 MMD²", "b\udce9"])
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


def test_names_from_elsewhere_do_not_command_the_terminal(capsys):
    name = "\x1b[2J\x9b\u202ecat\r.png"
    print_lines([name, "b"])
    assert capsys.readouterr().out == "\\x1b[2J\\x9b\\u202ecat\\x0d.png\nb\n"
    record = logging.LogRecord("gancli", logging.INFO, "", 0, "one\n%s", (name,), None)
    assert LogFormatter("%(message)s").format(record) == "one\n\\x1b[2J\\x9b\\u202ecat\\x0d.png"


@pytest.mark.parametrize(
    ("shell", "status"),
    [
        ("2>&-", 0),
        (">&- 2>&-", 0),
        ("<&- >&- 2>&-", 0),
        ("2>/dev/full", 0),
        (">/dev/full", 1),
        ("2>&1 | true", 0),
        ("| true", 0),
    ],
)
def test_streams_that_take_nothing_cost_no_work(tmp_path, shell, status):
    command = f'set -o pipefail; "$0" -c "$1" {shell}'
    done = subprocess.run(["bash", "-c", command, sys.executable, PRINT], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == status
    assert ("standard output" in done.stderr) == (status == 1)
    assert "Exception ignored" not in done.stderr
    assert (tmp_path / "file").read_text() == ""  # no stream has taken the number of a file


def test_a_terminal_that_shows_ascii_only_gets_ascii(tmp_path):
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", PRINT], cwd=tmp_path, env=environment, capture_output=True)
    assert (done.stdout, done.stderr) == (b"Frechet...\n", b"a...\na...\n")


def test_the_log_file_takes_every_name(tmp_path):
    configuration = yaml.safe_load((config_dir() / "hydra" / "job_logging" / "gancli.yaml").read_text())
    settings = configuration["handlers"]["file"]
    handler = logging.FileHandler(tmp_path / "log", encoding=settings["encoding"], errors=settings["errors"])
    handler.emit(logging.LogRecord("gancli", logging.INFO, "", 0, "кот caf\udce9", None, None))
    handler.close()
    assert (tmp_path / "log").read_text(encoding="utf-8") == "кот caf\\udce9\n"
    assert {each["class"] for each in configuration["formatters"].values()} == {"gancli.reporting.streams.LogFormatter"}
