"""`gancli evaluate`: tables, rows with their protocol, several runs, all checkpoints, folders of images."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from PIL import Image

from gancli.commands.evaluate import table
from gancli.errors import UserError
from gancli.metrics import fidelity
from gancli.metrics.base import Number

FEW = ["count=40", "reference_count=100"]  # in the features of the run, which are random


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of the trained run folder, to write into."""
    return shutil.copytree(trained, tmp_path / "copy")


def rows(folder):
    return [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]


def test_a_row_has_every_metric_and_its_protocol(cli, copied):
    fidelity._warn.cache_clear()
    result = cli("evaluate", f"run={copied}", *FEW)
    assert result.status == 0, result.err
    (row,) = rows(copied)
    names = {"fd_random", "kd_random", "kd_random_std", "precision", "recall", "density", "coverage"}
    assert "left out" not in result.err, "nobody asked for metrics of points"
    assert "fd_random: 40 samples are no more than the 128 features" in result.err
    assert set(row["values"]) == names | {"nearer_to_train", "closer_than_holdout", "duplicates"}
    assert (row["by"], row["checkpoint"], row["images"]) == ("evaluate", "images-000000000064.pt", 64)
    assert (row["samples"], row["seed"], row["weights"]) == (40, 0, "ema")
    assert [row[key] for key in ("reference", "reference_count", "features", "resize")] == [
        *("train", 100, "random", "none")
    ]
    head, *lines = result.out.partition("\n\n")[0].splitlines()
    assert [line.split("  ")[0] for line in lines] == ["40 real, holdout", "copy images-000000000064"]
    shown = sorted(names - {"kd_random_std"} | {"nearer_to_train", "closer_than_holdout", "duplicates"})
    assert sorted(head.replace("↓", "").replace("↑", "").split()) == shown
    legend = result.out.partition("\n\n")[2].splitlines()
    assert sorted(line.split()[0] for line in legend[1:]) == shown and "lower is better" in legend[0]
    assert row["metrics"]["precision_recall"] == {"neighbours": 3, "count": 10_000}
    assert (copied / "samples" / "neighbours-images-000000000064.png").stat().st_size > 0


def test_numbers_are_reproducible_and_depend_on_the_seed(cli, copied):
    for words in ([], [], ["seed=1"]):
        assert cli("evaluate", f"run={copied}", *FEW, "metric=[fid,kid]", *words).status == 0
    first, second, other = (row["values"] for row in rows(copied))
    assert first == second and other["fd_random"] != first["fd_random"]


def test_real_samples_score_better_than_noise(cli, copied):
    lines = cli("evaluate", f"run={copied}", "metric=[fid]", "count=200").out.splitlines()
    real, noise = (float(line.split()[-1]) for line in lines if line.startswith(("180 real", "copy images")))
    assert real < 0.1 * noise and noise == pytest.approx(rows(copied)[0]["values"]["fd_random"], rel=1e-3)


EVALUATED = ["evaluation.every=64", "evaluation.count=40", "evaluation.reference_count=100", "metric=[fid]"]


@pytest.mark.parametrize(
    ("features", "name"),
    [
        (["metric/features=random", "metric.features.width=64"], "fd_random"),
        (["metric/features=classifier", "metric.features.images=256", "metric.features.width=8"], "fd_classifier"),
    ],
)
def test_a_run_is_evaluated_in_the_features_of_its_training(cli, train, features, name):
    folder = train(*EVALUATED, *features)
    assert cli("evaluate", "run=run", *FEW, "metric=[fid]").status == 0
    training, evaluation = rows(folder)
    assert (training["by"], evaluation["by"]) == ("train", "evaluate")
    assert training["features_hash"] == evaluation["features_hash"]
    assert list(evaluation["values"]) == [name] and name in training["values"]


def test_features_on_the_command_line_replace_those_of_the_run(cli, copied):
    words = ["metric/features=classifier", "metric.features.images=256"]
    assert cli("evaluate", f"run={copied}", *FEW, *words, "metric=[fid,kid,inception_score]").status == 0
    (row,) = rows(copied)
    names = ["fd_classifier", "kd_classifier", "kd_classifier_std", "classifier_score", "classifier_score_std"]
    assert list(row["values"]) == names and row["features"] == "classifier"


