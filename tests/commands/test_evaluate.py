"""`gancli evaluate`: tables, rows with their protocol, several runs, all checkpoints, folders of images."""

import json
import shutil

import numpy as np
import pytest
from conftest import TINY
from PIL import Image

from gancli.commands.evaluate import table

FEW = ["metric/features=random", "count=40", "reference_count=100"]


@pytest.fixture
def copied(trained, tmp_path):
    """A run folder that may be written into."""
    return shutil.copytree(trained, tmp_path / "mine")


def rows(folder):
    return [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]


def test_every_metric_of_a_run(cli, copied):
    result = cli("evaluate", f"run={copied}", *FEW)
    assert result.status == 0, result.err
    (row,) = rows(copied)
    names = {"fid", "kid", "kid_std", "precision", "recall", "density", "coverage"}
    assert set(row["values"]) == names | {"nearer_to_train", "closer_than_holdout", "duplicates"}
    assert (row["by"], row["checkpoint"], row["images"]) == ("evaluate", "images-000000000064.pt", 64)
    assert (row["samples"], row["seed"], row["weights"]) == (40, 0, "ema")
    assert (row["reference"], row["reference_count"], row["features"], row["resize"]) == (
        "train",
        100,
        "random",
        "none",
    )
    lines = [line for line in result.err.splitlines() if "mine images" in line or " real, " in line]
    assert [line.split("  ")[0] for line in lines] == ["40 real, holdout", "mine images-000000000064"]
    assert row["metrics"]["precision_recall"] == {"neighbours": 3, "count": 10_000}
    assert (copied / "samples" / "neighbours-images-000000000064.png").stat().st_size > 0


def test_the_same_twice_and_another_seed(cli, copied):
    for words in ([], [], ["seed=1"]):
        assert cli("evaluate", f"run={copied}", *FEW, "metric=[fid,kid]", *words).status == 0
    first, second, other = (row["values"] for row in rows(copied))
    assert first == second and other["fid"] != first["fid"]


def test_real_samples_score_better_than_noise(cli, copied):
    result = cli("evaluate", f"run={copied}", "metric=[fid]", "metric/features=random", "count=200")
    real, made = (
        float(line.split()[-1]) for line in result.err.splitlines() if line.startswith(("180 real", "mine images"))
    )
    assert real < 0.1 * made and made == pytest.approx(rows(copied)[0]["values"]["fid"], rel=1e-3)


def test_against_the_held_out_part(cli, copied):
    assert cli("evaluate", f"run={copied}", *FEW, "metric=[fid]", "reference=holdout").status == 0
    assert cli("evaluate", f"run={copied}", *FEW, "metric=[fid]").status == 0
    held, train = rows(copied)
    assert (held["reference"], held["reference_count"]) == ("holdout", 100)
    assert held["reference_hash"] != train["reference_hash"] and held["values"] != train["values"]


def test_all_checkpoints_and_tensorboard(cli, train):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train("checkpoint.every=16", images=48)
    assert cli("evaluate", "run=run", *FEW, "metric=[fid]", "checkpoint=all").status == 0
    found = rows(folder)
    assert [row["images"] for row in found] == [16, 32, 48]
    events = EventAccumulator(str(folder)).Reload().Scalars("evaluate/fid")
    assert [event.step for event in events] == [16, 32, 48]
    assert [event.value for event in events] == pytest.approx([row["values"]["fid"] for row in found])


def test_no_checkpoint_can_be_read(cli, copied):
    for file in (copied / "checkpoints").glob("*.pt"):
        file.write_bytes(b"damaged")
    result = cli("evaluate", f"run={copied}", "checkpoint=all", *FEW)
    assert result.status == 2 and "checkpoint=all: none in" in result.err


@pytest.mark.parametrize(
    "words", [["run=[]"], ["run={copied}", "metric=[]"], ["run={copied}", "metric=[inception_score]", *FEW]]
)
def test_nothing_to_measure(cli, copied, words):
    result = cli("evaluate", *(word.format(copied=copied) for word in words))
    assert result.status == 2 and "Traceback" not in result.err and result.err.count("\n") == 1


