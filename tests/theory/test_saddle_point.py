"""The chapter on the saddle point, from hand-made run folders: complete, missing, diverged, shortened."""

import json
from pathlib import Path

import pytest

from gancli.commands.theory import run
from gancli.config import compose
from gancli.reporting.html import Gallery, Table
from gancli.theory.base import diverged
from gancli.theory.saddle_point import AT_EQUILIBRIUM, CONVERGES, DOES_NOT, METHODS, SUBLINEARLY, UPDATES, SaddlePoint

DISTANCES = {CONVERGES: (1.41, 0.1, 1e-4), SUBLINEARLY: (1.41, 0.28, 0.2), DOES_NOT: (1.41, 1.37, 1.36)}
PNG = b"\x89PNG"


def write_run(run, *, outcome=None, steps=1000, ended="finished", eigenvalue=None):
    """Writes the files that `gancli theory` leaves in a run folder and that the chapter reads."""
    (run / "theory").mkdir(parents=True)
    (run / "done.json").write_text(json.dumps({"images": 2 * steps, "overrides": [], "ended": ended}))
    if outcome is not None:
        names = [f"distance_{when}" for when in ("first", "middle", "last")]
        found = dict(zip(names, DISTANCES[outcome], strict=True)) | {"steps": steps}
        (run / "theory" / "phase_plane.json").write_text(json.dumps({"numbers": found}))
        (run / "theory" / "phase_plane.png").write_bytes(PNG)
    if eigenvalue is not None:
        found = {"largest_real": eigenvalue.real, "largest_imaginary": abs(eigenvalue.imag)}
        (run / "theory" / "eigenvalues.json").write_text(json.dumps({"numbers": found}))


@pytest.fixture
def complete(tmp_path):
    """The folder of all runs of the chapter, each with the outcome that the theory says."""
    for name, (_, theory) in METHODS.items():
        for update, outcome in zip(UPDATES, theory, strict=True):
            write_run(tmp_path / f"dirac-{slug(name)}-{update}", outcome=outcome)
    write_run(tmp_path / "dirac-extragradient", outcome=CONVERGES)
    for name, (_, exact) in AT_EQUILIBRIUM.items():
        write_run(tmp_path / f"equilibrium-{slug(name)}", eigenvalue=exact)
    return tmp_path


def slug(name):
    return name.lower().replace(" ", "_")


def tables(folder, **settings):
    """The tables of the methods, of the eigenvalues at the equilibrium, and of the networks."""
    return [part for part in SaddlePoint(**settings).parts(folder) if isinstance(part, Table)]


def captions(folder):
    galleries = [part for part in SaddlePoint().parts(folder) if isinstance(part, Gallery)]
    return [image.caption for gallery in galleries for image in gallery.images]


def verdicts(folder, **settings):
    return {row[0]: row[-1] for row in tables(folder, **settings)[0].rows}


def test_every_row_of_a_complete_report_agrees_with_the_theory(complete):
    table, closed, _ = tables(complete)
    assert set(verdicts(complete).values()) == {"yes"}
    rows = {row[0]: row for row in table.rows}
    assert rows["non-saturating"][1:4] == ["1.36", "0.2", "does not / sublinearly"]
    assert rows["extragradient"][1:4] == ["0.0001", "", "converges"]
    assert "after 1,000 steps" in table.caption
    assert sum("How to read a phase plane" in caption for caption in captions(complete)) == 1
    assert all(row[1:3] == row[3:5] for row in closed.rows)
    assert next(row[:3] for row in closed.rows if row[0] == "consensus") == ["consensus", "-0.25", "0.5"]


def test_missing_runs_get_no_verdict(tmp_path):
    table, *others = tables(tmp_path)
    assert all(row[-1] == "–" and set(row[1:3]) <= {"–", ""} for row in table.rows)
    assert "after no steps" in table.caption
    assert all(set(row[1:3]) == {"–"} for table in others for row in table.rows)
    texts = [part for part in SaddlePoint().parts(tmp_path) if isinstance(part, str)]
    assert sum("fewer than two checkpoints" in text for text in texts) == 2