def test_a_runs_own_extractor_must_be_trusted_unless_another_is_chosen(cli, copied):
    text = (copied / "config.yaml").read_text()
    (copied / "config.yaml").write_text(text.replace("gancli.metrics.features.Auto", "os.system"))
    refused = cli("evaluate", f"run={copied}", *FEW, "metric=[fid]")
    assert refused.status == 2 and "metric.features._target_=os.system" in refused.err
    assert cli("evaluate", f"run={copied}", *FEW, "metric=[fid]", "metric/features=random").status == 0


def test_samples_are_compared_with_the_held_out_part_where_asked(cli, copied):
    assert cli("evaluate", f"run={copied}", *FEW, "metric=[fid]", "reference=holdout").status == 0
    assert cli("evaluate", f"run={copied}", *FEW, "metric=[fid]").status == 0
    holdout, train = rows(copied)
    assert (holdout["reference"], holdout["reference_count"]) == ("holdout", 100)
    assert holdout["reference_hash"] != train["reference_hash"] and holdout["values"] != train["values"]


def test_all_checkpoints_are_evaluated_and_written_to_tensorboard(cli, train):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train("checkpoint.every=16", images=48)
    assert cli("evaluate", "run=run", *FEW, "metric=[fid]", "checkpoint=all").status == 0
    evaluations = rows(folder)
    assert [row["images"] for row in evaluations] == [16, 32, 48]
    events = EventAccumulator(str(folder)).Reload().Scalars("metric/fd_random")
    assert [event.step for event in events] == [16, 32, 48]
    assert [event.value for event in events] == pytest.approx([row["values"]["fd_random"] for row in evaluations])


def test_it_is_an_error_if_no_checkpoint_can_be_read(cli, copied):
    for file in (copied / "checkpoints").glob("*.pt"):
        file.write_bytes(b"damaged")
    result = cli("evaluate", f"run={copied}", "checkpoint=all", *FEW)
    assert result.status == 2 and "checkpoint=all: none in" in result.err


def test_several_runs_are_printed_in_one_table(cli, copied, train):
    train("seed=5")
    result = cli("evaluate", f"run=[{copied},run]", *FEW, "metric=[fid]")
    assert result.status == 0, result.err
    head, *lines = result.out.partition("\n\n")[0].splitlines()
    assert head.split() == ["fd_random", "↓"]
    assert [line[:4] for line in lines] == ["40 r", "copy", "run "], "the row of real samples is printed once"
    assert len(rows(copied)) == 1


def test_points_are_measured_by_metrics_of_their_own(cli, trained_on_points):
    copied = shutil.copytree(trained_on_points, "run")
    result = cli("evaluate", "run=run", "count=50", "reference_count=100")
    assert result.status == 0 and "left out" not in result.err
    assert set(rows(Path(copied))[0]["values"]) == {"reverse_kl", "modes", "modes_held", "high_quality"}


def test_a_conditional_run_is_measured_in_each_class(cli, train):
    folder = train("conditional=true")
    result = cli("evaluate", "run=run", "metric=[fid_per_class]", "count=40")
    assert result.status == 0
    head, _, numbers, *_ = result.out.splitlines()
    assert head.split() == ["fd_random_class_mean", "↓", "fd_random_class_worst", "↓"]
    (row,) = rows(folder)
    assert {f"fd_random_class_{label}" for label in [*range(10), "mean", "worst"]} == set(row["values"])
    classes = [row["values"][f"fd_random_class_{label}"] for label in range(10)]
    assert row["values"]["fd_random_class_worst"] == max(classes)
    assert row["worst_class"] == f"class {classes.index(max(classes))}" and f"({row['worst_class']})" in numbers


