"""The Python interface: the same samples as the command line, bit for bit, and a light import."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import POINTS, TINY

import gancli
import gancli.api


def from_cli(cli, run, *words):
    result = cli("sample", f"run={run}", "format=npz", "out=a.npz", "overwrite=true", *words)
    assert result.status == 0, result.err
    with np.load("a.npz") as file:
        return file["images"] if "images" in file else file["points"], torch.from_numpy(file["z"])


def test_importing_the_package_loads_nothing_else():
    code = "import sys, gancli; assert not {'torch', 'numpy', 'hydra', 'yaml'} & sys.modules.keys(); dir(gancli)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'sample'"):
        gancli.sample  # noqa: B018


def test_the_stub_has_every_public_name():
    stub = Path(gancli.__file__).with_suffix(".pyi").read_text()
    assert all(f"import {name} as {name}" in stub for name in gancli._PUBLIC)
    assert set(gancli._PUBLIC) == set(gancli.api.__all__) and set(gancli._PUBLIC) <= set(dir(gancli))


def test_samples_are_those_of_the_command_line(cli, trained):
    generator = gancli.load(trained)
    images = generator.sample(70, seed=3, truncation=0.7)
    expected, z = from_cli(cli, trained, "count=70", "seed=3", "truncation=0.7")
    assert images.dtype == np.uint8 and np.array_equal(images, expected)
    assert torch.equal(generator.noise(70, seed=3, truncation=0.7), z)
    raw = gancli.load(str(trained), weights="raw", checkpoint=64).sample(4)
    assert np.array_equal(raw, from_cli(cli, trained, "count=4", "weights=raw")[0])


def test_floats_round_to_the_same_bytes_and_the_call_gives_them_too(trained):
    generator = gancli.load(trained)
    floats = generator.sample(64, as_tensor=True)
    assert floats.shape == (64, 1, 8, 8) and floats.abs().max() <= 1
    assert torch.allclose(generator(generator.noise(64)), floats, atol=1e-6)
    bytes_ = ((floats + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).numpy().astype(np.uint8)
    assert np.array_equal(bytes_, generator.sample(64))


def test_classes_by_number_and_mixtures_of_them(cli, train):
    run = train("conditional=true")
    generator = gancli.load(run)
    assert "10 classes" in repr(generator) and generator.class_names == []
    assert np.array_equal(generator.sample(5, labels=[3, 7]), from_cli(cli, run, "count=5", "labels=[3,7]")[0])
    z = generator.noise(2)
    one_hot = torch.nn.functional.one_hot(torch.tensor([3, 7]), 10).float()
    assert torch.allclose(generator(z, one_hot), generator(z, torch.tensor([3, 7])), atol=1e-6)
    mixed = generator(z, one_hot.roll(1, 0) / 2 + one_hot / 2)
    assert not torch.allclose(mixed, generator(z, torch.tensor([3, 7])), atol=1e-3)
    with pytest.raises(gancli.UserError, match="classes of this run are 0 to 9"):
        generator.sample(labels=10)
    with pytest.raises(gancli.UserError, match="whose classes have numbers only"):
        generator.sample(labels="cat")


def test_noise_between_two_samples_keeps_its_ends_and_its_length(trained):
    generator = gancli.load(trained)
    a, b = generator.noise(2)
    way = generator.between(a, b, 5)
    assert way.shape == (5, 8) and torch.allclose(way[0], a) and torch.allclose(way[-1], b, atol=1e-6)
    lengths = way.norm(dim=1)
    assert lengths.min() >= 0.99 * min(a.norm(), b.norm()), "a straight line would be shorter in the middle"
    assert generator.directions(3).shape == (3, 8)
    with pytest.raises(gancli.UserError, match="steps=1: at least 2"):
        generator.between(a, b, 1)


def test_gradients_reach_the_noise_alone(trained):
    generator = gancli.load(trained)
    z = generator.noise(2).requires_grad_()
    generator(z).sum().backward()
    assert z.grad.abs().sum() > 0 and all(weight.grad is None for weight in generator.network.parameters())


def test_points_are_floats(cli):
    folder = gancli.train([*POINTS, "hydra.run.dir=run"])
    assert folder == Path("run") and (folder / "train.log").read_text().count("finished: 64 images") == 1
    points = gancli.load(folder).sample(5)
    assert points.dtype == np.float32 and np.array_equal(points, from_cli(cli, folder, "count=5")[0])


def test_a_training_in_python_goes_on_where_it_stopped(cli):
    words = [*TINY, "hydra.run.dir=run"]
    run = gancli.train(words)
    assert gancli.train([*words, "train.images=128", "resume=auto"]) == run
    assert gancli.load(run).images == 128
    assert gancli.train([f"resume={run}", "train.images=160"]) == run
    assert gancli.load("run").images == 160


def test_what_the_budget_chose_stays_in_python_too(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = [*TINY, "augment=by_budget", "hydra.run.dir=run"]
    gancli.train(words)
    monkeypatch.setattr("gancli.budget._MANY", 1)  # pictures, which would then be seen often
    gancli.train([*words, "train.images=96", "resume=auto"])
    assert gancli.load("run").images == 96


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["datset=mnist"], "did you mean dataset"),
        (["loss=hing"], "hinge"),
        (["train.images=many"], "train.images=many: expected int"),
        (["-m", "seed=1,2"], "-m: a flag of the command line"),
        (["seed=1,2"], "several values are a sweep"),
        (["hydra/launcher=slurm"], "one run at a time"),
        (["pack=0"], "pack=0"),
    ],
)
def test_a_wrong_setting_is_an_exception_that_says_so(cli, words, text):
    with pytest.raises(gancli.UserError, match=text):
        gancli.train([*words, "hydra.run.dir=run"])
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda g: g.sample(0), "count=0: at least 1"),
        (lambda g: g.noise(-1), "count=-1: at least 1"),
        (lambda g: g.sample(1, batch_size=0), "batch_size=0: at least 1"),
        (lambda g: g.directions(0), "count=0: at least 1"),
        (lambda g: g.sample(1, labels=[1.5]), "labels=1.5: classes are whole numbers or names"),
        (lambda g: g.sample(1, labels=[True]), "labels=True"),
        (lambda g: g.sample(1, truncation=float("nan")), "truncation=nan"),
        (lambda g: g.between(g.noise(1), g.noise(2), 3), r"noise of \(1, 8\) and \(2, 8\)"),
        (lambda g: gancli.load(g.file.parents[1], device="foo"), "device=foo"),
        (lambda g: gancli.load(g.file.parents[1], weights="EMA"), "weights=EMA: one of ema, raw"),
        (lambda g: gancli.train("seed=1"), "takes a list of settings"),
    ],
)
def test_wrong_input_is_an_exception_that_says_so(cli, trained, call, text):
    with pytest.raises(gancli.UserError, match=text):
        call(gancli.load(trained))


def test_labels_may_be_arrays(train):
    generator = gancli.load(train("conditional=true"))
    expected = generator.sample(3, labels=[2, 0, 1])
    for labels in (np.array([2, 0, 1]), torch.tensor([2, 0, 1]), [np.int64(2), 0, 1]):
        assert np.array_equal(generator.sample(3, labels=labels), expected)
    assert np.array_equal(generator.sample(1, labels=np.int64(2)), expected[:1])


def test_a_refused_training_leaves_folders_as_they_were(cli, tmp_path):
    with pytest.raises(gancli.UserError):
        gancli.train(["pack=0", "hydra.run.dir=a/b/c"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(gancli.UserError):
        gancli.train(["pack=0", "hydra.run.dir=mine"])
    assert {path.name for path in tmp_path.rglob("*")} - {".lock"} == {"mine", "notes.txt"}


def test_a_training_leaves_hydra_as_it_was_and_wants_the_main_thread(cli):
    import threading

    import hydra
    from hydra.core.global_hydra import GlobalHydra

    from gancli.config import config_dir

    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        mine = GlobalHydra.instance().hydra
        gancli.train([*TINY, "hydra.run.dir=run", "freeze=[]", "trust=[]"])
        assert GlobalHydra.instance().hydra is mine
    said = []

    def in_a_thread():
        try:
            gancli.train(TINY)
        except gancli.UserError as error:
            said.append(str(error))

    thread = threading.Thread(target=in_a_thread)
    thread.start()
    thread.join()
    assert "only in the main thread" in said[0]


def test_a_folder_that_is_no_run_is_refused(cli, tmp_path):
    with pytest.raises(gancli.UserError, match="no such folder"):
        gancli.load("nowhere")
    with pytest.raises(gancli.UserError, match="path=latest: no run below outputs"):
        gancli.load("latest")
    (tmp_path / "empty").mkdir()
    with pytest.raises(gancli.UserError, match="not a run folder"):
        gancli.load(tmp_path / "empty")


def test_the_notebook_runs_and_has_the_samples_of_the_command_line(cli, monkeypatch, tmp_path):
    pytest.importorskip("nbconvert", reason="nbconvert is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    import nbformat
    from nbconvert.preprocessors import ExecutePreprocessor

    notebook = nbformat.read(Path(__file__).parents[1] / "docs" / "notebook.ipynb", as_version=4)
    small = repr([*TINY, "conditional=true"])
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    cells[1].source = cells[1].source.partition("words = ")[0] + f"words = {small}"
    cells[-1].source = cells[-1].source.replace("steps=200", "steps=5")
    cells[-1].source += "\nimport numpy\nnumpy.save('images.npy', images)"
    monkeypatch.delenv("MPLBACKEND", raising=False)
    ExecutePreprocessor(timeout=300).preprocess(notebook, {"metadata": {"path": str(tmp_path)}})
    assert all(output.output_type != "error" for cell in cells for output in cell.outputs)
    pictures = [o for cell in cells for o in cell.outputs if "image/png" in getattr(o, "data", {})]
    assert len(pictures) == 6
    assert np.array_equal(np.load("images.npy"), from_cli(cli, "outputs/notebook", "count=20")[0])