def test_several_runs_in_one_table(cli, copied, train):
    train("seed=5")
    result = cli("evaluate", f"run=[{copied},run]", *FEW, "metric=[fid]")
    assert result.status == 0, result.err
    header = result.err.splitlines().index(next(line for line in result.err.splitlines() if line.split() == ["fid"]))
    starts = [line[:4] for line in result.err.splitlines()[header + 1 :]]
    assert starts == ["40 r", "mine", "run "], "what real samples score is said once"
    assert len(rows(copied)) == 1


def test_points_by_their_own_metrics(cli):
    words = [word for word in TINY if "channels" not in word]
    assert cli("train", *words, "dataset=gaussian_grid", "network=mlp", "hydra.run.dir=run").status == 0
    result = cli("evaluate", "run=run", "count=50", "reference_count=100")
    assert result.status == 0 and "left out, since they mean nothing here: density_coverage, fid" in result.err


def test_per_class_of_a_run_with_labels(cli, train):
    folder = train("conditional=true")
    assert cli("evaluate", "run=run", "metric=[fid_per_class]", "count=40", "metric/features=random").status == 0
    assert {f"fid_class_{label}" for label in range(10)} | {"fid_class_mean"} == set(rows(folder)[0]["values"])


def pictures(folder, count, *, size=16, seed=0):
    folder.mkdir()
    made = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    for index, image in enumerate(made):
        Image.fromarray(image).save(folder / f"{index}.png")


def test_two_folders_without_a_run(cli, tmp_path):
    pictures(tmp_path / "made", 12)
    pictures(tmp_path / "real", 15, seed=1)
    result = cli("evaluate", "folders=[made,real]", "metric=[fid,density_coverage]")
    assert result.status == 0, result.err
    assert "against 15 real samples" in result.err and "features random" in result.err
    everything = cli("evaluate", "folders=[made,real]")
    assert everything.status == 0 and "left out, since they mean nothing here: line, memorisation" in everything.err
    assert not list(tmp_path.glob("*.jsonl"))
    some = cli("evaluate", "folders=[made,real]", "metric=[fid]", "count=5", "resolution=8", "out=row.json")
    assert some.status == 0 and "5 of 12 generated images" in some.err
    row = json.loads((tmp_path / "row.json").read_text())
    assert (row["samples"], row["reference_count"], row["resize"]) == (5, 15, "crop to 8x8, Lanczos")
    assert len(row["samples_hash"]) == len(row["reference_hash"]) == 16


def test_one_picture_is_no_folder_to_measure(cli, tmp_path):
    pictures(tmp_path / "made", 1)
    pictures(tmp_path / "real", 15, seed=1)
    for folders, words in {"[made,real]": [], "[real,made]": [], "[real,real]": ["resolution=0"]}.items():
        result = cli("evaluate", f"folders={folders}", "metric=[fid]", *words)
        assert result.status == 2 and "Traceback" not in result.err


def test_folders_of_different_sizes(cli, tmp_path):
    pictures(tmp_path / "made", 12)
    pictures(tmp_path / "real", 15, size=20)
    result = cli("evaluate", "folders=[made,real]", "metric=[fid]")
    assert result.status == 2 and "resolution=null: images of (16, 16) and (20, 20) pixels" in result.err
    assert cli("evaluate", "folders=[made,real]", "metric=[fid]", "resolution=16").status == 0


def test_a_data_set_that_moved(cli, tmp_path):
    for part in ("a", "b"):
        (tmp_path / part).mkdir()
    pictures(tmp_path / "a" / "images", 20, size=8)
    words = ["dataset=folder", "dataset.path=a/images", "dataset.resolution=8", "hydra.run.dir=run"]
    assert cli("train", *TINY, *words).status == 0
    (tmp_path / "a" / "images").rename(tmp_path / "b" / "images")
    refused = cli("evaluate", "run=run", *FEW, "metric=[fid]")
    assert refused.status == 2 and "Traceback" not in refused.err
    assert cli("evaluate", "run=run", *FEW, "metric=[fid]", "data=b/images").status == 0


