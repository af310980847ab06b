"""Bad input: one clear error that names what is wrong and the way out, exit status 2, no traceback, nothing lost."""

import builtins
import errno
import json
import os
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY

from gancli.training.checkpoint import FORMAT
from gancli.training.trainer import Trainer

RUN = [*TINY, "hydra.run.dir=run"]
LINE = ["dataset=distribution_1d", "network=mlp"]

TRAIN = {  # overrides -> what the error must name
    "unknown loss": (["loss=hing"], "loss=hing: no such choice; did you mean hinge?"),
    "unknown group": (["losss=hinge"], "losss=hinge: no such setting or group; did you mean loss?"),
    "typo in a key": (["train.imagess=5"], "train.imagess=5: no such setting or group; did you mean train.images?"),
    "typo deep in a key": (["optimizer.generator.lrr=1"], "did you mean optimizer.generator.lr?"),
    "no equals sign": (["train.images"], "write settings as key=value"),
    "unknown penalty in a list": (["penalty=[r1,r3]"], "penalty=r3: no such choice"),
    "unknown experiment": (["experiment=gaussian_rings"], "did you mean gaussian_ring?"),
    "missing config folder": (["--config-dir=nowhere"], "nowhere"),
    "seed is a word": (["seed=abc"], "seed=abc: expected int"),
    "lr is a word": (["optimizer.generator.lr=fast"], "optimizer.generator.lr=fast: expected float"),
    "negative lr": (["optimizer.generator.lr=-1"], "optimizer.generator.lr=-1: at least 0"),
    "betas of three": (["optimizer.generator.betas=[0,0.9,1]"], "optimizer.generator.betas=[0, 0.9, 1]: expected"),
    "batch is zero": (["train.batch_size=0"], "train.batch_size=0: at least 1"),
    "batch is a fraction": (["train.batch_size=1.5"], "train.batch_size=1.5: expected int"),
    "batch larger than the data": (["train.batch_size=5000"], "train.batch_size=5000: larger than the data set of"),
    "limit of nothing": (["dataset.limit=0"], "dataset.limit=0: at least 1"),
    "limit below the batch": (["dataset.limit=9"], "train.batch_size=16: larger than the data set of 9"),
    "no length": (["train.images=null"], "train.images=null, minutes=null: one of them"),
    "no noise": (["prior.dim=0"], "prior.dim=0: at least 1"),
    "negative penalty": (["penalty.r1.weight=-2"], "penalty.r1.weight=-2"),
    "interval zero": (["penalty.r1.interval=0"], "penalty.r1.interval=0"),
    "unknown norm": (
        ["network.generator.norm=bach"],
        "network.generator.norm=bach: expected one of batch, group, none",
    ),
    "unknown precision": (["device.precision=fp8"], "device.precision=fp8: expected one of auto, float32, tf32, bf16"),
    "no threads": (["device.threads=0"], "device.threads=0"),
    "a value is missing": (["dataset=folder"], "dataset.path: a value is missing; give dataset.path="),
    "missing folder": (["dataset=folder", "dataset.path=nowhere"], "nowhere"),
    "missing torchvision files": (["dataset=mnist", "dataset.root=nowhere", "dataset.download=false"], "nowhere"),
    "points into convolutions": (["dataset=gaussian_ring"], "network=mlp"),
    "labels where there are none": (
        ["dataset=swiss_roll", "conditional=true"],
        "conditional=true: this data set has no labels",
    ),
    "a number too large": (["seed=99999999999999999999"], "seed=99999999999999999999: expected int"),
    "no number": (["train.minutes=nan"], "train.minutes=nan: expected float"),
    "a group that is null": (["penalty=null"], "penalty=none for no penalty"),
    "a section that is null": (
        ["ema=null"],
        "ema=null: a section, which has no value of its own and is always there; set what is in it",
    ),
    "a key that nothing reads": (["+foo=1"], "foo=1: nothing reads this setting"),
    "unknown class": (["loss._target_=gancli.losses.Hing"], "gancli.losses has no Hing; did you mean Hinge?"),
    "unknown module": (["loss._target_=mine.Loss"], "no module mine"),
    "a setting no class takes": (["+loss.margin=2"], "loss.margin: gancli.losses.NonSaturating has no such setting"),
    "pack of nothing": (["pack=0"], "pack=0: 1 for none"),
    "packs of parts": (["pack=3", "train.accumulate=2"], "pack=3: must divide each of the 2 parts of a batch"),
    "packed labels": (["pack=2", "conditional=true"], "pack=2: samples of different classes do not go into one pack"),
    "packs and a norm": (["pack=2", "penalty=[wgan_gp]"], "pack=2: penalty wgan_gp sets the norm"),
    "unknown metric": (["metric=[fidd]"], "metric=fidd: no such choice; did you mean fid?"),
    "unknown features": (["metric/features=clasifier"], "did you mean classifier?"),
    "features without weights": (
        ["metric/features=inception", "evaluation.every=32"],
        "put weights-inception-2015-12-05-6726825d.pth into",
    ),
    "evaluation of one": (["evaluation.count=1"], "evaluation.count=1: at least 2"),
    "unknown action": (["health.action=halt"], "health.action=halt: expected one of warn, stop, rollback"),
    "a factor that raises": (["health.lower_lr=2"], "health.lower_lr=2"),
    "brackets without inner quotes": (
        ["network.generator.norm=a (b)"],
        "network.generator.norm=a (b): not readable; quote such a value twice, once for the shell: "
        "\"network.generator.norm='a (b)'\"",
    ),
    "a formula of something else": (
        [*LINE, "distribution@dataset.distribution=expression", "dataset.distribution.cdf=1 - foo(x)"],
        "dataset.distribution.cdf=1 - foo(x): foo(x) is not arithmetic of x",
    ),
    "a table that is not there": (
        [*LINE, "distribution@dataset.distribution=table", "dataset.distribution.path=nowhere.txt"],
        "dataset.distribution.path=nowhere.txt: not readable as a table of numbers",
    ),
    "a list that is not closed": (["penalty=[r1"], "penalty=[r1: not readable; are its brackets and quotes closed?"),
    "unknown augmentation": (["augment=difaugment"], "did you mean diffaugment?"),
    "resume from nothing": (["resume=nowhere"], "resume=nowhere: not a run folder"),
    "schedule that runs backwards": (
        ["+schedule@optimizer.generator.lr=cosine", "optimizer.generator.lr.start=1", "optimizer.generator.lr.begin=2"],
        "optimizer.generator.lr.begin=2",
    ),
}

