"""Where numbers go: the same names over the same axis in every service, where a run that goes on is the same one."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import train_in

from gancli.errors import UserError
from gancli.reporting import sinks
from gancli.training.run_folder import RunFolder

SHOWN = ("samples/ema", "logits/fake_histogram")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """Nobody has logged in, and there is no network."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb-data"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "wandb-cache"))
    monkeypatch.setattr(sinks, "_reachable", lambda url: False)


def history(folder):
    """The rows that Weights & Biases would be sent: files of LevelDB's log format, of protocol buffers."""
    from wandb.proto import wandb_internal_pb2

    rows, ids = [], set()
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        ids.add(file.stem.removeprefix("run-"))
        data, at, record = file.read_bytes(), 7, b""
        while at + 7 <= len(data):
            if 32768 - at % 32768 < 7:  # no header fits into the rest of the block
                at += 32768 - at % 32768
                continue
            length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
            record += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # whole, or the last part
                message = wandb_internal_pb2.Record()
                message.ParseFromString(record)
                record = b""
                if message.HasField("history"):
                    items = message.history.item
                    rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows, ids


def tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def test_wandb_offline_has_what_tensorboard_has(train):
    pytest.importorskip("wandb", reason="gancli[wandb] is not installed")
    sinks_ = "log.sinks=[tensorboard,jsonl,wandb]"
    run = train(sinks_, "evaluation.every=64", "evaluation.count=32")
    train(sinks_, "evaluation.every=64", "evaluation.count=32", "resume=auto", images=128)
    rows, ids = history(run)
    assert ids == {RunFolder(run).read_tracking()["wandb"]}, "a run that goes on is the same one"
    known = tensorboard(run)
    assert known["metric/fd_random"].keys() == {64, 128}
    for tag in ("loss/generator", "accuracy/holdout", "metric/fd_random"):
        mine = {row["images"]: row[tag] for row in rows if tag in row}
        assert mine == pytest.approx(known[tag]), tag
    shown = {tag: [row["images"] for row in rows if any(key.startswith(f"{tag}/") for key in row)] for tag in SHOWN}
    assert set(shown["samples/ema"]) >= {0, 64, 128} and shown["logits/fake_histogram"]
    assert list(run.glob("wandb/*/files/media/images/**/*.png"))


def test_mlflow_has_what_tensorboard_has(train):
    pytest.importorskip("mlflow", reason="gancli[mlflow] is not installed")
    from mlflow import MlflowClient

    run = train("log.sinks=[tensorboard,jsonl,mlflow]")
    train("log.sinks=[tensorboard,jsonl,mlflow]", "resume=auto", images=128)
    client = MlflowClient(tracking_uri=Path("mlruns").resolve().as_uri())
    experiment = client.get_experiment_by_name("gancli")
    (there,) = client.search_runs([experiment.experiment_id])
    assert there.info.status == "FINISHED" and there.info.run_id == RunFolder(run).read_tracking()["mlflow"]
    assert there.data.params["train.batch_size"] == "16" and there.data.params["loss._target_"].startswith("gancli.")
    for tag in ("loss/generator", "accuracy/holdout"):
        mine = {metric.step: metric.value for metric in client.get_metric_history(there.info.run_id, tag)}
        assert mine == pytest.approx(tensorboard(run)[tag]) and max(mine) == 128
    pictures = [artifact.path for artifact in client.list_artifacts(there.info.run_id, "samples/ema")]
    assert "samples/ema/images-000000000128.png" in pictures


def test_a_missing_package_is_named_before_anything_is_written(cli, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else found(name, *rest)
    )
    result = cli("train", "log.sinks=[jsonl,wandb]", "hydra.run.dir=run")
    assert result.status == 2 and "pip install 'gancli[wandb]'" in result.err and not Path("run").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("log.sinks=[jsonl,tensorbord]", "tensorbord is none of tensorboard, jsonl, wandb, mlflow"),
        ("log.sinks=[tensorboard]", "jsonl is what gancli report and the diagnostics read"),
        ("log.sinks=jsonl", "log.sinks=[jsonl]"),
    ],
)
def test_sinks_that_are_none_are_refused(cli, words, text):
    result = cli("train", words)
    assert result.status == 2 and text in result.err


