"""`gancli theory`: of a run, and in experiments and a report of its own."""

import json
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from test_bad_input import refused

from gancli.commands import theory
from gancli.reporting.html import Picture, Section, Table, page
from gancli.theory import CHAPTERS


class Balanced(HTMLParser):
    """Whether tags close in order."""

    alone = frozenset({"meta", "img", "br"})

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.world_size == 1:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_experiment_of_a_chapter_composes(chapter):
    from gancli import config
    from gancli.commands import train

    experiments = CHAPTERS[chapter](seeds=2).experiments()
    assert len({each.name for each in experiments}) == len(experiments)
    for each in experiments:
        config.check(theory.compose("train", list(each.overrides)), train.SCHEMA)


def test_the_report_of_two_chapters(cli):
    words = ["chapters=[behaviour,memorisation]", "length=0.02", "jobs=1", "seeds=1", "out=it"]
    result = cli("theory", *words)
    assert result.status == 0, result.err
    text = Path("it/report.html").read_text()
    Balanced().feed(text)
    assert text.count("<section") == 2 and text.count("data:image/png;base64,") >= 3
    assert "http" not in re.sub(r'src="data:[^"]*"', "", text), "it needs nothing from elsewhere"
    found = json.loads(Path("it/runs/memorisation-100/evaluations.jsonl").read_text().splitlines()[-1])
    assert f"{found['values']['fid']:.3g}" in text, "figures are the runs' own"
    before = Path("it/runs/memorisation-100/metrics.jsonl").stat().st_mtime_ns
    again = cli("theory", *words)
    assert again.status == 0 and Path("it/runs/memorisation-100/metrics.jsonl").stat().st_mtime_ns == before
    refused(cli("theory", *words, "length=0.03"), "out=it")


def test_a_run_is_looked_at_and_not_changed(cli, train):
    train("checkpoint.every=32")
    before = {path: path.read_bytes() for path in Path("run/checkpoints").iterdir()}
    result = cli("theory", "run=run", "diagnostic.eigenvalues.count=2", "diagnostic.eigenvalues.samples=4")
    assert result.status == 0, result.err
    assert "left out, since they mean nothing here" in result.out + result.err
    names = {path.stem for path in Path("run/theory").glob("*.json")}
    assert names == {"objective", "eigenvalues", "path_angle"}
    numbers = json.loads(Path("run/theory/objective.json").read_text())["numbers"]
    assert numbers["distance_to_saddle_train"] == pytest.approx(abs(numbers["value_train"] + 1.3862943), abs=1e-5)
    assert {path: path.read_bytes() for path in Path("run/checkpoints").iterdir()} == before


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["chapters=[capacty]"], "did you mean capacity"),
        (["chapters=[]"], "chapters=[]"),
        (["seeds=0"], "seeds=0"),
        (["jobs=0"], "jobs=0"),
        (["length=0"], "length=0"),
        (["run=nowhere"], "run=nowhere"),
        (["diagnostic=[eigenvalue]"], "did you mean eigenvalues"),
        (["run=.", "diagnostic.eigenvalues.count=0"], "count=0"),
    ],
)
def test_bad_input_is_refused_in_a_line(cli, trained, words, text):
    refused(cli("theory", *(word.replace("run=.", f"run={trained}") for word in words)), text)


def test_what_stands_on_the_page_is_escaped():
    parts = ["a < b", Table(["<x>"], [["1 & 2"]], "<c>"), Picture(b"\x89PNG", '"quoted"')]
    text = page(
        "a < b", "c & d", [Section(title="<t>", statement="s < t", parts=parts, commands=["gancli train a=<b>"])]
    )
    Balanced().feed(text)
    assert "<x>" not in text and "a &lt; b" in text and "1 &amp; 2" in text and "&quot;quoted&quot;" in text
    assert re.search(r'name="viewport"', text), "readable on a phone"


@pytest.mark.slow
def test_a_killed_report_leaves_no_process_behind(tmp_path):
    """And what was trained is trained no more when it is said again: that is tested above."""
    words = ["theory", "chapters=[memorisation]", "jobs=2", f"out={tmp_path}/it"]
    process = subprocess.Popen([sys.executable, "-m", "gancli", *words], stderr=subprocess.DEVNULL)

    def children():
        listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout
        return [int(pid) for pid in listed.split() if Path(f"/proc/{pid}").exists()]

    try:
        began = time.monotonic()
        while not list(tmp_path.glob("it/runs/*/metrics.jsonl")):
            time.sleep(0.2)
            assert time.monotonic() - began < 120
        workers = children()
        assert len(workers) >= 2
    finally:
        process.kill()
        process.wait()
    began = time.monotonic()
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        time.sleep(0.2)
        assert time.monotonic() - began < 20
