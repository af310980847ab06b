"""Every chapter from hand-made run folders: complete, missing, diverged; and the chapters' own runs, shortened."""

import json
import re
from dataclasses import replace
from html import unescape

import numpy as np
import pytest

from gancli.commands.theory import run_experiment
from gancli.diagnostics import saddle_point
from gancli.reporting import image_grids
from gancli.reporting.html import Gallery, Table, render_page
from gancli.reporting.image_grids import encode_png
from gancli.theory import CHAPTERS
from gancli.theory.base import diagnostic_numbers, last_evaluation
from gancli.theory.capacity import Capacity
from gancli.theory.mode_collapse import BASELINE, METHODS, ModeCollapse, compare_with_baseline, outcome
from gancli.theory.saddle_point import UPDATES

PNG = encode_png(np.zeros((2, 2, 3), dtype=np.uint8))
VALUES = {
    "fd_classifier": 12.25,
    "nearer_to_train": 0.625,
    "closer_than_holdout": 0.5,
    "modes": 8.0,
    "modes_held": 7.0,
    "high_quality": 0.875,
    "diversity": 1.0,
    "reverse_kl": 0.0125,
}
NUMBERS = {
    "inverse_transform": {"map": "F^-1, monotone", "mean_error": 0.0125, "ks": 0.00375, "ks_exact": 0.0025},
    "optimal_discriminator": {"distance_to_best": 0.0375},
    "objective": {"value_train": -1.375, "value_holdout": -1.25, "linear_holdout": -0.0625, "accuracy_holdout": 0.5},
    "behaviour": {"verdict": "cycles"},
}
EXPECTED = {  # texts that each chapter must show for these values and numbers
    "inverse_transform": ["F^-1, monotone", "0.0125", "0.00375"],
    "objective": ["0.0375", "-1.38", "-1.25", "-0.0625"],
    "capacity": ["12.2", "0.625", "0.25"],
    "memorisation": ["12.2", "0.625", "0.25"],
    "behaviour": ["cycles"],
    "mode_collapse": ["2 modes lost", "0.875", "7"],
}


def write_run(run, *, ended="finished", values=VALUES):
    """Writes the files that `gancli theory` leaves in a run folder and that the chapters read."""
    (run / "theory").mkdir(parents=True)
    (run / "samples").mkdir()
    (run / "done.json").write_text(json.dumps({"images": 64, "overrides": [], "ended": ended}))
    for name, numbers in NUMBERS.items():
        (run / "theory" / f"{name}.json").write_text(json.dumps({"numbers": numbers}))
        for panel in ("", "-1", "-2", "-3"):
            (run / "theory" / f"{name}{panel}.png").write_bytes(PNG)
    for name in ("samples.png", "samples/neighbours-1.png"):
        (run / name).write_bytes(PNG)
    (run / "evaluations.jsonl").write_text(json.dumps({"images": 64, "values": values}) + "\n")
    row = {"images": 64, "accuracy/holdout": 0.5, "accuracy/gap": 0.25}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")


def of_kind(kind, section):
    return [part for part in section.parts if isinstance(part, kind)]


def plots_of_runs(section):
    """How many of the chapter's images are those of its runs."""
    return sum(image.png == PNG for part in of_kind(Gallery, section) for image in part.images)


def text_of(section):
    """The chapter's section of the page, without the images' bytes."""
    page = render_page("t", "i", [section])
    return unescape(re.sub(r'src="data:[^"]*"', "", page))


@pytest.mark.parametrize("name", EXPECTED)
def test_a_chapter_shows_the_numbers_and_images_of_its_runs(tmp_path, name):
    chapter = CHAPTERS[name](seeds=2)
    for experiment in chapter.experiments():
        write_run(tmp_path / experiment.name)
    section = chapter.section(tmp_path)
    text = text_of(section)
    assert not [expected for expected in EXPECTED[name] if expected not in text]
    assert plots_of_runs(section) > 0


@pytest.mark.parametrize("name", CHAPTERS)
@pytest.mark.parametrize("files", ["no folder", "done.json", "done.json and empty logs"])
def test_runs_without_results_are_shown_as_dashes(tmp_path, name, files):
    chapter = CHAPTERS[name](seeds=2)
    for experiment in chapter.experiments() if files != "no folder" else []:
        run = tmp_path / experiment.name
        run.mkdir()
        (run / "done.json").write_text(json.dumps({"images": 64, "ended": "ended: not finite"}))
        if files == "done.json and empty logs":
            for file in ("metrics.jsonl", "evaluations.jsonl"):
                (run / file).touch()
    section = chapter.section(tmp_path)
    tables = of_kind(Table, section)
    assert tables and plots_of_runs(section) == 0 and "–" in text_of(section)
    assert all(len(row) == len(table.head) for table in tables for row in table.rows)


def write_ring_runs(folder, method, **content):
    for experiment in ModeCollapse(seeds=2).experiments():
        if experiment.overrides[2:] == METHODS[method]:
            write_run(folder / experiment.name, **content)


def test_diverged_runs_are_counted_but_not_averaged(tmp_path):
    write_ring_runs(tmp_path, BASELINE, values=VALUES | {"modes_held": 2.0, "diversity": 0.125})
    write_ring_runs(tmp_path, "R1", values=VALUES | {"modes_held": 8.0}, ended="ended: the loss is not finite")
    (table,) = of_kind(Table, ModeCollapse(seeds=2).section(tmp_path))
    rows = {row[0]: row for row in table.rows}
    assert rows[BASELINE][1:4] == ["2 collapsed", "8 ± 0", "2 ± 0"]
    assert rows["R1"][1:3] == ["2 diverged", "–"]


