"""Evaluation while a run trains: it changes nothing, keeps the best, and survives any end of the process."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from comparing import same
from conftest import POINTS, TINY, train_in
from PIL import Image

from gancli import __version__
from gancli.datasets.base import subset
from gancli.datasets.digits import Digits
from gancli.device import Runtime
from gancli.metrics.suite import MetricSuite
from gancli.training import checkpoint
from gancli.training.evaluation import PeriodicEvaluation
from gancli.training.health import HealthMonitor
from gancli.training.logging import NullLogger, TrainingLogger
from gancli.training.run_folder import RunFolder
from gancli.training.trainer import Trainer

ON = ["evaluation.every=32", "evaluation.count=24", "evaluation.reference_count=64"]
TENSORS = ("generator", "discriminator", "ema", "optimizers", "random", "augment", "step")
PROTOCOL = {
    "metrics",
    "shared_pretraining",
    "of",
    "values",
    "checkpoint",
    "images",
    "seconds",
    "weights",
    "seed",
    "samples",
    "by",
    "reference",
    "reference_count",
    "reference_hash",
    "reference_labels_hash",
    "torch_fidelity",
    "git_commit",
    "features",
    "features_hash",
    "features_accuracy",
    "resize",
    "gancli",
}


def last(folder):
    return checkpoint.Checkpoints(folder / "checkpoints").pick("last")[1]


def best(folder):
    return checkpoint.read(folder / "checkpoints" / "best.pt")


def rows(folder, name="evaluations.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def without_time(rows):
    return [{key: value for key, value in row.items() if "second" not in key} for row in rows]


def differing(a, b, keys=TENSORS):
    return [key for key in keys if not same(a[key], b[key])]


def numbers(monkeypatch, values):
    """The metric takes these values, one after the other."""
    values = iter(values)
    monkeypatch.setattr(MetricSuite, "__call__", lambda self, samples: {"fd_random": next(values)})


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["update=alternating", "conditional=true", "augment=ada", "network.generator.norm=batch"],
        ["metric=[precision_recall,kid]", "metric/features=classifier", "metric.features.images=256"],
    ],
    ids=["default", "conditional", "classifier"],
)
def test_a_run_with_evaluation_ends_in_the_same_tensors(train, overrides):
    off = last(train(*overrides, folder="off", images=160))
    on = last(train(*overrides, *ON, "log.every=48", folder="on", images=160))
    assert len(rows(Path("on"))) == 5 and not Path("off/evaluations.jsonl").exists()
    assert differing(off, on) == []
    assert differing(off, last(train(*overrides, "seed=1", folder="other", images=160))) != []


def test_a_run_in_pieces_with_evaluation_ends_in_the_same_tensors(train):
    off = last(train(folder="off", images=160))
    for images in (48, 112, 160):
        on = last(train(*ON, "resume=auto", folder="on", images=images))
    assert differing(off, on) == []
    assert [row["images"] for row in rows(Path("on"))] == [32, 48, 64, 96, 112, 128, 160]


def interrupted(monkeypatch, at, how):
    original = Trainer.train_step

    def step(self):
        if self.step == at:
            how()
        return original(self)

    monkeypatch.setattr(Trainer, "train_step", step)
    return lambda: monkeypatch.setattr(Trainer, "train_step", original)


def no_power():
    raise OSError("no power")


@pytest.mark.parametrize(
    ("how", "status"),
    [(lambda: os.kill(os.getpid(), signal.SIGTERM), 143), (no_power, 2)],
    ids=["a signal", "a sudden end"],
)
def test_an_interrupted_run_logs_and_ends_like_one_that_was_not(train, cli, monkeypatch, how, status):
    words = [*ON, "log.every=48", "checkpoint.every=64", "train.images=192"]
    whole = train(*words, folder="whole")
    mend = interrupted(monkeypatch, 7, how)  # after 112 images: past an evaluation and a row that no checkpoint knows
    assert cli("train", *TINY, *words, "hydra.run.dir=run").status == status
    mend()
    folder = train(*words, "resume=auto")
    states = last(whole), last(folder)
    for state in states:
        assert state["evaluation"].pop("seconds") > 0
    assert differing(*states, (*TENSORS, "logging", "evaluation")) == []
    assert without_time(rows(whole)) == without_time(rows(folder))
    assert [row["images"] for row in rows(folder)] == [32, 64, 96, 128, 160, 192]
    scalars = [
        [{k: v for k, v in row.items() if "speed" not in k} for row in rows(f, "metrics.jsonl")]
        for f in (whole, folder)
    ]
    assert without_time(scalars[0]) == without_time(scalars[1])
    assert same(best(whole)["ema"], best(folder)["ema"]) and best(whole)["images"] == best(folder)["images"]


def test_a_run_that_starts_anew_forgets_what_it_evaluated(train, cli, monkeypatch):
    words = [*ON, "checkpoint.every=1000"]
    mend = interrupted(monkeypatch, 3, no_power)
    assert cli("train", *TINY, *words, "hydra.run.dir=run").status == 2
    mend()
    folder = train(*words, "resume=auto")
    assert [row["images"] for row in rows(folder, "metrics.jsonl")] == [16, 32, 48, 64]
    assert [row["images"] for row in rows(folder)] == [32, 64]


def test_the_best_checkpoint_has_the_lowest_metric(train, monkeypatch):
    numbers(monkeypatch, [5.0, 3.0, 4.0, 2.5, 2.5, 7.0])
    folder = train(*ON, "checkpoint.every=32", "checkpoint.keep=9", images=192)
    assert [row["values"]["fd_random"] for row in rows(folder)] == [5.0, 3.0, 4.0, 2.5, 2.5, 7.0]
    state = best(folder)
    assert state["images"] == 128 and state["evaluation"]["best"] == 2.5, "the first of equals"
    files = checkpoint.Checkpoints(folder / "checkpoints")
    assert differing(state, files.pick(128)[1]) == [] and differing(state, files.pick(160)[1]) != []


def test_the_best_checkpoint_has_the_highest_metric_where_more_is_better(train, monkeypatch):
    values = iter([0.2, 0.7, 0.1, 0.5])
    monkeypatch.setattr(MetricSuite, "__call__", lambda self, samples: {"precision": next(values), "recall": 0.0})
    folder = train(*ON, "metric=[precision_recall,fid]", images=128)
    assert best(folder)["images"] == 64


def test_a_metric_that_is_no_number_is_not_the_best(train, monkeypatch):
    numbers(monkeypatch, [float("nan"), 9.0, float("nan"), 8.0, float("-inf")])
    assert best(train(*ON, images=160))["images"] == 128


def test_a_metric_that_never_is_a_number_ends_no_run(cli, monkeypatch):
    numbers(monkeypatch, [float("nan")] * 2)
    result = cli("train", *TINY, *ON, "hydra.run.dir=run")
    assert result.status == 0 and "Traceback" not in result.err and "Logging error" not in result.err
    assert not Path("run/checkpoints/best.pt").exists()


def test_the_best_one_stays_the_best_when_the_run_goes_on(train, monkeypatch):
    numbers(monkeypatch, [5.0, 2.0, 4.0])
    train(*ON, images=96)
    numbers(monkeypatch, [3.0, 2.1])
    folder = train(*ON, "resume=auto", images=160)
    assert best(folder)["images"] == 64 and last(folder)["evaluation"]["best"] == 2.0
    numbers(monkeypatch, [1.0])
    assert best(train(*ON, "resume=auto", images=192))["images"] == 192


def test_another_metric_has_another_best(train, monkeypatch):
    train(*ON, images=64)
    values = iter([0.3, 0.2])
    monkeypatch.setattr(MetricSuite, "__call__", lambda self, samples: {"precision": next(values), "recall": 0.0})
    folder = train(*ON, "metric=[precision_recall]", "resume=auto", images=128)
    assert best(folder)["images"] == 96


def test_it_goes_on_without_and_with(train):
    train(*ON, images=64)
    assert [row["images"] for row in rows(train("resume=auto", images=96))] == [32, 64]
    assert [row["images"] for row in rows(train(*ON, "resume=auto", images=128))] == [32, 64, 128]


def test_sample_and_evaluate_take_the_best_one(train, cli, monkeypatch):
    with monkeypatch.context() as patch:
        numbers(patch, [5.0, 3.0, 4.0])
        folder = train(*ON, "checkpoint.every=32", images=96)
    made = {}
    for which in ("best", "64", "last"):
        assert (
            cli(
                "sample", f"run={folder.absolute()}", f"checkpoint={which}", f"out={folder.absolute()}/{which}.png"
            ).status
            == 0
        )
        made[which] = (folder / f"{which}.png").read_bytes()
    assert made["best"] == made["64"] != made["last"]
    for which in ("best", "64"):
        words = ["metric=[fid]", "metric/features=random", "count=20", "reference_count=50", f"checkpoint={which}"]
        assert cli("evaluate", f"run={folder.absolute()}", *words).status == 0
    ours = [row for row in rows(folder) if row["by"] == "evaluate"]
    assert [row["checkpoint"] for row in ours] == ["best.pt", "images-000000000064.pt"]
    assert ours[0]["values"] == ours[1]["values"] and ours[0]["images"] == 64


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A finished run with two evaluations; do not write into it."""
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    train_in(folder, *TINY, *ON, "seed=4", "log.every=32")
    return folder