def test_a_class_is_called_by_the_name_of_its_folder(cli, tmp_path):
    for seed, name in enumerate(("cats", "dogs")):
        write_images(tmp_path / name, 20, size=8, seed=seed)
    words = ["dataset=folder", "dataset.path=photos", "dataset.resolution=8", "dataset.labels=true", "conditional=true"]
    (tmp_path / "photos").mkdir()
    for name in ("cats", "dogs"):
        (tmp_path / name).rename(tmp_path / "photos" / name)
    assert cli("train", *TINY, *words, "hydra.run.dir=run").status == 0
    result = cli("evaluate", "run=run", "metric=[fid_per_class,line]", "count=10")
    (row,) = rows(Path("run"))
    assert row["worst_class"] in ("cats", "dogs") and f"({row['worst_class']})" in result.out
    assert "left out, since not defined for this data and these features: line" in result.err, "it was asked for"


def test_what_was_measured_is_printed_though_it_cannot_be_kept(cli, copied):
    (copied / "evaluations.jsonl").mkdir()
    result = cli("evaluate", f"run={copied}", *FEW, "metric=[fid]")
    assert result.status == 2 and "evaluations.jsonl" in result.err and "Traceback" not in result.err
    assert "copy images-000000000064" in result.out


def write_images(folder, count, *, size=16, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index}.png")


def test_one_folder_is_compared_with_another(cli, tmp_path):
    write_images(tmp_path / "generated", 12)
    write_images(tmp_path / "real", 15, seed=1)
    result = cli("evaluate", "folders=[generated,real]", "metric=[fid,density_coverage]")
    assert result.status == 0, result.err
    assert "against 15 real samples" in result.err and "features random" in result.err
    everything = cli("evaluate", "folders=[generated,real]")
    assert everything.status == 0 and "left out" not in everything.err
    assert not list(tmp_path.glob("*.jsonl"))
    resized = cli("evaluate", "folders=[generated,real]", "metric=[fid]", "count=5", "resolution=8", "out=row.json")
    assert resized.status == 0 and "5 of 12 generated images" in resized.err
    row = json.loads((tmp_path / "row.json").read_text())
    words = ["folders=[generated,real]", "metric=[fid]", "resolution=8", "out=row.json"]
    refused = cli("evaluate", *words)
    assert refused.status == 2 and "row.json: exists already; overwrite=true" in refused.err
    assert cli("evaluate", *words, "overwrite=true").status == 0
    assert (row["samples"], row["reference_count"], row["resize"]) == (5, 15, "crop to 8x8, Lanczos")
    assert len(row["samples_hash"]) == len(row["reference_hash"]) == 16


def test_folders_that_cannot_be_measured_are_errors(cli, tmp_path):
    write_images(tmp_path / "generated", 1)
    write_images(tmp_path / "real", 15, seed=1)
    for words, text in {
        ("folders=[generated,real]",): "folders=generated: 1 generated image is too few",
        ("folders=[real,generated]",): "folders=generated: 1 real image is too few",
        ("folders=[real,real]", "resolution=0"): "resolution=0",
        ("folders=[real,real]", "run=a"): "folders=['real', 'real']: not together with run=a",
    }.items():
        result = cli("evaluate", "metric=[fid]", *words)
        assert result.status == 2 and f"gancli: error: {text}" in result.err and "reference" not in result.err


def test_a_distance_from_no_more_samples_than_features_warns(cli, tmp_path):
    fidelity._warn.cache_clear()
    write_images(tmp_path / "few", 3)
    result = cli("evaluate", "folders=[few,few]", "metric=[fid,density_coverage]")
    assert result.status == 0 and "\nfd_random: 3 samples are no more than the 128 features" in result.err
    assert result.out.splitlines()[1].split()[-2:] == ["1", "1"], "the same folder has density and coverage 1"


def test_folders_of_different_sizes_need_a_resolution(cli, tmp_path):
    write_images(tmp_path / "generated", 12)
    write_images(tmp_path / "real", 15, size=20)
    result = cli("evaluate", "folders=[generated,real]", "metric=[fid]")
    assert result.status == 2 and "images of 16x16 and 20x20 pixels" in result.err
    assert "resolution=null" not in result.err, "nobody typed that"
    assert cli("evaluate", "folders=[generated,real]", "metric=[fid]", "resolution=16").status == 0


