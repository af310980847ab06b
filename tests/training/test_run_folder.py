"""The files of a run folder: a line that was cut off is skipped everywhere, and another format is refused."""

import json
import os
import subprocess

import pytest

from gancli import __version__
from gancli.errors import UserError
from gancli.training.run_folder import FORMAT, RunFolder


@pytest.fixture
def folder(tmp_path):
    """Rows after 16 and 32 images, and one that the end of the process cut off."""
    folder = RunFolder(tmp_path)
    for images in (16, 32):
        folder.append_metrics({"images": images, "seconds": 1.0, "loss": 2.0})
        folder.append_evaluation({"images": images, "seconds": 1.0, "by": "train", "values": {"fd_random": 3.0}})
    folder.append_evaluation({"images": 32, "seconds": 1.0, "by": "evaluate", "values": {"fd_random": 4.0}})
    for file in (folder.metrics, folder.evaluations):
        with open(file, "ab") as lines:
            lines.write(b'{"images": 48, "los')
    return folder


def test_a_line_that_was_cut_off_is_skipped(folder):
    assert [row["images"] for row in folder.read_metrics()] == [16, 32]
    assert [row["images"] for row in folder.read_evaluations()] == [16, 32, 32]
    assert [row["values"]["fd_random"] for row in folder.read_evaluations(by="evaluate")] == [4.0]


def test_a_row_after_a_line_that_was_cut_off_is_read(folder):
    folder.append_metrics({"images": 64, "seconds": 2.0})
    assert [row["images"] for row in folder.read_metrics()] == [16, 32, 64]


def test_rows_of_training_after_a_checkpoint_are_deleted(folder):
    folder.truncate_after(16)
    assert folder.metrics.read_text() == '{"images": 16, "seconds": 1.0, "loss": 2.0}\n'
    assert [(row["images"], row["by"]) for row in folder.read_evaluations()] == [(16, "train"), (32, "evaluate")]


def test_sample_grids_after_a_checkpoint_are_deleted(tmp_path):
    folder = RunFolder(tmp_path)
    folder.samples.mkdir()
    for file in (*map(folder.sample_grid, (0, 16, 32)), folder.samples / "grid-images-000000000032-ema.png"):
        file.touch()
    folder.truncate_after(16)
    assert list(folder.sample_grids()) == [0, 16] and len(list(folder.samples.iterdir())) == 3


@pytest.mark.parametrize("content", [b"\xff\n", b"[1]\n", b'"x"\n', b"null\n", b'{"images": "many"}\n', b"{}\n"])
def test_lines_that_are_no_rows_are_skipped(tmp_path, content):
    folder = RunFolder(tmp_path)
    folder.metrics.write_bytes(content + b'{"images": 16}\n')
    assert folder.read_metrics() == [{"images": 16}]
    folder.truncate_after(16)
    assert folder.metrics.read_bytes() == b'{"images": 16}\n'


def test_an_evaluation_says_which_version_made_it(folder):
    row = folder.read_evaluations()[0]
    assert row["gancli"] == __version__ and "git_commit" in row


def test_a_folder_without_files_is_empty(tmp_path):
    folder = RunFolder(tmp_path / "absent")
    folder.truncate_after(0)
    assert folder.read_metrics() == folder.read_evaluations() == folder.starts() == []
    assert folder.read_diagnostic("objective") == {} and folder.last_log_line() == "" and not folder.exists()


@pytest.mark.parametrize(("record", "found"), [({}, 1), ({"format": FORMAT + 1}, FORMAT + 1)])
def test_a_folder_of_another_format_is_refused_with_the_version_that_wrote_it(trained, tmp_path, cli, record, found):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text((trained / "config.yaml").read_text())
    (run / "run.json").write_text(json.dumps({**record, "starts": [{"versions": {"gancli": "0.0.7"}}]}))
    with pytest.raises(UserError, match=rf"written by gancli 0\.0\.7 in run folder format {found}"):
        RunFolder(run).settings(trust=[])
    for words in (("train", f"resume={run}"), ("sample", f"run={run}"), ("evaluate", f"run={run}")):
        refused = cli(*words)
        assert refused.status == 2 and "Use gancli 0.0.7 for this run" in refused.err


def test_a_damaged_record_is_a_first_start(tmp_path):
    folder = RunFolder(tmp_path)
    folder.record.write_text('{"starts": [{"beg')
    assert folder.starts() == []
    folder.describe({"seed": 0}, overrides=["seed=0"])
    folder.record_end("finished")
    record = json.loads(folder.record.read_text())
    assert record["format"] == FORMAT and [start["ended"] for start in record["starts"]] == ["finished"]


def test_what_killed_processes_left_is_swept_at_the_next_start(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.checkpoints.mkdir(parents=True)
    dead, alive = subprocess.Popen("true"), os.getppid()
    dead.wait()
    swept = [folder.checkpoints / f".images-1.pt.{dead.pid}-1.tmp", folder.path / f".run.json.{dead.pid}-99.tmp"]
    kept = [folder.path / f".samples.png.{alive}-1.tmp", folder.path / ".mine.tmp", folder.path / "my.1-2.tmp"]
    for file in swept + kept:
        file.touch()
    with folder.locked():
        assert not any(file.exists() for file in swept) and all(file.exists() for file in kept)


def test_a_row_after_one_that_was_cut_short_is_kept(tmp_path):
    folder = RunFolder(tmp_path)
    folder.append_metrics({"images": 16})
    with open(folder.metrics, "a") as file:
        file.write('{"images": 32, "los')
    folder.append_metrics({"images": 48})
    assert [row["images"] for row in folder.read_metrics()] == [16, 48]
    folder.truncate_after(48)
    assert [row["images"] for row in folder.read_metrics()] == [16, 48]