def test_both_runs_of_a_method_are_drawn_in_one_plane(tmp_path):
    assert not any(caption.startswith("R1:") for caption in captions(tmp_path))
    for update in UPDATES:
        run = tmp_path / f"dirac-r1-{update}"
        write_run(run, outcome=CONVERGES)
        rows = [{"images": n, "parameter/theta": 1 / n, "parameter/psi": 0.5 / n} for n in range(1, 20)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert sum(caption.startswith("R1:") for caption in captions(tmp_path)) == 1


def test_the_networks_table_says_where_repelling_directions_come_from(tmp_path):
    write_run(tmp_path / "networks-r1")
    numbers = {"largest_real": 0.717, "own_generator": 0.736, "own_discriminator": 0.508, "gradient_generator": 0.829}
    (tmp_path / "networks-r1" / "theory" / "eigenvalues.json").write_text(json.dumps({"numbers": numbers}))
    *_, networks = tables(tmp_path)
    row = dict(zip(networks.head, networks.rows[1], strict=True))
    assert row["penalty"] == "R1" and row["largest real part"] == "0.717" and row["of G's own block"] == "0.736"
    assert row["gradient of G"] == "0.829" and row["gradient of D"] == "–"


def test_a_diverged_run_counts_as_one_that_does_not_converge(complete):
    for name in ("R1", "WGAN"):
        run = complete / f"dirac-{slug(name)}-simultaneous"
        (run / "theory" / "phase_plane.json").unlink()
        (run / "done.json").write_text(json.dumps({"images": 2000, "ended": "ended: the generator's loss became nan"}))
        assert diverged(run)
    found = verdicts(complete)
    assert found["R1"] == "NO" and found["WGAN"] == "yes" and found["R2"] == "yes"
    assert next(row for row in tables(complete)[0].rows if row[0] == "R1")[1] == "diverged"


def test_a_method_with_one_missing_run_gets_no_verdict(complete):
    (complete / "dirac-r1-alternating" / "theory" / "phase_plane.json").unlink()
    assert verdicts(complete)["R1"] == "–"


@pytest.mark.parametrize(
    ("name", "outcome"), [("R1", SUBLINEARLY), ("R1", DOES_NOT), ("minimax", CONVERGES), ("minimax", SUBLINEARLY)]
)
def test_an_outcome_that_contradicts_the_theory_is_reported(complete, name, outcome):
    run = complete / f"dirac-{slug(name)}-simultaneous"
    found = dict(zip(("distance_first", "distance_middle", "distance_last"), DISTANCES[outcome], strict=True))
    (run / "theory" / "phase_plane.json").write_text(json.dumps({"numbers": found}))
    assert verdicts(complete)[name] == "NO"


def test_a_distance_that_falls_but_stays_above_the_first_one_is_not_convergence(complete):
    found = {"distance_first": 1.41, "distance_middle": 4.0, "distance_last": 3.3, "steps": 1000}
    run = complete / "dirac-dragan-simultaneous"
    (run / "theory" / "phase_plane.json").write_text(json.dumps({"numbers": found}))
    assert verdicts(complete)["DRAGAN"] == "yes"


def test_shortened_runs_get_no_verdict_and_their_commands_have_the_actual_length(tmp_path):
    write_run(tmp_path / "dirac-r1-simultaneous", outcome=DOES_NOT, steps=50)
    write_run(tmp_path / "dirac-instance_noise-simultaneous", outcome=DOES_NOT, steps=50)
    assert verdicts(tmp_path, length=0.05)["R1"] == "–"
    assert "after 50 steps" in tables(tmp_path, length=0.05)[0].caption
    commands = SaddlePoint(length=0.05).section(tmp_path).commands
    r1 = next(line for line in commands if "penalty=[r1] penalty.r1.weight=1.0" in line and "simultaneous" in line)
    assert r1.endswith("train.images=100")
    noise = next(line for line in commands if "instance_noise" in line and "update=simultaneous" in line)
    assert noise.count("train.images=") == 1 and noise.endswith("train.images=100")
    full_length = SaddlePoint().section(tmp_path).commands
    assert not any(line.endswith("train.images=100") for line in full_length)


@pytest.mark.parametrize(("length", "noted", "preview"), [(0.05, True, True), (1.0, False, False), (2.0, True, False)])
def test_the_introduction_says_that_runs_were_shortened_or_lengthened(length, noted, preview, tmp_path, monkeypatch):
    monkeypatch.setattr("gancli.commands.theory._run_experiments", lambda chapters, folder, settings: None)
    settings = compose("theory", [f"out={tmp_path}", f"length={length}", "chapters=[saddle_point]"])
    text = Path(run(settings)).read_text()
    assert (f"(length={length:g})" in text) is noted
    assert ("a preview" in text) is preview