def test_data_tells_where_a_moved_data_set_is(cli, tmp_path):
    for part in ("a", "b"):
        (tmp_path / part).mkdir()
    write_images(tmp_path / "a" / "images", 20, size=8)
    words = ["dataset=folder", "dataset.path=a/images", "dataset.resolution=8", "hydra.run.dir=run"]
    assert cli("train", *TINY, *words).status == 0
    (tmp_path / "a" / "images").rename(tmp_path / "b" / "images")
    refused = cli("evaluate", "run=run", *FEW, "metric=[fid]")
    assert refused.status == 2 and "Traceback" not in refused.err
    assert cli("evaluate", "run=run", *FEW, "metric=[fid]", "data=b/images").status == 0


def test_other_images_than_were_trained_on_leave_memorisation_out(cli, tmp_path):
    write_images(tmp_path / "images", 30, size=8)
    words = ["dataset=folder", "dataset.path=images", "dataset.resolution=8", "hydra.run.dir=run"]
    assert cli("train", *TINY, *words).status == 0
    same = cli("evaluate", "run=run", *FEW, "metric=[fid,memorisation]")
    assert "closer_than_holdout" in same.out and "may have been trained on" not in same.err
    write_images(tmp_path / "images", 31, size=8)
    other = cli("evaluate", "run=run", *FEW, "metric=[fid,memorisation]")
    assert other.status == 0 and "closer_than_holdout" not in other.out
    assert "the data set had 27 samples, and has 28 now" in other.err and "memorisation is left out" in other.err
    refused = cli("evaluate", "run=run", *FEW, "metric=[memorisation]")
    assert refused.status == 2 and "error: metric=[memorisation]: the data set had 27 samples" in refused.err


def test_other_classes_than_were_trained_on_are_refused(cli, tmp_path):
    for name in ("cats", "dogs"):
        write_images(tmp_path / "images" / name, 10, size=8)
    words = ["dataset=folder", "dataset.path=images", "dataset.resolution=8", "dataset.labels=true"]
    assert cli("train", *TINY, *words, "conditional=true", "hydra.run.dir=run").status == 0
    write_images(tmp_path / "images" / "birds", 10, size=8)
    refused = cli("evaluate", "run=run", *FEW, "metric=[fid]")
    assert refused.status == 2 and "the data has the classes birds, cats, dogs, and had cats, dogs when" in refused.err


def test_columns_are_aligned_and_single_classes_left_out():
    numbers = {"fid": Number("lower", ""), "kid": Number("lower", ""), "recall": Number("higher", "")}
    one = {"of": "a", "values": {"fid": 1.5, "fid_class_3": 2, "fd_random_class_12": 2}}
    two = {"of": "longer", "values": {"kid": 0.125, "kid_std": 0.5, "recall": 0.5}}
    assert table([one, two], numbers) == [
        "        fid ↓        kid ↓  recall ↑",
        "a         1.5            -         -",
        "longer      -  0.125 ± 0.5       0.5",
    ]
    assert table([one, two], numbers, width=30) == [
        "        fid ↓        kid ↓",
        "a         1.5            -",
        "longer      -  0.125 ± 0.5",
        "",
        "        recall ↑",
        "a              -",
        "longer       0.5",
    ]


def test_an_error_before_any_number_is_told_as_such(cli, copied, monkeypatch):
    def fail(*_, **__):
        raise UserError("no noise")

    monkeypatch.setattr("gancli.commands.evaluate.noise_rows", fail)
    result = cli("evaluate", f"run={copied}", "metric=[memorisation]", "count=20")
    assert result.status == 2 and "no noise" in result.err and "Traceback" not in result.err