SAMPLE = {
    "no run": ([], "run: a value is missing"),
    "run that is not there": (["run=nowhere"], "run=nowhere: no such folder"),
    "folder that is no run": (["run=."], "not a run folder"),
    "unknown format": (["run={run}", "format=jpg"], "format=jpg: expected one of grid, png, npz, tar, gif, mp4"),
    "unknown weights": (["run={run}", "weights=best"], "weights=best: expected one of ema, raw"),
    "no samples": (["run={run}", "count=0"], "count=0: at least 1"),
    "labels of an unlabelled run": (["run={run}", "labels=[1]"], "labels=[1]: this run was trained without labels"),
    "negative truncation": (["run={run}", "truncation=-1"], "truncation=-1"),
    "unknown checkpoint": (["run={run}", "checkpoint=7"], "checkpoint=7: no such file in"),
    "checkpoint by a word": (["run={run}", "checkpoint=newest"], "say last, best or a number of images"),
    "wrong ending": (["run={run}", "out=a.jpg"], "writes a file that ends in .png"),
}


def refused(result, text):
    assert result.status == 2, (result.status, result.err)
    assert text in result.err, result.err
    assert "Traceback" not in result.err
    assert result.err.count("gancli: error:") == 1


@pytest.mark.parametrize("name", TRAIN)
def test_train(cli, name):
    overrides, text = TRAIN[name]
    words = RUN
    if any("dataset=" in word and "folder" not in word and "mnist" not in word for word in overrides):
        words = [word for word in RUN if "channels" not in word] + (
            ["network=mlp"] if "conditional=true" in overrides else []
        )
    refused(cli("train", *words, *overrides), text)
    assert not Path("run/config.yaml").exists(), "a run that never began is no run"


