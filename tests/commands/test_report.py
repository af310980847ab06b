"""`gancli report`: runs side by side, with failures; and the value that a sweep compares."""

import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from conftest import TINY

from gancli.commands import train as training
from gancli.commands.report import _distinct_cells
from gancli.config import compose
from gancli.errors import UserError
from gancli.reporting.image_grids import write_png
from gancli.training.run_folder import RunFolder
from gancli.training.trainer import Trainer

EVALUATED = ["evaluation.every=32", "evaluation.count=40", "evaluation.reference_count=100", "diagnostic=none"]


def last_values(folder):
    return json.loads((folder / "evaluations.jsonl").read_text().splitlines()[-1])["values"]


def write_run(folder, evaluations, *, settings="objective: null"):
    """Writes a finished run's folder with these values of evaluations, one after the other."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(settings)
    (folder / "run.json").write_text(json.dumps({"starts": [{"ended": "finished"}]}))
    rows = [
        {"images": 100 * n, "seconds": 60.0 * n, "by": "train", "values": values}
        for n, values in enumerate(evaluations, 1)
    ]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "metrics.jsonl").write_text(json.dumps({"images": 1234, "seconds": 90.0}) + "\n")


def test_the_report_of_a_sweep_shows_differing_settings_results_and_failures(cli, tmp_path):
    sweep, words = tmp_path / "sweep", ["hydra.sweep.dir=sweep", *TINY, *EVALUATED]
    assert cli("train", "-m", *words, "loss=hinge,nonsaturating").status == 0
    assert cli("train", "-m", *words, "hydra.sweep.subdir=bad", "train.batch_size=100_000").status == 2
    result = cli("report", f"run={sweep}")
    assert result.status == 0, result.err
    head, first, second, bad, *_ = result.err.splitlines()[1:]
    assert head.split()[:3] == ["run", "loss", "images"]
    assert "seed" not in head, "settings in which all runs agree are left out"
    assert (first.split()[:2], second.split()[:2]) == (["0", "Hinge"], ["1", "NonSaturating"])
    assert first.split()[-1] == second.split()[-1] == "finished"
    assert bad.startswith("bad") and "never began: this job failed: train.batch_size=100000: larger" in bad
    best = min("01", key=lambda name: last_values(sweep / name)["fd_random"])
    assert f"best          {sweep}/{best}, by fd_random: " in result.err
    page = (sweep / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4, "two plots, and the samples of two runs"
    assert page.count('class="gallery"') == 1 and page.index('class="gallery"') < page.rindex("<img")
    for name, loss in (("0", "Hinge"), ("1", "NonSaturating")):
        assert f"<figcaption>{name}{' ★' * (name == best)}: loss={loss}, seed=0, fd_random " in page
    assert "://" not in page and "src=" not in page.replace('src="data:', ""), "it refers to nothing elsewhere"
    assert f'<a href="0/">0{" ★" * (best == "0")}</a>' in page and "<td>CPU</td>" in page
    values = [json.loads(line)["values"] for line in (sweep / "0" / "evaluations.jsonl").read_text().splitlines()]
    assert f"{values[-1]['fd_random']:.4g}" in page
    assert f"{min(row['fd_random'] for row in values):.4g}" in page


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["run=nowhere"], "run=nowhere: no such folder"),
        (["run=."], "no run folders here"),
        ([], "run"),
        (["run=runs", "sort=fidd"], "sort=fidd: no evaluation has this value; did you mean fid?"),
    ],
)
def test_bad_settings_are_refused_without_a_traceback(cli, tmp_path, words, text):
    if "run=runs" in words:
        write_run(tmp_path / "runs" / "a", [{"fid": 5.0}])
    result = cli("report", *words)
    assert result.status == 2 and text in result.err and "Traceback" not in result.err


def test_runs_are_sorted_best_first_and_those_without_the_value_come_last(tmp_path, cli):
    modes = {"a": [3.0, 5.0], "b": [8.0, 7.0], "c": [], "d": [float("nan")]}
    for name, values in modes.items():
        write_run(tmp_path / name, [{"reverse_kl": 0.1 * value, "modes": value} for value in values])
    result = cli("report", f"run={tmp_path}", "sort=modes")
    assert [line.split()[0] for line in result.err.splitlines()[2:6]] == ["b", "a", "c", "d"]
    assert "best reverse_kl" in result.err and "best modes" not in result.err
    for name in modes:
        (tmp_path / name / "config.yaml").write_text("objective: modes")
    result = cli("report", f"run=[{tmp_path}/a,{tmp_path}/b]", "sort=modes", "out=both.html")
    head, first = (line.split() for line in result.err.splitlines()[1:3])
    assert " ".join(head).endswith("reverse_kl modes best reverse_kl best modes ended") and first[-3:-1] == ["0.7", "8"]
    assert (tmp_path / "both.html").exists()


def test_runs_that_differ_in_the_seed_alone_are_one_line(tmp_path, cli):
    for name, (seed, values) in {"a": (1, [8.0, 4.0]), "b": (2, [6.0, 2.0]), "c": (1, [9.0, 7.0])}.items():
        loss = "Hinge" if name == "c" else "Minimax"
        settings = f"loss: {{_target_: gancli.losses.{loss}}}\nseed: {seed}\nobjective: null"
        write_run(tmp_path / name, [{"fid": value} for value in values], settings=settings)
    result = cli("report", f"run={tmp_path}")
    assert result.status == 0 and "by fid: 2\n" in result.err, result.err
    page = (tmp_path / "report.html").read_text()
    assert "The best by fid is b (2), marked with a star." in page and '<td><a href="b/">b ★</a></td>' in page
    rows = ["loss=Minimax 2 3 1 2 4", "loss=Hinge 1 7 0 7 7"]
    assert all("".join(f"<td>{cell}</td>" for cell in row.split()) in page for row in rows)
    assert page.count("<img") == 2 and "Less is better." in page


def test_a_truncated_line_is_skipped_and_a_run_without_evaluations_is_shown(tmp_path, cli):
    write_run(tmp_path / "a", [{"fid": 5.0}])
    write_run(tmp_path / "b", [])
    with open(tmp_path / "a" / "evaluations.jsonl", "a") as file:
        file.write('{"images": 300, "sec')
    result = cli("report", f"run={tmp_path}")
    assert result.status == 0, result.err
    lines = [line.split() for line in result.err.splitlines() if line.startswith(("a ", "b "))]
    assert lines == [["a", "1,234", "1.5", "5", "5", "finished"], ["b", "1,234", "1.5", "finished"]]


def test_hydras_own_folder_is_not_taken_for_a_run(tmp_path, cli):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("seed: 0")
    result = cli("report", f"run={tmp_path}")
    assert result.status == 2 and "no run folders here" in result.err


def test_settings_that_are_not_plain_yaml_are_reported_and_never_executed(cli, tmp_path):
    write_run(tmp_path / "a", [], settings="!!python/object/apply:os.system ['touch here']")
    write_run(tmp_path / "b", [])
    result = cli("report", f"run={tmp_path}")
    assert result.status == 0 and "the settings cannot be read" in result.err and not (tmp_path / "here").exists()
    assert any(line.startswith("b ") and line.endswith("finished") for line in result.err.splitlines())


def test_numbers_have_as_many_digits_as_tell_them_apart():
    assert _distinct_cells([0.05910317077425309, 2e-4, "", 3]) == ["0.0591", "0.0002", "", "3"]
    assert _distinct_cells([0.123456, 0.123457]) == ["0.123456", "0.123457"]


def test_an_unexpected_failure_is_logged_and_reported(cli, tmp_path, monkeypatch):
    def broken(self):
        raise RuntimeError("the sky fell\non us")

    monkeypatch.setattr(Trainer, "train_step", broken)
    alone = cli("train", *TINY, "hydra.run.dir=sweep/alone")
    assert alone.status == 1 and "in broken" in alone.err
    swept = cli("train", "-m", *TINY, "hydra.sweep.dir=sweep", "seed=1,2")
    assert swept.status == 1 and swept.err.count("Traceback") == 2, "each is told once"
    for name in ("alone", "0", "1"):
        log = (tmp_path / "sweep" / name / "train.log").read_text()
        assert "this job failed: RuntimeError: the sky fell" in log and "Traceback" in log
    lines = cli("report", "run=sweep").err.splitlines()
    assert [line.split()[0] for line in lines if line.endswith("failed: the sky fell")] == ["0", "1", "alone"]
    for name in ("alone", "0", "1"):
        (tmp_path / "sweep" / name / "run.json").unlink()
    again = cli("report", "run=sweep").err
    assert again.count("this job failed: RuntimeError: the sky fell") == 3, "from the log, without the traceback"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ["objective=fd_randm"],
            "objective=fd_randm: not among fd_random, diversity; did you mean fd_random?",
        ),
        (["hydra/sweeper=tpe", "evaluation.every=null", "seed=choice(0,1)", "-m"], "a search compares evaluations"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # Optuna's plugin uses deprecated functions
def test_an_objective_that_no_run_can_have_is_refused_before_the_training(cli, tmp_path, words, text):
    multirun = [word for word in words if word == "-m"]  # Hydra wants it before the settings
    if multirun:
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    settings = [word for word in words if word != "-m"]
    result = cli("train", *multirun, *TINY, *EVALUATED, "hydra.run.dir=run", "hydra.sweep.dir=sweep", *settings)
    assert result.status == 2 and text in result.err and "Traceback" not in result.err
    assert not list(tmp_path.glob("**/metrics.jsonl"))


def test_the_objective_of_a_sweep_is_a_value_of_the_last_evaluation(cli, tmp_path):
    settings = compose("train", [*TINY, *EVALUATED])
    trainer = training.run(settings, folder=tmp_path / "run", overrides=[])
    values = last_values(tmp_path / "run")
    with pytest.raises(UserError, match=r"diversity is better where it is higher; type hydra\.sweeper\.direction=max"):
        training.check_objective(trainer, "diversity", search="minimize")
    training.check_objective(trainer, None, search="minimize")  # a distance
    assert training.objective(trainer, None) == values["fd_random"]
    assert training.objective(trainer, "diversity") == values["diversity"]
    with pytest.raises(UserError, match="objective=kid: not among fd_random"):
        training.objective(trainer, "kid")


@pytest.mark.slow
def test_a_search_by_optuna_returns_the_best_value_of_its_runs(cli, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    words = ["hydra.sweep.dir=sweep", *TINY, *EVALUATED, "hydra/sweeper=tpe", "hydra.sweeper.n_trials=2"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the plugin uses deprecated functions
        result = cli("train", "-m", *words, "optimizer.generator.lr=tag(log,interval(1e-4,1e-2))")
    assert result.status == 0, result.err
    best = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())
    assert best["best_value"] == pytest.approx(min(last_values(tmp_path / "sweep" / n)["fd_random"] for n in "01"))


ODD_ROWS = (
    """null