def test_the_outcome_of_a_run_on_the_ring():
    assert outcome({}) == "no result"
    assert outcome(VALUES) == "modes lost" and outcome(VALUES | {"modes_held": 8.0}) == "all modes"
    assert outcome(VALUES | {"modes_held": 4.0}) == "collapsed"
    assert outcome(VALUES | {"high_quality": 0.1}) == "low quality"
    assert outcome(VALUES | {"diversity": 400.0}) == outcome(VALUES | {"diversity": float("nan")}) == "left the data"


def test_a_method_helps_if_it_gains_more_than_both_standard_deviations():
    def seeds(*held):
        return [VALUES | {"modes_held": float(count)} for count in held]

    text = compare_with_baseline({BASELINE: seeds(2, 4), "a": seeds(8, 8), "b": seeds(3, 5), "c": [{}, {}]})
    assert "with: a." in text and "Not so with: b." in text and "2 collapsed" in text
    assert "with: none." in compare_with_baseline({BASELINE: seeds(8), "a": seeds(8)})
    assert "cannot be compared" in compare_with_baseline({BASELINE: [{}], "a": seeds(8)})


def test_the_capacity_chapter_says_whose_size_matters(tmp_path):
    chapter = Capacity()
    distances = {(16, 16): 40.0, (256, 16): 10.0, (16, 256): 30.0, (256, 256): 8.0}
    for experiment, pair in zip(chapter.experiments(), chapter.pairs, strict=True):
        write_run(tmp_path / experiment.name, values=VALUES | {"fd_classifier": distances.get(pair, 99.0)})
    text = text_of(chapter.section(tmp_path))
    assert "from 40 to 10 with a larger G alone, to 30 with a larger D alone and to 8 with both" in text
    assert "size of G matters more" in text


@pytest.fixture
def no_pictures(monkeypatch):
    """Sample grids take longer than the training of these small games."""
    monkeypatch.setattr(image_grids, "picture", lambda *_, **__: np.zeros((2, 2, 3), dtype=np.uint8))


def run_shortened(chapter, folder, lengths, *overrides):
    """Makes those of the chapter's runs that `lengths` names, each shortened by its factor."""
    for experiment in chapter.experiments():
        if experiment.name in lengths:
            experiment = replace(experiment, overrides=(*experiment.overrides, *overrides))
            assert run_experiment(experiment, folder / experiment.name, length=lengths[experiment.name]) == "finished"


@pytest.mark.slow
def test_the_diagnostic_recognises_runs_that_converge_cycle_and_diverge(tmp_path, no_pictures):
    chapter = CHAPTERS["behaviour"]()
    lengths = {"behaviour-converges": 0.5, "behaviour-cycles": 0.3, "behaviour-diverges": 0.25}
    run_shortened(chapter, tmp_path, lengths, "log.every=8", "diagnostic.behaviour.least=60")
    (table,) = of_kind(Table, chapter.section(tmp_path))
    assert [row[0] for row in table.rows] == [row[1] for row in table.rows] == ["converges", "cycles", "diverges"]


@pytest.mark.slow
def test_the_dirac_gan_behaves_as_the_theory_says(tmp_path, monkeypatch, no_pictures):
    """One method for each kind of behaviour; the other methods are tested on the game alone, in test_game.py."""
    monkeypatch.setattr(saddle_point, "_ARROW_SAMPLES", 4)  # without augmentation, all samples are alike
    chapter = CHAPTERS["saddle_point"]()
    methods = {"minimax": 0.2, "non-saturating": 0.5, "R1": 0.2}
    lengths = {f"dirac-{name.lower()}-{update}": length for name, length in methods.items() for update in UPDATES}
    logging = ("log.every=20", "log.pictures=10_000", "diagnostic=[phase_plane]")
    run_shortened(chapter, tmp_path, lengths, *logging)
    rows = {row[0]: row for row in of_kind(Table, chapter.section(tmp_path))[0].rows}
    assert {rows[name][-2] for name in methods} == {"does not", "does not / sublinearly", "converges"}
    assert [rows[name][-1] for name in methods] == ["yes"] * 3


@pytest.mark.slow
def test_the_inverse_transform_is_learned(tmp_path, no_pictures):
    """In a tenth of the chapter's steps, with about twice the errors that the full length ends with."""
    chapter, name = CHAPTERS["inverse_transform"](), "inverse_transform-exponential"
    run_shortened(chapter, tmp_path, {name: 0.1}, "evaluation.every=null", "log.every=200_000")
    numbers = diagnostic_numbers(tmp_path / name, "inverse_transform")
    assert numbers["mean_error"] <= 0.05 and numbers["ks"] <= 0.04
    assert numbers["map"].endswith(", monotone")


@pytest.mark.slow
def test_the_plain_game_collapses_on_the_ring_and_the_game_with_r1_does_not(tmp_path, no_pictures):
    chapter = CHAPTERS["mode_collapse"](seeds=1)
    lengths = {"ring-no_remedy-0": 0.5, "ring-R1-0": 0.15}
    run_shortened(chapter, tmp_path, lengths, "log.every=80_000", "diagnostic=none")
    plain, r1 = (last_evaluation(tmp_path / name) for name in lengths)
    assert outcome(plain) == "collapsed"
    assert r1["modes_held"] == 8