def test_the_table_and_its_legend_fit_into_the_terminal(cli, copied, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    result = cli("evaluate", f"run={copied}", *FEW)
    assert result.status == 0 and max(map(len, result.out.splitlines())) <= 80
    assert result.out.count("copy images-000000000064") > 1, "divided into several tables"


WRONG = {
    "nothing to evaluate": ([], "run=…: name one or more run folders"),
    "both": (["run={run}", "folders=[a,b]"], "not together with run="),
    "a run that is not there": (["run=nowhere"], "run=nowhere: no such folder"),
    "one of several": (["run=[{run},nowhere]"], "run=nowhere: no such folder"),
    "a file for the numbers of a run": (
        ["run={run}", "out=a.json"],
        "out=a.json: not for a run, whose numbers go into",
    ),
    "weights of folders": (["folders=[a,b]", "weights=raw"], "weights=raw: not for folders; leave it out"),
    "one folder": (["folders=[a]"], "folders=['a']: two of them"),
    "a folder that is not there": (["folders=[nowhere,nowhere]"], "folders=nowhere"),
    "unknown metric": (["run={run}", "metric=[fidd]"], "metric=fidd: no such choice; did you mean fid?"),
    "unknown features": (["run={run}", "metric/features=vgg"], "metric/features=vgg: no such choice"),
    "no weights": (["run={run}", "metric/features=inception"], "put weights-inception-2015-12-05-6726825d.pth into"),
    "a metric of points": (["run={run}", "metric=[modes]"], "metric=[modes]: none of them is defined for"),
    "labels needed": (["run={run}", "metric=[fid_per_class]"], "metric=[fid_per_class]: none of them is defined for"),
    "classes needed": (["run={run}", "metric=[inception_score]"], "metric=[inception_score]: none of them is defined"),
    "no run": (["run=[]"], "run=…: name one or more run folders"),
    "no metric": (["run={run}", "metric=[]"], "metric=[]: name at least one"),
    "too few": (["run={run}", "count=1"], "count=1: at least 2"),
    "no sensible subsets": (["run={run}", "metric=[kid]", "metric.kid.subset_size=1"], "subset_size=1: at least 2"),
    "unknown part": (["run={run}", "reference=test"], "reference=test: expected one of train, holdout"),
    "unknown checkpoint": (["run={run}", "checkpoint=7"], "checkpoint=7: no such file in"),
    "no best one": (["run={run}", "checkpoint=best"], "best"),
    "embedded data": (["run={run}", "data=elsewhere"], "data=elsewhere: this run's data set lies in no folder"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_error_and_writes_nothing(cli, trained, name):
    words, text = WRONG[name]
    result = cli("evaluate", *(word.format(run=trained) for word in words))
    assert result.status == 2 and text in result.err, result.err
    assert "Traceback" not in result.err and result.err.count("gancli: error:") == 1
    assert not (trained / "evaluations.jsonl").exists()


def test_folders_have_no_held_out_part(cli, tmp_path):
    write_images(tmp_path / "generated", 12)
    result = cli("evaluate", "folders=[generated,generated]", "reference=holdout")
    assert result.status == 2 and "reference=holdout: folders have no such part" in result.err


@pytest.mark.parametrize("count", [2, 3, 4])
def test_every_metric_takes_few_samples(cli, copied, count):
    result = cli("evaluate", f"run={copied}", f"count={count}", "reference_count=5")
    assert result.status == 0, result.err


def test_a_damaged_checkpoint_is_skipped(cli, train):
    folder = train("checkpoint.every=16", images=48)
    (folder / "checkpoints" / "images-000000000032.pt").write_bytes(b"rubbish")
    result = cli("evaluate", "run=run", *FEW, "metric=[fid]", "checkpoint=all")
    assert result.status == 0 and "is skipped" in result.err
    assert [row["images"] for row in rows(folder)] == [16, 48]


def test_a_cache_that_cannot_be_written_is_a_warning(cli, copied, tmp_path):
    (tmp_path / "file").touch()
    result = cli("evaluate", f"run={copied}", *FEW, "metric=[fid]", f"cache={tmp_path}/file/cache")
    assert result.status == 0 and "cannot be written" in result.err and len(rows(copied)) == 1
