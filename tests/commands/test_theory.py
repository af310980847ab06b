"""`gancli theory`: diagnostics of one run, and the report of its own experiments."""

import json
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from conftest import TINY

from gancli import config
from gancli.commands import evaluate, theory
from gancli.commands.latest_run import is_experiment
from gancli.reporting.html import Formula, Heading, Image, Section, Table, Terms, render_page
from gancli.theory import CHAPTERS
from gancli.theory.base import Chapter, Experiment, format_number, last_evaluation


class TagChecker(HTMLParser):
    """Fails unless tags are closed in order."""

    void_tags = frozenset({"meta", "img", "br"})

    def __init__(self):
        super().__init__()
        self.open_tags = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.void_tags:
            self.open_tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag


def check_page(text):
    checker = TagChecker()
    checker.feed(text)
    assert not checker.open_tags
    assert "http" not in re.sub(r'src="data:[^"]*"', "", text), "the page refers to no other"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_override_of_a_chapter_composes(chapter):
    """Composes experiments until each override has been in one."""
    experiments = CHAPTERS[chapter](seeds=2).experiments()
    assert len({experiment.name for experiment in experiments}) == len(experiments)
    composed = set()
    for experiment in experiments:
        if not composed.issuperset(experiment.overrides):
            composed.update(experiment.overrides)
            config.check(config.compose("train", list(experiment.overrides)), config.RUN_SCHEMA)
    for overrides in {experiment.evaluate for experiment in experiments if experiment.evaluate}:
        config.check(config.compose("evaluate", ["run=here", *overrides]), evaluate.SCHEMA)


class DigitsChapter(Chapter):
    """A chapter of one small run with an evaluation."""

    title, statement = "Digits", "A small run."

    def experiments(self):
        measure = ("metric=[fid]", "metric/features=random", "count=40", "reference_count=100")
        return [Experiment(name="digits", overrides=(*TINY, "train.images=3_200"), evaluate=measure)]

    def parts(self, folder):
        return [Table(["distance"], [[format_number(last_evaluation(folder / "digits").get("fd_random"), 6)]])]


def test_a_report_is_written_from_its_runs_which_are_not_repeated(cli, monkeypatch):
    monkeypatch.setitem(CHAPTERS, "digits", DigitsChapter)
    words = ["chapters=[behaviour,digits]", "length=0.02", "jobs=1", "seeds=1", "out=it"]
    result = cli("theory", *words)
    assert result.status == 0, result.err
    text = Path("it/report.html").read_text()
    check_page(text)
    assert is_experiment(Path("it/runs/digits"), Path()), "not taken for a run of the user's own"
    assert text.count("<section") == 2 and "train.images=64" in text
    run = Path("it/runs/digits")
    (evaluation,) = map(json.loads, (run / "evaluations.jsonl").read_text().splitlines())
    assert f"{evaluation['values']['fd_random']:.6g}" in text
    before = (run / "metrics.jsonl").stat().st_mtime_ns
    (experiment,) = DigitsChapter().experiments()
    assert theory.run_experiment(experiment, run, length=0.02) == "already there"
    assert (run / "metrics.jsonl").stat().st_mtime_ns == before
    with pytest.raises(theory.UserError, match="out=it: digits there has other settings"):
        theory.run_experiment(experiment, run, length=0.03)


def test_diagnostics_of_a_run_leave_its_checkpoints_unchanged(cli, train):
    train("checkpoint.every=32")
    before = {path: path.read_bytes() for path in Path("run/checkpoints").iterdir()}
    result = cli("theory", "run=run", "diagnostic.eigenvalues.count=2", "diagnostic.eigenvalues.samples=4")
    assert result.status == 0, result.err
    assert "skipped, as not defined for this run: behaviour, inverse_transform" in result.err
    names = {path.stem for path in Path("run/theory").glob("*.json")}
    assert names == {"objective", "eigenvalues", "path_angle"}
    numbers = json.loads(Path("run/theory/objective.json").read_text())["numbers"]
    assert numbers["distance_to_saddle_train"] == pytest.approx(abs(numbers["value_train"] + 1.3862943), abs=1e-5)
    assert {path: path.read_bytes() for path in Path("run/checkpoints").iterdir()} == before


def test_weights_that_are_not_finite_are_one_clear_error(cli, train):
    folder = train()
    (file,) = (folder / "checkpoints").glob("images-*.pt")
    state = torch.load(file, weights_only=True)
    next(iter(state["generator"].values())).fill_(float("nan"))
    torch.save(state, file)
    result = cli("theory", "run=run")
    assert result.status == 2 and "Traceback" not in result.err
    assert f"{file.name} is skipped: " in result.err and "is not finite" in result.err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["chapters=[capacty]"], "did you mean capacity"),
        (["chapters=[]"], "chapters=[]"),
        (["seeds=0"], "seeds=0: at least 1"),
        (["jobs=0"], "jobs=0: at least 1"),
        (["length=0"], "length=0"),
        (["run=nowhere"], "run=nowhere"),
        (["diagnostic=[eigenvalue]"], "did you mean eigenvalues"),
        (["run={trained}", "diagnostic.eigenvalues.count=0"], "diagnostic.eigenvalues.count=0: at least 1"),
    ],
)
def test_bad_settings_are_refused_without_a_traceback(cli, trained, words, text):
    result = cli("theory", *(word.format(trained=trained) for word in words))
    assert result.status == 2 and text in result.err and "Traceback" not in result.err


def test_texts_on_the_page_are_escaped():
    parts = [
        Heading("<h>"),
        Formula("0 < D < 1"),
        Terms({"<dt>": "<dd>"}),
        "a < b",
        Table(["<x>"], [["1 & 2"]], "<c>"),
        Image(b"\x89PNG", '"quoted"'),
    ]
    section = Section(title="<t>", statement="s < t", parts=parts, commands=["gancli train a=<b>"])
    text = render_page("a < b", "c & d", [section])
    check_page(text)
    assert not any(word in text for word in ("<x>", "<h>", "D < 1", "<dt><dt>", "<dd><dd>"))
    assert "a &lt; b" in text and "1 &amp; 2" in text and "&quot;quoted&quot;" in text
    assert re.search(r'name="viewport"', text), "readable on a phone"


@pytest.mark.slow
def test_a_killed_report_leaves_no_process_behind(tmp_path):
    words = ["theory", "chapters=[behaviour]", "length=100", "jobs=1", f"out={tmp_path}/it"]
    process = subprocess.Popen([sys.executable, "-m", "gancli", *words], stderr=subprocess.DEVNULL)
    try:
        began = time.monotonic()
        while not list(tmp_path.glob("it/runs/*/metrics.jsonl")):
            time.sleep(0.2)
            assert time.monotonic() - began < 120
        listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
        children = [Path("/proc", pid) for pid in listed.stdout.split()]
        assert len(children) >= 2, "a worker, and the resource tracker of multiprocessing"
    finally:
        process.kill()
        process.wait()
    began = time.monotonic()
    while any(child.exists() for child in children):
        time.sleep(0.2)
        assert time.monotonic() - began < 20
