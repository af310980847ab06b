"""`gancli report`: runs side by side, failures named; and what a sweep compares."""

import json

import pytest
import yaml
from conftest import TINY

from gancli.commands.report import _brief

EVALUATED = ["evaluation.every=32", "evaluation.count=40", "evaluation.reference_count=100", "diagnostic=none"]


@pytest.fixture
def sweep(cli, tmp_path):
    """Two runs of different losses, and one that fails."""
    words = ["hydra.sweep.dir=sweep", *TINY, *EVALUATED]
    assert cli("train", "-m", *words, "loss=hinge,nonsaturating").status == 0
    assert cli("train", "-m", *words, "hydra.sweep.subdir=bad", "train.batch_size=100_000").status == 2
    return tmp_path / "sweep"


def test_a_sweep(cli, sweep):
    result = cli("report", f"run={sweep}")
    assert result.status == 0, result.err
    head, first, second, bad, *_ = result.err.splitlines()
    assert head.split()[:3] == ["run", "loss", "images"]
    assert "seed" not in head, "settings that agree are left out"
    assert (first.split()[:2], second.split()[:2]) == (["0", "Hinge"], ["1", "NonSaturating"])
    assert first.split()[-1] == second.split()[-1] == "finished"
    assert bad.startswith("bad") and "never began: this job failed: train.batch_size=100000: larger" in bad
    page = (sweep / "report.html").read_text()
    assert "http" not in page.replace("http-equiv", "") and page.count("data:image/png;base64,") == 3  # curves, samples
    assert page.count('class="gallery"') == 1 and page.index('class="gallery"') < page.rindex("<img")
    values = [json.loads(line) for line in (sweep / "0" / "evaluations.jsonl").read_text().splitlines()]
    assert f"{values[-1]['values']['fid']:.4g}" in page
    assert f"{min(row['values']['fid'] for row in values):.4g}" in page


def test_sorted_and_elsewhere(cli, sweep, tmp_path):
    result = cli("report", f"run=[{sweep}/0,{sweep}/1]", "sort=fid", "out=both.html")
    assert result.status == 0, result.err
    fids = [
        json.loads((sweep / name / "evaluations.jsonl").read_text().splitlines()[-1])["values"]["fid"] for name in "01"
    ]
    rows = [line.split()[0] for line in result.err.splitlines()[1:3]]
    assert rows == sorted("01", key=lambda name: fids[int(name)])
    assert (tmp_path / "both.html").exists()


@pytest.mark.parametrize(
    "words, text",
    [
        (["run=nowhere"], "run=nowhere: no such folder"),
        (["run=."], "no run folders here"),
        ([], "run"),
    ],
)
def test_bad_input(cli, words, text):
    result = cli("report", *words)
    assert result.status == 2 and text in result.err and "Traceback" not in result.err


def test_the_best_first_and_the_last_without_numbers(tmp_path, cli):
    made = {"a": [3.0, 5.0], "b": [8.0, 7.0], "c": [], "d": [float("nan")]}
    for name, modes in made.items():
        write(tmp_path / name, [{"reverse_kl": 0.1 * value, "modes": value} for value in modes])
    result = cli("report", f"run={tmp_path}", "sort=modes")
    assert [line.split()[0] for line in result.err.splitlines()[1:5]] == ["b", "a", "c", "d"]
    assert "best reverse_kl" in result.err and "best modes" not in result.err
    for name in made:
        (tmp_path / name / "config.yaml").write_text("objective: modes")
    result = cli("report", f"run={tmp_path}", "sort=modes")
    head, first = (line.split() for line in result.err.splitlines()[:2])
    assert " ".join(head).endswith("reverse_kl modes best reverse_kl best modes ended") and first[-3:-1] == ["0.7", "8"]


def write(folder, values):
    """A finished run's folder with one evaluation after the other."""
    folder.mkdir()
    (folder / "config.yaml").write_text("objective: null")
    (folder / "run.json").write_text(json.dumps({"starts": [{"ended": "finished"}]}))
    rows = [{"images": 100 * n, "seconds": 60.0 * n, "by": "train", "values": each} for n, each in enumerate(values, 1)]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "metrics.jsonl").write_text(json.dumps({"images": 1234, "seconds": 90.0}) + "\n")


def test_a_line_cut_short_and_a_run_without_evaluations(tmp_path, cli):
    for name in "ab":
        write(tmp_path / name, [{"fid": 5.0}] if name == "a" else [])
    with open(tmp_path / "a" / "evaluations.jsonl", "a") as file:
        file.write('{"images": 300, "sec')
    result = cli("report", f"run={tmp_path}")
    assert result.status == 0 and "a line cannot be read" in result.err
    lines = [line.split() for line in result.err.splitlines() if line.startswith(("a ", "b "))]
    assert lines == [["a", "1,234", "1.5", "5", "5", "finished"], ["b", "1,234", "1.5", "finished"]]


