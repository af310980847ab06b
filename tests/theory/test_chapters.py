"""Every chapter's parts on hand-made run folders: complete, missing, diverged; and what is computed from them."""

import json
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from gancli.commands import theory
from gancli.reporting.html import Picture, Table, page
from gancli.reporting.image_grids import png
from gancli.theory import CHAPTERS
from gancli.theory.capacity import Capacity
from gancli.theory.mode_collapse import METHODS, SCHEMA, ModeCollapse, helped, outcome

PNG = png(np.zeros((2, 2, 3), dtype=np.uint8))
VALUES = {
    "fid": 12.25,
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
SHOWN = {  # of those figures, what must stand in each chapter
    "inverse_transform": ["F^-1, monotone", "0.0125", "0.00375"],
    "objective": ["0.0375", "-1.38", "-1.25", "-0.0625"],
    "capacity": ["12.2", "0.625", "0.25"],
    "memorisation": ["12.2", "0.625", "0.25"],
    "behaviour": ["cycles"],
    "mode_collapse": ["2 modes lost", "0.875", "7"],
}


def written(run, *, ended="finished", values=VALUES):
    """A run's folder, as its training and `gancli theory` leave it."""
    (run / "theory").mkdir(parents=True)
    (run / "samples").mkdir()
    (run / "done.json").write_text(json.dumps({"images": 64, "overrides": [], "ended": ended}))
    for name, numbers in NUMBERS.items():
        (run / "theory" / f"{name}.json").write_text(json.dumps({"numbers": numbers}))
        (run / "theory" / f"{name}.png").write_bytes(PNG)
    for name in ("samples.png", "samples/neighbours-1.png"):
        (run / name).write_bytes(PNG)
    (run / "evaluations.jsonl").write_text(json.dumps({"values": values}) + "\n")
    row = {"images": 64, "accuracy/holdout": 0.5, "accuracy/gap": 0.25}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")


def text_of(chapter, folder):
    """The chapter as it stands on the page, without the pictures' bytes."""
    whole = page("t", "i", [chapter.section(folder)])
    return unescape(re.sub(r'src="data:[^"]*"', "", whole))


@pytest.mark.parametrize("name", SHOWN)
def test_a_complete_chapter_shows_the_figures_of_its_runs(tmp_path, name):
    chapter = CHAPTERS[name](seeds=2)
    for each in chapter.experiments():
        written(tmp_path / each.name)
    text = text_of(chapter, tmp_path)
    assert not [figure for figure in SHOWN[name] if figure not in text]
    assert "http" not in text, "it needs nothing from elsewhere"
    assert any(isinstance(part, Picture) for part in chapter.parts(tmp_path))


@pytest.mark.parametrize("name", CHAPTERS)
@pytest.mark.parametrize("left", ["nothing", "a folder", "an empty log"])
def test_runs_that_left_little_are_dashes(tmp_path, name, left):
    chapter = CHAPTERS[name](seeds=2)
    for each in chapter.experiments() if left != "nothing" else []:
        (tmp_path / each.name).mkdir()
        (tmp_path / each.name / "done.json").write_text(json.dumps({"images": 64, "ended": "ended: not finite"}))
        if left == "an empty log":
            for file in ("metrics.jsonl", "evaluations.jsonl"):
                (tmp_path / each.name / file).touch()
    tables = [part for part in chapter.parts(tmp_path) if isinstance(part, Table)]
    assert tables and "–" in text_of(chapter, tmp_path)
    assert all(len(row) == len(table.head) for table in tables for row in table.rows)


def ring(folder, method, *, seeds=2, **how):
    for each in ModeCollapse(seeds=seeds).experiments():
        if each.overrides[2:] == METHODS[method]:
            written(folder / each.name, **how)


def test_a_diverged_run_is_named_and_not_averaged(tmp_path):
    ring(tmp_path, SCHEMA, values=VALUES | {"modes_held": 2.0, "diversity": 0.125})
    ring(tmp_path, "R1", values=VALUES | {"modes_held": 8.0}, ended="ended: the loss is not finite")
    rows = {row[0]: row for row in ModeCollapse(seeds=2).parts(tmp_path)[0].rows}
    assert rows[SCHEMA][1:4] == ["2 collapsed", "8 ± 0", "2 ± 0"]
    assert rows["R1"][1:3] == ["2 diverged", "–"]


def test_what_became_of_a_run():
    assert outcome({}) == "no result"
    assert outcome(VALUES) == "modes lost" and outcome(VALUES | {"modes_held": 8.0}) == "all modes"
    assert outcome(VALUES | {"modes_held": 4.0}) == "collapsed"
    assert outcome(VALUES | {"high_quality": 0.1}) == "not sharp"
    assert outcome(VALUES | {"diversity": 400.0}) == outcome(VALUES | {"diversity": float("nan")}) == "ran away"


def test_what_helped_is_read_from_the_table():
    def seeds(*held):
        return [VALUES | {"modes_held": float(some)} for some in held]

    text = helped({SCHEMA: seeds(2, 4), "a": seeds(8, 8), "b": seeds(3, 5), "c": [{}, {}]})
    assert "with: a." in text and "Not so with: b." in text and "2 collapsed" in text
    assert "with: none." in helped({SCHEMA: seeds(8), "a": seeds(8)})
    assert "Nothing can be said" in helped({SCHEMA: [{}], "a": seeds(8)})


def test_capacity_says_whose_size_matters(tmp_path):
    chapter = Capacity()
    fids = {(16, 16): 40.0, (256, 16): 10.0, (16, 256): 30.0, (256, 256): 8.0}
    for each, pair in zip(chapter.experiments(), chapter.pairs, strict=True):
        written(tmp_path / each.name, values=VALUES | {"fid": fids.get(pair, 99.0)})
    (text,) = [part for part in chapter.parts(tmp_path) if isinstance(part, str)]
    assert "from 40 to 10 with a larger G alone, to 30 with a larger D alone and to 8 with both" in text
    assert "size of G matters more" in text


def performed(chapter, folder, leave_out=()):
    """Trains what the chapter needs, at full length, but for names that start with one of `leave_out`."""
    for each in chapter.experiments():
        if not each.name.startswith(tuple(leave_out)):
            assert theory._experiment(each, folder / each.name, 1.0) == "finished"


@pytest.mark.slow
def test_the_detector_names_what_each_run_was_made_to_do(tmp_path):
    chapter = CHAPTERS["behaviour"]()
    performed(chapter, tmp_path)
    (table,) = [part for part in chapter.parts(tmp_path) if isinstance(part, Table)]
    assert [row[0] for row in table.rows] == [row[1] for row in table.rows] == ["converges", "cycles", "diverges"]


@pytest.mark.slow
def test_the_dirac_gan_does_as_the_theory_says(tmp_path):
    """Every method, but for the minutes of instance noise's large batches."""
    chapter = CHAPTERS["saddle_point"]()
    performed(chapter, tmp_path, leave_out=("dirac-instance_noise", "networks-", "equilibrium-"))
    rows = {row[0]: row for row in chapter.parts(tmp_path)[0].rows}
    del rows["instance noise"]
    assert {name: row[-1] for name, row in rows.items()} == dict.fromkeys(rows, "yes")


@pytest.mark.slow
def test_the_inverse_transform_is_learned_as_well_as_promised(tmp_path):
    chapter = CHAPTERS["inverse_transform"]()
    performed(chapter, tmp_path, leave_out=("inverse_transform-normal", "inverse_transform-gaussian"))
    numbers = json.loads((tmp_path / "inverse_transform-exponential/theory/inverse_transform.json").read_text())
    assert numbers["numbers"]["mean_error"] <= 0.03
    assert numbers["numbers"]["ks"] <= 0.015, "0.008, and room for another machine's rounding"


@pytest.mark.slow
def test_the_ring_collapses_and_a_penalty_mends_it(cli):
    """The chapter's own settings, at the first seed."""
    held = {}
    for name in (SCHEMA, "R1"):
        words = ["experiment=mode_collapse", "device=cpu", "device.threads=1", *METHODS[name]]
        folder = Path(name.replace(" ", "_"))
        assert cli("train", *words, f"hydra.run.dir={folder}").status == 0
        held[name] = json.loads((folder / "evaluations.jsonl").read_text().splitlines()[-1])["values"]
    assert held[SCHEMA]["modes_held"] <= 4 and held[SCHEMA]["high_quality"] > 0.5
    assert held["R1"]["modes_held"] == 8