def test_a_run_from_before_there_were_sinks_goes_on(train):
    run = train()
    config = run / "config.yaml"
    lines = config.read_text().splitlines(keepends=True)
    start = next(number for number, line in enumerate(lines) if line.strip() == "sinks:")
    end = next(number for number in range(start + 1, len(lines)) if not lines[number].lstrip().startswith("- "))
    config.write_text("".join(lines[:start] + lines[end:]))
    assert "sinks" not in config.read_text()
    train_in(run, f"resume={run}", "train.images=128")
    assert RunFolder(run).read_metrics()[-1]["images"] == 128 and list(run.glob("events.*"))


def test_a_run_without_tensorboard_imports_none_of_it(train):
    run = train("log.sinks=[jsonl]")
    assert not list(run.glob("events.*")) and len(RunFolder(run).read_metrics()) == 4


def test_wandb_is_online_only_where_somebody_logged_in_and_it_answers(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(sinks, "_reachable", lambda url: asked.append((url.hostname, url.port)) or True)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not sinks._wandb_answers() and asked == []
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert sinks._wandb_answers() and asked == [("api.wandb.ai", None)]
    monkeypatch.setenv("WANDB_BASE_URL", "http://wandb.lab:8080/team")
    assert sinks._wandb_answers() and asked[-1] == ("wandb.lab", 8080)
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / ".netrc").write_text("machine wandb.lab login user password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert sinks._wandb_answers()


def test_ids_from_elsewhere_are_checked(tmp_path):
    folder = RunFolder(tmp_path)
    folder.tracking.write_text(json.dumps({"wandb": "../../x", "mlflow": "a" * 32, "other": 3}))
    assert folder.read_tracking() == {"mlflow": "a" * 32}


def test_a_service_that_refuses_is_one_clear_error(monkeypatch, tmp_path):
    pytest.importorskip("mlflow", reason="gancli[mlflow] is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "ftp://nowhere")
    with pytest.raises(UserError, match=r"log\.sinks: mlflow at ftp://nowhere"):
        sinks.MLflow(sinks.Start(folder=tmp_path, settings={}, images=0))


def test_values_that_are_not_finite_are_shown_as_far_as_can_be(tmp_path):
    sink = sinks.TensorBoard(sinks.Start(folder=tmp_path, settings={"a": 1}, images=0))
    sink.histogram("h", torch.tensor([1e30, 2.0]), images=16)
    sink.image("i", np.zeros((4, 4, 1), np.uint8), images=16)
    sink.scalars({"loss": float("nan")}, images=16)
    sink.close()
    assert np.isnan(tensorboard(tmp_path)["loss"][16])


@pytest.mark.parametrize(
    ("variables", "name", "text"),
    [
        ({"WANDB_MODE": "nonsense"}, "wandb", "WANDB_MODE=nonsense: one of online"),
        ({"WANDB_MODE": "online"}, "wandb", "nobody has logged in; run: wandb login"),
        (
            {"MLFLOW_TRACKING_URI": "http://me:secret@mlflow.lab"},
            "mlflow",
            "mlflow at http://mlflow.lab does not answer",
        ),
    ],
)
def test_what_would_fail_later_is_refused_before_anything_is_written(cli, monkeypatch, tmp_path, variables, name, text):
    pytest.importorskip(name, reason=f"gancli[{name}] is not installed")
    monkeypatch.setenv("HOME", str(tmp_path))
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    result = cli("train", f"log.sinks=[jsonl,{name}]", "hydra.run.dir=run")
    assert result.status == 2 and text in result.err and "secret" not in result.err and not Path("run").exists()


def test_a_run_goes_on_where_a_service_fails(train, monkeypatch):
    pytest.importorskip("mlflow", reason="gancli[mlflow] is not installed")
    calls = []

    def broken(self, *args, **settings):
        calls.append(args)
        raise ConnectionError("the server is gone")

    for method in ("scalars", "image", "close"):
        monkeypatch.setattr(sinks.MLflow, method, broken)
    run = train("log.sinks=[jsonl,mlflow]", images=128)
    assert len(calls) > 3 and len(RunFolder(run).read_metrics()) == 8