def test_a_folder_of_hydra_alone_is_no_run(tmp_path, cli):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("seed: 0")
    result = cli("report", f"run={tmp_path}")
    assert result.status == 2 and "no run folders here" in result.err


def test_numbers_are_as_long_as_it_takes_to_tell_them_apart():
    assert _brief([0.05910317077425309, 2e-4, "", 3]) == ["0.0591", "0.0002", "", "3"]
    assert _brief([0.123456, 0.123457]) == ["0.123456", "0.123457"]


def test_an_unknown_number_to_sort_by(cli, sweep):
    result = cli("report", f"run={sweep}", "sort=fidd")
    assert result.status == 2 and "sort=fidd: no such number here; did you mean fid?" in result.err


def test_a_damaged_run_is_named_and_the_others_are_shown(cli, sweep):
    (sweep / "0" / "config.yaml").write_text("!!python/object/apply:os.system ['touch here']")
    result = cli("report", f"run={sweep}")
    assert result.status == 0 and "cannot be read in full" in result.err and not (sweep / "here").exists()
    assert any(line.startswith("1 ") and line.endswith("finished") for line in result.err.splitlines())


def test_an_unexpected_failure_is_logged_and_named(cli, tmp_path, monkeypatch):
    from gancli.training.trainer import Trainer

    def broken(self):
        raise RuntimeError("the sky fell\non us")

    monkeypatch.setattr(Trainer, "train_step", broken)
    alone = cli("train", *TINY, "hydra.run.dir=sweep/alone")
    assert alone.status == 1 and "in broken" in alone.err
    with pytest.raises(RuntimeError, match="the sky fell"):
        cli("train", "-m", *TINY, "hydra.sweep.dir=sweep", "seed=1,2")
    for name in ("alone", "0", "1"):
        log = (tmp_path / "sweep" / name / "train.log").read_text()
        assert "this job failed: RuntimeError: the sky fell" in log and "Traceback" in log
    lines = cli("report", "run=sweep").err.splitlines()
    assert [line.split()[0] for line in lines if line.endswith("failed: the sky fell")] == ["0", "1", "alone"]
    for name in ("alone", "0", "1"):
        (tmp_path / "sweep" / name / "run.json").unlink()
    again = cli("report", "run=sweep").err
    assert again.count("this job failed: RuntimeError: the sky fell") == 3, (
        "from the log, not the traceback's last line"
    )


@pytest.mark.parametrize(
    "words, text",
    [
        (["objective=fidd"], "objective=fidd: not among fid, diversity; did you mean fid?"),
        (["hydra/sweeper=tpe", "evaluation.every=null", "seed=choice(0,1)", "-m"], "a search compares evaluations"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of Optuna's plugin of 2022
def test_what_cannot_be_compared_is_refused_before_the_training(cli, tmp_path, words, text):
    many = [word for word in words if word == "-m"]  # Hydra wants it before the settings
    if many:
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    settings = [word for word in words if word != "-m"]
    result = cli("train", *many, *TINY, *EVALUATED, "hydra.run.dir=run", "hydra.sweep.dir=sweep", *settings)
    assert result.status == 2 and text in result.err and "Traceback" not in result.err
    assert not list(tmp_path.glob("**/metrics.jsonl"))


def test_what_a_sweep_compares(train):
    from gancli import train as training
    from gancli.commands.theory import compose
    from gancli.errors import UserError

    folder = train(*EVALUATED, images=64)
    settings = compose("train", [*TINY, *EVALUATED, "train.images=64", "resume=auto"])
    trainer = training.run(settings, folder=folder, overrides=[])
    last = json.loads((folder / "evaluations.jsonl").read_text().splitlines()[-1])["values"]
    trainer.evaluation.latest = last
    assert training.objective(trainer, None) == last["fid"]
    assert training.objective(trainer, "diversity") == last["diversity"]
    with pytest.raises(UserError, match="objective=kid: not among fid"):
        training.objective(trainer, "kid")


@pytest.mark.slow
def test_optuna_finds_what_is_better(cli, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    import warnings

    words = ["hydra.sweep.dir=sweep", *TINY, *EVALUATED, "hydra/sweeper=tpe", "hydra.sweeper.n_trials=3"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a plugin of 2022
        result = cli("train", "-m", *words, "optimizer.generator.lr=tag(log,interval(1e-4,1e-2))")
    assert result.status == 0, result.err
    best = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())
    fids = [
        json.loads((tmp_path / "sweep" / str(n) / "evaluations.jsonl").read_text().splitlines()[-1])["values"]["fid"]
        for n in range(3)
    ]
    assert best["best_value"] == pytest.approx(min(fids))