def test_rows_tell_the_whole_protocol(evaluated):
    for row, images in zip(rows(evaluated), (32, 64), strict=True):
        assert set(row) == PROTOCOL
        assert set(row["values"]) == {"fd_random", "diversity"} and all(value > 0 for value in row["values"].values())
        assert (row["images"], row["samples"], row["seed"], row["by"]) == (images, 24, 4, "train")
        assert (row["reference"], row["reference_count"], row["weights"]) == ("train", 64, "ema")
        assert (row["features"], row["features_accuracy"], row["resize"]) == ("random", None, "none")
        assert len(row["features_hash"]) == len(row["reference_hash"]) == 16 and row["gancli"] == __version__
    first, second = rows(evaluated)
    assert first["reference_hash"] == second["reference_hash"] and first["values"] != second["values"]


def test_rows_are_in_tensorboard_too(evaluated):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(evaluated)).Reload()
    for name in ("fd_random", "diversity"):
        found = events.Scalars(f"metric/{name}")
        assert [event.step for event in found] == [32, 64]
        assert [event.value for event in found] == pytest.approx([row["values"][name] for row in rows(evaluated)])
    assert 0 < events.Scalars("speed/evaluation_share")[-1].value < 1


def test_what_evaluation_took_is_told(train, cli):
    result = cli("train", *TINY, *ON, "hydra.run.dir=run")
    assert result.status == 0
    values = [row["values"]["fd_random"] for row in rows(Path("run"))]
    now = f"quality       fd_random {values[-1]:.4g}, real samples against real ones "
    assert now in result.err and "held out)" in result.err and "evaluation took" in result.err
    if values[-1] > min(values):
        assert f"at its best {min(values):.4g}, after {best(Path('run'))['images']} images" in result.err