def test_columns_are_aligned_and_missing_numbers_empty():
    lines = table([{"of": "a", "values": {"fid": 1.5, "fid_class_3": 2}}, {"of": "longer", "values": {"kid": 0.125}}])
    assert lines == ["        fid    kid", "a       1.5       ", "longer       0.125"]


WRONG = {
    "nothing to evaluate": ([], "run=…: name one or more run folders"),
    "both": (["run={run}", "folders=[a,b]"], "run=…: name one or more run folders"),
    "a run that is not there": (["run=nowhere"], "run=nowhere: no such folder"),
    "one of several": (["run=[{run},nowhere]"], "run=nowhere: no such folder"),
    "one folder": (["folders=[a]"], "folders=['a']: two of them"),
    "a folder that is not there": (["folders=[nowhere,nowhere]"], "folders=nowhere"),
    "unknown metric": (["run={run}", "metric=[fidd]"], "metric=fidd: no such choice; did you mean fid?"),
    "unknown features": (["run={run}", "metric/features=vgg"], "metric/features=vgg: no such choice"),
    "no weights": (["run={run}", "metric/features=inception"], "put weights-inception-2015-12-05-6726825d.pth into"),
    "a metric of points": (["run={run}", "metric=[modes]"], "metric=[modes]: none of them means anything"),
    "labels needed": (["run={run}", "metric=[fid_per_class]"], "metric=[fid_per_class]: none of them means anything"),
    "too few": (["run={run}", "count=1"], "count=1: at least 2"),
    "no sensible subsets": (["run={run}", "metric=[kid]", "metric.kid.subset_size=1"], "subset_size=1: at least 2"),
    "unknown part": (["run={run}", "reference=test"], "reference=test: expected one of train, holdout"),
    "unknown checkpoint": (["run={run}", "checkpoint=7"], "checkpoint=7: not in"),
    "no best one": (["run={run}", "checkpoint=best"], "best"),
    "embedded data": (["run={run}", "data=elsewhere"], "data=elsewhere: this run's data set lies in no folder"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input(cli, trained, name):
    words, text = WRONG[name]
    result = cli("evaluate", *(word.format(run=trained) for word in words))
    assert result.status == 2 and text in result.err, result.err
    assert "Traceback" not in result.err and result.err.count("gancli: error:") == 1
    assert not (trained / "evaluations.jsonl").exists()


def test_no_held_out_pictures_to_compare_with(cli, tmp_path):
    pictures(tmp_path / "made", 12)
    result = cli("evaluate", "folders=[made,made]", "reference=holdout")
    assert result.status == 2 and "reference=holdout: the data set has 0 such samples" in result.err


@pytest.mark.parametrize("count", [2, 3, 4])
def test_few_samples_have_few_neighbours(cli, copied, count):
    result = cli("evaluate", f"run={copied}", "metric/features=random", f"count={count}", "reference_count=5")
    assert result.status == 0, result.err


def test_a_damaged_checkpoint_is_passed_over(cli, train):
    folder = train("checkpoint.every=16", images=48)
    (folder / "checkpoints" / "images-000000000032.pt").write_bytes(b"rubbish")
    result = cli("evaluate", "run=run", *FEW, "metric=[fid]", "checkpoint=all")
    assert result.status == 0 and "is passed over" in result.err
    assert [row["images"] for row in rows(folder)] == [16, 48]


def test_a_cache_that_cannot_be_written_is_no_end(cli, copied, tmp_path):
    (tmp_path / "file").touch()
    result = cli("evaluate", f"run={copied}", *FEW, "metric=[fid]", f"cache={tmp_path}/file/cache")
    assert result.status == 0 and "cannot be kept" in result.err and len(rows(copied)) == 1