@pytest.mark.parametrize("name", SAMPLE)
def test_sample(cli, trained, name):
    overrides, text = SAMPLE[name]
    refused(cli("sample", *(word.format(run=trained) for word in overrides)), text)


def test_several_mistakes_are_told_at_once(cli):
    result = cli("train", *RUN, "seed=abc", "train.batch_size=x", "prior.dim=1.5")
    refused(result, "seed=abc")
    assert "train.batch_size=x" in result.err and "prior.dim=1.5" in result.err


def test_a_run_folder_is_not_trained_over(train, cli):
    folder = train()
    before = {p: p.read_bytes() for p in folder.rglob("*.pt")}
    refused(cli("train", *RUN), "holds a run already; resume=auto continues it")
    assert before == {p: p.read_bytes() for p in folder.rglob("*.pt")}


def test_resuming_under_other_settings_names_them(train, cli):
    train()
    result = cli("train", *RUN, "resume=auto", "loss=hinge", "train.batch_size=8", "train.images=128", "log.every=8")
    refused(result, "train.batch_size: 16 -> 8")
    assert "gancli.losses.NonSaturating -> gancli.losses.Hinge" in result.err
    assert "train.images" not in result.err and "log.every" not in result.err


def test_resuming_a_folder_with_other_settings_names_them(train, cli):
    folder = train()
    refused(cli("train", f"resume={folder}", "seed=5"), "seed: 0 -> 5")