def test_real_samples_are_measured_like_generated_ones(train, monkeypatch):
    made = []
    original = PeriodicEvaluation.of_real_samples
    monkeypatch.setattr(
        PeriodicEvaluation, "of_real_samples", lambda self: made.append((original(self), self.latest)) or made[-1][0]
    )
    train(*ON)
    ((value, count), latest) = made[0]
    assert 0 < value < latest["fd_random"] and count == 24


def test_samples_are_of_the_averaged_generator_and_always_the_same(train, monkeypatch):
    seen, original = [], PeriodicEvaluation._generate

    def generate(self, generator, game, *, seed):
        if generator is game.generator:  # which is measured once at the end
            return original(self, generator, game, seed=seed)
        state = [value.clone() for value in game.generator.state_dict().values()]
        made = original(self, generator, game, seed=seed)
        assert torch.equal(made.data, original(self, generator, game, seed=seed).data)
        game.generator.load_state_dict({k: v + 1 for k, v in game.generator.state_dict().items()})
        again = original(self, generator, game, seed=seed)
        assert torch.equal(made.data, again.data), "the generator itself has no part in them"
        for value, was in zip(game.generator.state_dict().values(), state, strict=True):
            value.copy_(was)
        assert game.generator.training and not generator.training
        seen.append(made)
        return made

    monkeypatch.setattr(PeriodicEvaluation, "_generate", generate)
    train(*ON, "conditional=true", images=32)
    assert seen[0].data.shape == (24, 1, 8, 8) and seen[0].data.dtype == torch.uint8
    rows = Digits().reference("train", 64)[1]
    assert seen[0].labels.tolist() == rows[subset(64, 24)].tolist(), "as often as in the data"


