"""Run folders, checkpoints and caches that came from elsewhere are data: attacks, and what the user sees of each."""

import copy
import os
import pickle
import shutil
import sys
import zipfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import gancli.commands.theory
from gancli.build import KINDS, build, is_trusted
from gancli.commands import train
from gancli.config import compose
from gancli.diagnostics.base import TrainedRun
from gancli.distributions import Expression, GaussianMixture, Table
from gancli.errors import InvalidTensorFile, SettingError, UserError
from gancli.files import json_files, tensor_files, yaml_files
from gancli.files.user_paths import mark_cache
from gancli.metrics.features import Registered
from gancli.optimizers import ClippedRMSprop, ClippedSGD, OptimisticAdam, OptimisticSGD
from gancli.training.checkpoint import Checkpoints
from gancli.training.run_folder import RunFolder
from gancli.training.scheduled_optimizer import ScheduledOptimizer


class Malicious:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """A copy of a trained run folder, which is then altered."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(trained, tmp_path / "run")


def alter(run, change):
    """Rewrites config.yaml after `change(settings)`."""
    settings = yaml.safe_load((run / "config.yaml").read_text())
    change(settings)
    (run / "config.yaml").write_text(yaml.safe_dump(settings))


def put(key, value):
    """Returns a change that sets the dotted key, or deletes it where value is `...`."""

    def change(settings):
        *parents, last = key.split(".")
        for name in parents:
            settings = settings[int(name) if isinstance(settings, list) or name.isdigit() else name]
        last = int(last) if isinstance(settings, list) else last
        if value is ...:
            del settings[last]
        else:
            settings[last] = value

    return change


def refused(result, *texts):
    assert result.status == 2 and "Traceback" not in result.err, result.err
    for text in texts:
        assert text in result.err, result.err


# Classes

FOREIGN = {
    "a class that a module of gancli imports": "gancli.commands.theory.ProcessPoolExecutor",
    "a function of gancli": "gancli.commands.train.run",
    "a module of gancli's own imports": "gancli.cli.os.system",
    "a class of another package": "this.s",
    "a name that begins alike": "gancli_evil.Loss",
    "no name": ["gancli.losses.Hinge"],
}


@pytest.mark.parametrize("what", FOREIGN)
def test_only_classes_that_gancli_defines_are_trusted(what):
    assert gancli.commands.theory.ProcessPoolExecutor.__module__ == "concurrent.futures.process", "it is imported there"
    assert not is_trusted({"_target_": FOREIGN[what]}, [])
    assert "this" not in sys.modules


def test_a_class_is_trusted_where_it_is_gancli_s_an_optimizer_of_torch_or_of_a_named_package():
    assert is_trusted({"_target_": "gancli.losses.Hinge"}, [])
    assert is_trusted({"_target_": "torch.optim.Adam"}, [])
    assert is_trusted({"_target_": "mine.losses.Loss"}, ["mine"]) and not is_trusted({"_target_": "mine.L"}, ["min"])


def test_a_class_of_another_kind_is_never_built(run, cli, tmp_path):
    victim = tmp_path / "victim"
    node = {"_target_": "gancli.datasets.folder.Folder", "path": ".", "resolution": 8, "cache": str(victim)}
    alter(run, put("prior", node))
    for words in (["sample"], ["evaluate"], ["theory"]):
        refused(cli(*words, f"run={run}"), "prior._target_=gancli.datasets.folder.Folder: not a gancli.priors.Prior")
    refused(cli("train", f"resume={run}", "train.images=96"), "not a gancli.priors.Prior")
    assert not victim.exists()


def test_every_part_of_a_run_has_its_kind():
    with pytest.raises(UserError, match=r"prior\.mean\._target_=gancli\.losses\.Hinge: not a gancli\.schedules"):
        build({"_target_": "gancli.priors.Gaussian", "mean": {"_target_": "gancli.losses.Hinge"}}, key="prior")
    sections = {key for key, value in compose("train", []).items() if isinstance(value, dict)}
    assert sections == {key.partition(".")[0] for key in KINDS}


# Settings

SETTINGS = {
    "without a section": (put("prior", ...), "prior: names no class"),
    "with a section of another type": (put("dataset", 3), "dataset: names no class"),
    "without _target_": (put("network.generator._target_", ...), "network.generator: names no class"),
    "with a value of another type": (put("network.generator.channels", "many"), "network.generator.channels=many"),
    "with a setting that nobody reads": (put("prior.evil", 1), "prior.evil: gancli.priors.Gaussian has no such"),
    "without a plain setting": (put("seed", ...), "seed: is missing"),
    "with a list as a group": (put("penalty", [1]), "penalty: is to be a mapping"),
    "with a path as the name of a part": (
        put("diagnostic", {"../evil": {"_target_": "gancli.diagnostics.behaviour.Behaviour"}}),
        "diagnostic.../evil: a name consists of",
    ),
    "without a setting that its class asks for": (
        put("metric.features._target_", "gancli.metrics.features.Registered"),
        "metric.features.extractor: is missing",
    ),
    "without a setting that commands read": (put("log.samples", ...), "log.samples: is missing"),
    "with a class in a thousand modules": (put("loss._target_", "gancli." + 3000 * "a."), "loss._target_=gancli.a."),
    "with a foreign class deep inside": (
        put("optimizer.generator.lr", {"_target_": "os.system", "command": "true"}),
        "optimizer.generator.lr._target_=os.system",
    ),
    "with a file of weights": (
        put("metric.features", {"_target_": "gancli.metrics.features.Registered", "weights": "w.pth"}),
        "metric.features.weights=w.pth (a file that torch_fidelity loads)",
    ),
}


@pytest.mark.parametrize("how", SETTINGS)
def test_a_run_folder_is_refused(run, how):
    change, text = SETTINGS[how]
    alter(run, change)
    with pytest.raises(UserError) as error:
        RunFolder(run).settings(trust=[])
    assert text in str(error.value)


def test_only_what_a_command_builds_is_asked_for(run, cli):
    alter(run, put("loss", {"_target_": "mine.Loss"}))
    assert cli("sample", f"run={run}", "count=2").status == 0
    alter(run, put("prior", ...))
    refused(cli("sample", f"run={run}", "count=3"), "prior: is missing")
    alter(run, put("prior", {"_target_": "gancli.priors.Gaussian", "dim": "x"}))
    refused(cli("sample", f"run={run}", "count=3"), "prior.dim=x: expected int")


@pytest.mark.parametrize("command", ["doctor", "train"])
def test_a_polyglot_of_weights_is_never_loaded(run, cli, command):
    weights = Path("w.pth")
    with zipfile.ZipFile(weights, "w") as archive:
        archive.writestr("archive/constants.pkl", b"")
    weights.write_bytes(pickle.dumps(Malicious()) + weights.read_bytes())
    assert zipfile.is_zipfile(weights), "Python takes it for a zip, torch for a pickle"
    node = {"_target_": "gancli.metrics.features.Registered", "extractor": "inception-v3-compat", "file": "w.pth"}
    alter(run, put("metric.features", {**node, "weights": "w.pth"}))
    alter(run, put("evaluation.every", 32))
    refused(cli(command, f"resume={run}", "train.images=96"), "metric.features.weights=w.pth")
    assert not Path("executed").exists()


YAML = {
    "an alias": ("a: &a [1]\nb: *a\n", "alias"),
    "values a million times": (
        "a: &a [1]\n" + "".join(f"{b}: &{b} [*{a},*{a}]\n" for a, b in [("a", "b"), ("b", "c"), ("c", "d")]),
        "alias",
    ),
    "deep nesting": ("a: " + 10_000 * "[", "nested more than"),
    "a Python object": ("a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
    "no text": (b"\xff\xfe\x00", "codec"),
    "no YAML": ("{ a: ", "line 1"),
    "a number as a key": ("1: 2\n", "a key is no text: int"),
    "a date": ("a: 2024-01-05\n", "date"),
    "a number of 6,000 digits": (f"a: 0x{6000 * 'f'}", "more than 64 bits"),
    "too much": ("a" * 2**21, "larger than"),
}


@pytest.mark.parametrize("what", YAML)
def test_yaml_of_more_than_plain_values_is_refused(tmp_path, what):
    content, text = YAML[what]
    file = tmp_path / "config.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=f"config.yaml: not readable as YAML: .*{text}"):
        RunFolder(tmp_path).settings(trust=[])


def test_yaml_that_is_written_has_no_aliases(tmp_path):
    shared = [1, 2]
    file = tmp_path / "config.yaml"
    file.write_text(yaml_files.plain_yaml({"a": shared, "b": shared, "c": "1e3"}))
    assert yaml_files.read_plain_yaml(file) == {"a": [1, 2], "b": [1, 2], "c": "1e3"}


def test_a_cache_that_a_run_folder_names_is_used_only_where_it_is_one(run, tmp_path, caplog):
    (tmp_path / "victim").mkdir()
    alter(run, put("evaluation.cache", str(tmp_path / "victim")))
    assert RunFolder(run).settings(trust=[])["evaluation"]["cache"] is None
    assert "evaluation.cache=" in caplog.text and "is not used" in caplog.text
    (tmp_path / "victim" / "CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n# another's")
    assert RunFolder(run).settings(trust=[])["evaluation"]["cache"] is None
    (tmp_path / "victim" / "CACHEDIR.TAG").unlink()
    mark_cache(tmp_path / "victim")
    assert RunFolder(run).settings(trust=[])["evaluation"]["cache"] == str(tmp_path / "victim")


LINKS = [
    "evaluations.jsonl",
    "train.log",
    ".lock",
    "checkpoints",
    "samples",
    "theory",
    ".hydra/config.yaml",
    ".hydra",
    "export",
    "wandb",
]


@pytest.mark.parametrize("name", LINKS)
def test_nothing_is_written_through_a_link_in_a_run_folder(run, cli, tmp_path, name):
    path, victim = run / name, tmp_path / "victim"
    is_folder = name in ("checkpoints", "samples", "theory", ".hydra", "export", "wandb")
    victim.mkdir() if is_folder else victim.write_text("mine")
    path.parent.mkdir(exist_ok=True)
    if path.exists():
        path.rename(tmp_path / "away")
    path.symlink_to(victim)
    for words in (["evaluate", f"run={run}"], ["sample", f"run={run}"], ["train", f"resume={run}", "train.images=96"]):
        refused(cli(*words), f"{run.name}/{name}: is a link")
    assert not any(victim.iterdir()) if is_folder else victim.read_text() == "mine"


def test_rows_and_records_of_odd_types_cost_nothing(run, monkeypatch):
    (run / "run.json").write_text('{"format": 1, "starts": [{"versions": []}]}')
    with pytest.raises(UserError, match="written by gancli of an unknown version"):
        RunFolder(run).settings(trust=[])
    monkeypatch.setattr(json_files, "_LARGEST_ROWS", 2**20)
    with open(run / "metrics.jsonl", "ab") as file:
        file.truncate(2**40)  # a hole, which takes no room on the disk
    assert [row["images"] for row in RunFolder(run).read_metrics()] == [16, 32, 48, 64]


def test_a_generator_larger_than_the_memory_is_not_built(run, cli):
    alter(run, put("network.generator.max_channels", 10**10))
    alter(run, put("network.generator.channels", 10**10))
    refused(cli("sample", f"run={run}"), "network.generator.channels=10000000000: would take", "of memory")


def test_a_run_folder_downloads_nothing(run):
    alter(
        run,
        put(
            "dataset",
            {
                "_target_": "gancli.datasets.torchvision_sets.TorchvisionSet",
                "name": "MNIST",
                "root": "x",
                "download": True,
            },
        ),
    )
    assert RunFolder(run).settings(trust=[])["dataset"]["download"] is False


# Checkpoints

STATES = {
    "without a key": (put("ema", ...), "ema: is missing"),
    "with a string for a number": (put("step", "3"), "step: expected int, got '3'"),
    "with a list of weights": (put("generator", [1]), "generator: expected a mapping, got list"),
    "with a number for a weight": (put("generator.evil", 1.0), "generator.evil: expected Tensor, got 1.0"),
    "with a sparse weight": (put("ema.evil", torch.eye(3).to_sparse()), "ema.evil: expected Tensor"),
    "with a weight larger than its bytes": (put("ema.evil", torch.ones(1).expand(10**9)), "ema.evil: expected Tensor"),
    "with weights that are not finite": (put("ema.evil", torch.tensor(torch.nan)), "ema.evil is not finite"),
    "with a shape of a terabyte": (put("shape", [3, 10**6, 10**6]), "shape=[3, 1000000, 1000000]"),
    "with negative images": (put("step", -1), "step=-1"),
    "with time that is no number": (put("seconds", float("nan")), "seconds=nan"),
    "of another number of images": (put("images", 3), "after 3 images under another name"),
}


def rewrite(file, change):
    state = torch.load(file, weights_only=True)
    change(state)
    torch.save(state, file)


@pytest.mark.parametrize("how", STATES)
def test_a_checkpoint_that_no_run_can_have_is_named(run, how, caplog):
    change, text = STATES[how]
    checkpoints = Checkpoints(run / "checkpoints")
    rewrite(checkpoints.files()[-1], change)
    with pytest.raises(UserError, match=r"no readable checkpoint"):
        checkpoints.pick("last")
    assert text in caplog.text


UNRESUMABLE = {
    "with a million threads": (put("threads", 10**6), "threads=1000000"),
    "with a Python generator of negative numbers": (put("random.python", [3, 625 * [-1], None]), "does not fit"),
    "with a learning rate beyond all numbers": (
        put("optimizers.generator.param_groups.0.lr", 10**400),
        "does not fit",
    ),
    "with a broken random generator": (put("random.numpy", [1, 2]), "random.numpy: expected tuple"),
    "with a random generator that stands nowhere": (put("random.numpy.2", 10**6), "numpy's generator stands at"),
    "with more steps than images": (put("step", 2**40), "images after"),
    "without what an older version did not store": (put("threads", ...), "threads: is missing"),
    "with a sum of no steps": (put("logging.sums.evil", [1.0, 0.0]), "logging: a sum of no steps"),
    "with a state of another shape": (
        put("optimizers.generator.state.0.exp_avg", torch.ones(10**6)),
        "exp_avg is (1000000,) of torch.float32",
    ),
}


@pytest.mark.parametrize("how", UNRESUMABLE)
def test_a_state_from_which_no_run_can_go_on_is_refused(run, how):
    change, text = UNRESUMABLE[how]
    rewrite(Checkpoints(run / "checkpoints").files()[-1], change)
    settings = {**RunFolder(run).settings(trust=[]), "resume": str(run)}
    settings["train"]["images"] = 96
    with pytest.raises(UserError) as error:
        train.run(settings, folder=run, overrides=["train.images=96"])
    assert "does not fit this run: " in str(error.value) and text in str(error.value)


def test_commands_say_so_too(run, cli):
    rewrite(Checkpoints(run / "checkpoints").files()[-1], put("ema.evil", torch.tensor(torch.inf)))
    for words in (["sample", f"run={run}"], ["evaluate", f"run={run}"], ["theory", f"run={run}"]):
        refused(cli(*words), "ema.evil is not finite", "no readable checkpoint")
    refused(
        cli("train", f"resume={run}", "train.images=96"), "ema.evil is not finite", "no checkpoint here can be read"
    )


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(run, cli):
    for file in [*Checkpoints(run / "checkpoints").files(), run / "metrics.jsonl", run / "run.json", run / "train.log"]:
        file.unlink(missing_ok=True)
        os.mkfifo(file)
    refused(cli("sample", f"run={run}"), "is a link, a pipe or a device")
    with pytest.raises(InvalidTensorFile, match="is not a regular file"):
        tensor_files.read(Checkpoints(run / "checkpoints").files()[-1], {})
    folder = RunFolder(run)
    assert folder.read_metrics() == folder.starts() == [] and folder.last_log_line() == ""


def compressed(file):
    with zipfile.ZipFile(file) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in content.items():
            archive.writestr(name, value)


def overlapping(file):
    """Lets a thousand entries of the directory share the bytes of one."""
    content = file.read_bytes()
    at = content.index(b"PK\x01\x02")
    end = content.rindex(b"PK\x05\x06")
    length = 46 + sum(int.from_bytes(content[at + k : at + k + 2], "little") for k in (28, 30, 32))
    directory = content[at:end] + 1000 * content[at : at + length]
    counts = 2 * (1000 + int.from_bytes(content[end + 8 : end + 10], "little")).to_bytes(2, "little")
    ending = (
        content[end : end + 8] + counts + len(directory).to_bytes(4, "little") + at.to_bytes(4, "little") + bytes(2)
    )
    file.write_bytes(content[:at] + directory + ending)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (compressed, "is compressed"),
        (overlapping, "states more content than the file holds|damaged"),
        (lambda file: file.write_bytes(file.read_bytes() + b"more"), "truncated, damaged"),
        (lambda file: file.write_bytes(b"more" + file.read_bytes()), "truncated, damaged"),
    ],
    ids=["compressed", "overlapping", "with a tail", "with a head"],
)
def test_an_archive_that_torch_did_not_write_is_refused(tmp_path, change, text):
    file = tmp_path / "file.pt"
    torch.save({"a": torch.ones(1000)}, file)
    assert tensor_files.read(file, {"a": torch.Tensor})["a"].sum() == 1000
    change(file)
    with pytest.raises(InvalidTensorFile, match=text):
        tensor_files.read(file, {"a": torch.Tensor})


def test_a_value_that_is_memory_alone_is_refused(tmp_path):
    file = tmp_path / "file.pt"
    torch.save({"a": _Huge()}, file)
    assert file.stat().st_size < 2000
    with pytest.raises(InvalidTensorFile, match="bytearray"):
        tensor_files.read(file, {})


class _Huge:
    def __reduce__(self):
        return (bytearray, (2**33,))


def test_a_pickle_that_runs_code_is_refused_by_torch_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for legacy in (False, True):
        torch.save({"a": Malicious()}, "file.pt", _use_new_zipfile_serialization=not legacy)
        with pytest.raises(InvalidTensorFile, match="could run code"):
            tensor_files.read(Path("file.pt"), {}, legacy=legacy)
    assert not Path("executed").exists()


def test_values_that_contain_each_other_a_billion_times_are_looked_at_once(tmp_path):
    value = []
    for _ in range(25):
        value = [value, value]
    torch.save({"a": value}, tmp_path / "file.pt")
    assert "a" in tensor_files.read(tmp_path / "file.pt", {"a": list[object]})
    for _ in range(20):
        value = [value]
    torch.save({"a": value}, tmp_path / "file.pt")
    with pytest.raises(InvalidTensorFile, match="nested too deeply"):
        tensor_files.read(tmp_path / "file.pt", {"a": tensor_files.Any})


# Optimizers: fused updates write into their state without looking at its shape

OPTIMIZERS = [
    partial(torch.optim.Adam, fused=True),
    partial(torch.optim.AdamW, amsgrad=True),
    partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    torch.optim.RMSprop,
    ClippedRMSprop,
    OptimisticSGD,
    OptimisticAdam,
]


def scheduled(optimizer):
    return ScheduledOptimizer(partial(optimizer), [nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(5))])


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, ClippedSGD], ids=lambda made: getattr(made, "func", made).__name__)
def test_the_state_of_an_optimizer_fits_its_parameters_or_is_refused(optimizer):
    here, there = scheduled(optimizer), scheduled(optimizer)
    for parameter in here.parameters:
        parameter.grad = torch.full_like(parameter, 0.5)
    here.step(0.0)
    state = copy.deepcopy(here.state_dict())
    there.load_state_dict(state)
    for parameter, other in zip(here.parameters, there.parameters, strict=True):
        other.data.copy_(parameter)
        parameter.grad, other.grad = torch.full_like(parameter, 0.25), torch.full_like(parameter, 0.25)
    here.step(0.5), there.step(0.5)
    for parameter, other in zip(here.parameters, there.parameters, strict=True):
        assert torch.equal(parameter, other)
    tensors = [name for name, value in state["state"].get(0, {}).items() if isinstance(value, torch.Tensor)]
    assert tensors or optimizer is ClippedSGD, "plain SGD has no state"
    for name in tensors:
        for wrong in (torch.ones(10**3), torch.ones(2), torch.ones(4, 3, dtype=torch.float64), "x"):
            bad = copy.deepcopy(state)
            bad["state"][0][name] = wrong
            with pytest.raises(ValueError, match=f"parameter 0: {name} is .*, expected"):
                scheduled(optimizer).load_state_dict(bad)
    for change in (put("state", {7: {"step": torch.ones(())}}), put("state", {0: {"evil": torch.ones(4, 3)}})):
        bad = copy.deepcopy(state)
        change(bad)
        with pytest.raises(ValueError, match="holds"):
            scheduled(optimizer).load_state_dict(bad)


def test_settings_of_an_optimizer_in_a_checkpoint_are_not_used():
    trained = scheduled(partial(torch.optim.Adam, lr=0.25))
    state = copy.deepcopy(trained.state_dict())
    state["param_groups"][0].update({"betas": "evil", "lr": 0.125})
    trained.load_state_dict(state)
    assert trained.optimizer.param_groups[0]["betas"] == (0.9, 0.999) and trained.lr == 0.125
    state["param_groups"] = []
    with pytest.raises(ValueError, match="no learning rate"):
        trained.load_state_dict(state)


# Data


def test_tables_and_formulas_are_bounded(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(SettingError, match="no regular file"):
        Table(path=str(tmp_path / "pipe.csv"))
    with open(tmp_path / "large.npy", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(SettingError, match="larger than"):
        Table(path=str(tmp_path / "large.npy"))
    np.save(tmp_path / "pairs.npy", np.zeros(9, dtype=[("a", "f4"), ("b", "f4")]))
    with pytest.raises(SettingError, match="not numbers"):
        Table(path=str(tmp_path / "pairs.npy"))
    with pytest.raises(SettingError, match="longer than 1000 characters"):
        Expression(cdf=" + ".join(2000 * ["x"]))
    with pytest.raises(SettingError, match="50,000 components"):
        GaussianMixture(means=50_000 * [0.0], stds=50_000 * [1.0])


def test_the_name_of_a_file_of_weights_is_no_path():
    with pytest.raises(SettingError, match=r"file=/x/w\.pth: a name"):
        Registered.check_settings(extractor="inception-v3-compat", file="/x/w.pth")


def test_a_series_has_the_rows_with_numbers():
    rows = [{"images": 1, "loss": "text"}, {"images": 2, "loss": 0.5}, {"images": 3}]
    images, values = TrainedRun.series(SimpleNamespace(rows=rows), "loss")
    assert images.tolist() == [2.0] and values.tolist() == [0.5]