class Malicious:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def test_a_malicious_checkpoint_runs_nothing(trained, cli, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    for file in (run / "checkpoints").iterdir():
        torch.save({"format": FORMAT, "evil": Malicious()}, file)
    refused(cli("sample", f"run={run}"), "no readable checkpoint")
    for file in (run / "checkpoints").iterdir():
        file.write_bytes(pickle.dumps(Malicious()))
    refused(cli("sample", "run=run", f"checkpoint={int(file.stem.split('-')[1])}"), "truncated or damaged")
    assert not Path("executed").exists()


def test_a_run_folder_with_the_checkpoint_of_another_network(trained, train, cli, tmp_path):
    run = shutil.copytree(trained, tmp_path / "copied")
    other = train("network.generator.channels=4", folder="other")
    for file in (run / "checkpoints").iterdir():
        shutil.copy(other / "checkpoints" / file.name, file)
    refused(cli("sample", f"run={run}"), "holds another network")
    refused(cli("train", f"resume={run}", "train.images=128"), "does not fit this run")


def test_a_damaged_configuration(trained, cli, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "config.yaml").write_text("{ a: ")
    refused(cli("sample", f"run={run}"), "not readable as YAML")


def test_a_text_file_named_png(cli, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_text("not a picture")
    words = [*RUN, "dataset=folder", f"dataset.path={folder}", f"dataset.cache={tmp_path}/cache"]
    refused(cli("train", *words), "photos")


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_during_a_checkpoint(cli, monkeypatch):
    original = os.fsync

    def fsync(number):
        files = list(Path("run/checkpoints").glob("*"))
        return full() if len(files) > 1 else original(number)  # the first checkpoint fits, the next does not

    monkeypatch.setattr(os, "fsync", fsync)
    result = cli("train", *RUN, "checkpoint.every=16", "train.images=640")
    refused(result, "No space left on device")
    monkeypatch.setattr(os, "fsync", original)
    files = sorted(path.name for path in Path("run/checkpoints").iterdir())
    assert files and all(name.startswith("images-") for name in files), "whole checkpoints and nothing else"
    assert cli("train", *RUN, "checkpoint.every=16", "train.images=640", "resume=auto").status == 0


def test_a_full_gpu_is_one_clear_error_and_the_log_stays(cli, monkeypatch):
    assert cli("train", *RUN).status == 0
    before = (Path("run") / "train.log").read_text()

    def fail(self):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")

    monkeypatch.setattr(Trainer, "train_step", fail)
    result = cli("train", "resume=run", "train.images=96")
    refused(result, "train.batch_size=16: CUDA out of memory; take a smaller batch, train.accumulate=2")
    assert len((Path("run") / "train.log").read_text()) > len(before)


def test_a_read_only_output_folder(cli, monkeypatch):
    original = builtins.open

    def read_only(file, mode="r", *args, **kwargs):
        if "run" in str(file) and set(mode) & set("wa"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        return original(file, mode, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", read_only)
    refused(cli("train", *RUN), "Permission denied")


def test_a_path_through_a_file(cli):
    Path("run").write_text("a file")
    refused(cli("train", *RUN), "run")


@pytest.mark.parametrize(
    "override",
    ["+hydra.callbacks.x._target_=os.abort", "hydra/launcher=x", "experiment=../../evil", "loss._target_=this.s"],
)
def test_what_a_run_folder_says_of_its_overrides_is_never_composed(trained, cli, tmp_path, override):
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "run.json").write_text(json.dumps({"format": 2, "starts": [{"overrides": [override]}]}))
    assert cli("train", f"resume={run}", "train.images=128").status == 0
    assert "this" not in sys.modules


def test_a_run_folder_that_names_foreign_classes_does_not_go_on(trained, cli, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("gancli.losses.NonSaturating", "this.s"))
    refused(cli("train", f"resume={run}", "train.images=128"), "may run code")
    assert "this" not in sys.modules


def test_a_sweep_does_not_end_with_its_first_failure(cli):
    result = cli("train", "-m", *TINY, "hydra.sweep.dir=sweep", "train.batch_size=5000,16")
    refused(result, "gancli: error: job 0: train.batch_size=5000: larger than the data set")
    assert result.err.count("train.batch_size=5000") == 1, "told once, by gancli alone"
    assert Path("sweep/1/samples.png").exists()


def test_no_run_is_erased_because_its_checkpoints_cannot_be_read(train, cli):
    folder = train()
    for file in (folder / "checkpoints").iterdir():
        file.write_bytes(file.read_bytes()[:-100])
    before = {
        path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix in (".pt", ".jsonl")
    }
    refused(cli("train", *RUN, "resume=auto"), "no checkpoint here can be read")
    assert before == {path: path.read_bytes() for path in before}


def test_other_data_in_the_same_place(trained, cli, tmp_path, monkeypatch):
    from gancli.datasets.digits import Digits

    run = shutil.copytree(trained, tmp_path / "run")
    monkeypatch.setattr(Digits, "__len__", lambda self: 1000)
    refused(cli("train", f"resume={run}", "train.images=128"), "the data set had 1617 samples, and has 1000 now")


def test_a_run_made_longer_remembers_it(train, cli):
    folder = train()
    assert cli("train", f"resume={folder}", "train.images=96").status == 0
    assert "images: 96" in (folder / "config.yaml").read_text()
    refused(cli("train", "-m", f"resume={folder}"), "not with -m")


def test_a_recipe_typed_again_is_compared_as_a_whole(train, cli):
    folder = train()
    words = [word for word in TINY if "channels" not in word]
    refused(cli("train", f"resume={folder}", "experiment=gaussian_ring", *words), "gancli.datasets.points.GaussianRing")


def test_each_start_is_recorded(train, cli):
    folder = train()
    assert cli("train", f"resume={folder}", "train.images=96").status == 0
    starts = json.loads((folder / "run.json").read_text())["starts"]
    assert len(starts) == 2 and starts[1]["overrides"] == [f"resume={folder}", "train.images=96"]