[]
{"images": null, "seconds": 1, "by": "train", "values": {"fid": 1}}
{"images": "7", "seconds": 1, "by": "train", "values": {"fid": 1}}
{"images": NaN, "seconds": 1, "by": "train", "values": {"fid": 1}}
{"images": true, "seconds": [], "by": "train", "values": {"fid": 1}}
{"seconds": 1, "by": "train", "values": {"fid": 1}}
{"images": 7, "seconds": 1, "by": "train", "values": [1]}
{"images": 7, "by": "train", "values": {"fid": 1}}
{"images": 200, "seconds": 2, "by": "train", "values": {"fid": 4, "a": "b", "c": [1], "d": null, "\\u001b[2J": 1}}
"""
    + '{"images": 300, "seconds": 3, "by": "train", "values": {"fid": 1'
    + 400 * "0"
    + "}}\n"
)


def test_odd_rows_cost_no_run_its_place(tmp_path, cli):
    write_run(tmp_path / "good", [{"fid": 5.0}, {"fid": 3.0}])
    write_run(tmp_path / "odd", [])
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        (tmp_path / "odd" / name).write_text(ODD_ROWS)
    (tmp_path / "odd" / "config.yaml").write_text("objective: [1]\nseed: {a: 1}")
    (tmp_path / "odd" / "run.json").write_text('{"starts": [{"ended": ["x"]}]}')
    write_run(tmp_path / "list", [{"fid": 4.0}], settings="[1, 2]")
    result = cli("report", f"run={tmp_path}")
    assert result.status == 0, result.err
    rows = {line.split()[0]: line.split() for line in result.err.splitlines() if line.startswith(("good ", "odd "))}
    assert rows["good"][-1] == "finished" and rows["good"][-3:-1] == ["3", "3"]
    assert rows["odd"][-1] == "['x']" and "300" in rows["odd"] and "\x1b" not in result.err
    assert "list: the settings cannot be read" in result.err


def test_no_run_at_all_is_an_error(cli):
    result = cli("report", "run=[]")
    assert result.status == 2 and "run=[]: name at least one" in result.err and "Traceback" not in result.err


def test_links_do_not_carry_other_files_into_the_page(tmp_path, cli):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "secret.png").write_bytes(b"\x89PNG secret")
    write_run(tmp_path / "mine" / "run", [{"fid": 5.0}])
    for name in ("a", "b"):
        write_run(tmp_path / "theirs" / name, [{"fid": 5.0}])
    (tmp_path / "theirs" / "a" / "samples.png").symlink_to(tmp_path / "mine" / "secret.png")
    (tmp_path / "theirs" / "c").symlink_to(tmp_path / "mine" / "run", target_is_directory=True)
    result = cli("report", f"run={tmp_path}/theirs")
    assert result.status == 0, result.err
    page = (tmp_path / "theirs" / "report.html").read_text()
    assert "samples.png is a link to somewhere else" in page and "<img" not in page
    assert "theirs/c is a link" in result.err and ">c</a>" not in page and ">b</a>" in page


def test_names_are_shown_as_they_are_and_command_nothing(tmp_path, cli):
    names = ["$x^2$", "$\\frac{$", "a\nb", "\x1b[2J", "<b>", "猫"]
    for number, name in enumerate(names):
        settings = yaml.safe_dump({"dataset": {"path": name}, "seed": number})
        write_run(tmp_path / name, [{"$y^$": 5.0}, {"$y^$": 3.0}], settings=settings)
    result = cli("report", f"run={tmp_path}")
    assert result.status == 0, result.err
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img") == 2 and "<td>$\\frac{$" in page and "&lt;b&gt;" in page and "<b>" not in page
    assert "\x1b" not in result.err and "a\\x0ab" in result.err


def test_a_live_run_is_shown_until_it_ends(tmp_path, cli, monkeypatch):
    folder = tmp_path / "runs" / "live"
    write_run(folder, [{"fid": 5.0}])
    (folder / "run.json").write_text(json.dumps({"starts": [{"device": "NVIDIA H200", "processes": 4}]}))
    (folder / "train.log").write_text("[2026-01-01 00:00:00][gancli][INFO] 1,234 images (10%)\n")
    (folder / "samples").mkdir()
    write_png(folder / "samples" / "images-000000000100.png", np.zeros((8, 8, 1), np.uint8))
    pages = []

    def sleep(seconds):
        pages.append((tmp_path / "runs" / "report.html").read_text())
        held.release() if len(pages) == 2 else None

    monkeypatch.setattr("gancli.commands.report.time.sleep", sleep)
    with RunFolder(folder)._lock() as lock:
        held = SimpleNamespace(release=lock.close)
        result = cli("report", "run=runs", "watch=7")
    assert result.status == 0 and len(pages) == 2, result.err
    assert '<meta http-equiv="refresh" content="7">' in pages[0] and "running: 1,234 images (10%)" in pages[0]
    assert pages[0].count("data:image/png") == 1, "the newest grid of a run without a last one"
    row = ["1,234", "1.5", "14", "4 x NVIDIA H200", "0.1"]
    assert "".join(f"<td>{cell}</td>" for cell in row) in pages[0]
    last = (tmp_path / "runs" / "report.html").read_text()
    assert "http-equiv" not in last and "cut off, or running" in last


def test_links_lead_from_the_page_to_the_run(tmp_path, cli):
    write_run(tmp_path / "a b", [{"fid": 5.0}])
    result = cli("report", f"run={tmp_path}/a b", f"out={tmp_path}")
    assert result.status == 2 and "is a folder, and the report is one file" in result.err
    assert cli("report", f"run={tmp_path}/a b", f"out={tmp_path}/pages/r.html").status == 0
    assert '<a href="../a%20b/">' in (tmp_path / "pages" / "r.html").read_text()
    for watch in ("0", "1e12", "0.001"):
        assert cli("report", f"run={tmp_path}", f"watch={watch}").status == 2


def test_runs_are_found_where_gancli_puts_them_and_nothing_else_is(tmp_path, cli):
    for place in ("train/day/hour", "multirun/day/hour/0", "multirun/day/hour/1", "theory/runs/x"):
        write_run(tmp_path / "outputs" / place, [{"fid": 5.0}])
    (tmp_path / "outputs/theory/.theory").touch()
    other = tmp_path / "outputs/train/day/hour/wandb/offline-run-1/files"
    other.mkdir(parents=True)
    (other / "config.yaml").write_text("a: 1")
    result = cli("report", "run=outputs")
    assert result.status == 0, result.err
    found = [line.split()[0] for line in result.err.splitlines() if " finished" in line]
    assert found == ["train/day/hour", "multirun/day/hour/0", "multirun/day/hour/1"]