@pytest.mark.parametrize(("raw", "weights"), [(-1.0, "raw"), (1e9, "ema"), (float("nan"), "ema")])
def test_the_last_grid_is_of_the_better_weights(train, monkeypatch, caplog, raw, weights):
    caplog.set_level("INFO")
    monkeypatch.setattr(MetricSuite, "main_number", lambda self, samples: raw)
    folder = train(*ON, "ema.half_life=1e9", "ema.ramp_up=null", images=32)
    ema = rows(folder)[-1]["values"]["fd_random"]
    record = json.loads((folder / "run.json").read_text())["starts"][-1]["samples"]
    assert record["weights"] == weights and record["fd_random"]["ema"] == ema
    numbers = f"fd_random {ema:.4g} by ema, {raw:.4g} by raw"
    assert f"samples.png: from weights={weights} ({numbers})" in caplog.text
    with Image.open(folder / "samples.png") as last, Image.open(folder / "samples" / "images-000000000032.png") as grid:
        assert last.info["Comment"] == f"weights: {weights} ({numbers})"
        assert (last.tobytes() == grid.tobytes()) is (weights == "ema")
    assert ("count=64 weights=raw" in caplog.text) is (weights == "raw")


def test_a_run_that_was_stopped_shows_the_averaged_generator(train):
    folder = train(*ON, "train.max_time=1e-6")
    assert json.loads((folder / "run.json").read_text())["starts"][-1]["samples"] == {"weights": "ema"}


def test_points_are_evaluated_too(cli):
    result = cli("train", *POINTS, *ON, "hydra.run.dir=run")
    assert result.status == 0, result.err
    row = rows(Path("run"))[-1]
    assert set(row["values"]) == {"reverse_kl", "modes", "modes_held", "high_quality", "diversity"}
    assert row["reference_hash"] and "features" not in row


def test_a_metric_that_gives_no_number(cli):
    result = cli("train", *TINY, *ON, "metric=[fid_per_class]", "hydra.run.dir=run")
    assert result.status == 0 and "none of metric=[fid_per_class] suits this data" in result.err
    assert not Path("run/evaluations.jsonl").exists()


def test_fid_within_each_class_of_a_run_with_labels(train):
    folder = train(*ON, "conditional=true", "metric=[fid_per_class]", "evaluation.count=40", images=32)
    assert set(rows(folder)[0]["values"]) == {
        "fd_random_class_mean",
        "fd_random_class_worst",
        "diversity",
        "diversity_within_classes",
        *(f"fd_random_class_{k}" for k in range(10)),
    }


@pytest.mark.parametrize("key", ["every", "count", "reference_count"])
def test_numbers_below_2_are_refused(key):
    with pytest.raises(ValueError, match=f"{key}=1: at least 2"):
        PeriodicEvaluation(
            metric={},
            dataset=None,
            labelled=False,
            runtime=Runtime(kind="cpu"),
            health=HealthMonitor(),
            logger=NullLogger(),
            **{key: 1},
        )


def test_a_logger_goes_on_from_its_state(tmp_path):
    parts = dict.fromkeys(("game", "ema", "dataset"))
    whole, before, after = (TrainingLogger(RunFolder(tmp_path), settings={}, seed=0, **parts) for _ in range(3))
    for logger in (whole, before):
        logger.latest = {"loss/generator": 3.0, "speed/images_per_second": 9.0}
        logger._add("loss/generator", 1.0)
        logger._add("logits/real", torch.tensor(0.5))
    after._add("loss/generator", 77.0)  # forgotten
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert after.latest == {"loss/generator": 3.0}, "speed is not that of this start"
    for logger in (whole, after):
        logger._add("loss/generator", 2.0)
    assert (
        after.state_dict()["sums"]
        == whole.state_dict()["sums"]
        == {"loss/generator": [3.0, 2.0], "logits/real": [0.5, 1.0]}
    )
