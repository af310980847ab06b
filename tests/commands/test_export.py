"""`gancli export`: files that other tools read, and that hold no pickle and no path of this machine."""

import json
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import Forked

import gancli
from gancli.errors import UserError
from gancli.inference.export import TOLERANCE, exported_program, graph_bytes, inputs, onnx_bytes
from gancli.networks.dcgan import DCGANGenerator
from gancli.networks.fastgan import FastGANGenerator
from gancli.networks.mlp import MLPGenerator
from gancli.networks.r3gan import R3GANGenerator
from gancli.networks.resnet import ResNetGenerator

FAMILIES = {
    "dcgan": (DCGANGenerator, {"channels": 4, "attention": 4}),
    "resnet": (ResNetGenerator, {"channels": 4}),
    "r3gan": (R3GANGenerator, {"channels": 8}),
    "fastgan": (FastGANGenerator, {"channels": 4}),
    "mlp": (MLPGenerator, {"width": 16, "fourier": 0.5}),
}


@pytest.fixture(scope="session")
def exported(trained, tmp_path_factory):
    """The export of a tiny run; do not write into it."""
    from gancli.commands import export

    folder = tmp_path_factory.mktemp("exported") / "digits"
    settings = {"run": str(trained), "checkpoint": "last", "weights": "ema", "formats": ["onnx", "graph"]}
    pytest.importorskip("onnxscript", reason="gancli[export] is not installed")
    return export.run({**settings, "out": str(folder), "overwrite": False, "trust": []})


@pytest.mark.parametrize(("family", "classes"), [("dcgan", 0), *((name, 3) for name in FAMILIES)])
def test_graphs_compute_what_torch_computes(family, classes):
    kind, settings = FAMILIES[family]
    torch.manual_seed(0)
    generator = kind(latent_dim=6, image_shape=(3, 8, 8), num_classes=classes, **settings).eval()
    for parameter in generator.parameters():  # at their start some layers are the identity or zero
        parameter.data += 0.05 * torch.randn_like(parameter)
    graph = exported_program(generator)
    given = inputs(generator, 5)
    with torch.no_grad():
        expected = generator(*given).clamp(-1, 1)
        assert (graph.module()(*given) - expected).abs().max() <= TOLERANCE and expected.std() > 0.005
    assert graph_bytes(graph)[:2] == b"PK"
    onnxruntime = pytest.importorskip("onnxruntime", reason="gancli[export] is not installed")
    session = onnxruntime.InferenceSession(onnx_bytes(generator, graph), providers=["CPUExecutionProvider"])
    feed = {name: tensor.numpy() for name, tensor in zip(("z", "labels"), given, strict=False)}
    (samples,) = session.run(["samples"], feed)
    assert np.abs(samples - expected.numpy()).max() <= TOLERANCE


def test_a_generator_that_cannot_be_traced_says_so():
    class Branching(MLPGenerator):
        def forward(self, z, labels=None):
            return super().forward(z, labels) if z.sum() > 0 else -super().forward(z, labels)

    with pytest.raises(UserError, match="cannot be traced"):
        exported_program(Branching(latent_dim=2, image_shape=(2,)))


def test_the_exported_folder_gives_the_same_samples(exported, trained):
    assert sorted(path.name for path in exported.iterdir()) == sorted(
        ["README.md", "config.json", "model.onnx", "model.pt2", "model.safetensors", "samples.png"]
    )
    a, b = gancli.load(exported), gancli.load(trained)
    assert np.array_equal(a.sample(9, seed=1), b.sample(9, seed=1)) and a.images == b.images == 64
    assert all(torch.equal(x, b.network.state_dict()[name]) for name, x in a.network.state_dict().items())
    with pytest.raises(UserError, match="is an export"):
        gancli.load(exported, weights="raw")


def without_gancli(tool, folder, z, out):
    """What a program does that has the exported folder and no gancli."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "gancli"]:
        del sys.modules[name]
    sys.modules["gancli"] = None
    if tool == "torch":
        samples = torch.export.load(folder / "model.pt2").module()(torch.from_numpy(z)).detach().numpy()
    else:
        import onnxruntime

        (samples,) = onnxruntime.InferenceSession(folder / "model.onnx").run(None, {"z": z})
    np.save(out, samples)


@pytest.mark.parametrize("tool", ["onnxruntime", "torch"])
def test_other_tools_read_it_without_gancli(exported, tool, tmp_path):
    z = gancli.load(exported).noise(3, seed=2).numpy()
    status, _, err = Forked(without_gancli, tool, exported, z, tmp_path / "samples.npy").ended()
    assert status == 0, err
    expected = gancli.load(exported).sample(3, seed=2, as_tensor=True).numpy()
    assert np.abs(np.load(tmp_path / "samples.npy") - expected).max() <= TOLERANCE


def test_no_file_holds_a_pickle_or_a_path_of_this_machine(exported, trained):
    with zipfile.ZipFile(exported / "model.pt2") as archive:
        assert not [name for name in archive.namelist() if archive.read(name)[:2] in (b"PK", b"\x80\x02")]
    everything = b"".join(path.read_bytes() for path in exported.iterdir())
    for path in (Path.home(), Path(gancli.__file__).parent, trained):
        assert str(path).encode() not in everything


def test_the_card_tells_what_it_is_and_how_good(cli, train):
    run = train("conditional=true", "evaluation.every=32", "evaluation.count=32", "metric/features=random")
    result = cli("export", f"run={run}", "formats=[]", "out=cats")
    assert result.status == 0 and result.out == "cats\n" and "hf upload USER/NAME cats" in result.err
    card = Path("cats/README.md").read_text()
    assert card.startswith("---\nlibrary_name: gancli\n") and "| images seen | 64 |" in card
    assert "labels=0" in card and "| fd_random |" in card and "features random" in card
    assert "model.onnx" not in card, "what was not exported"
    assert cli("export", f"run={run}", "formats=[]", "out=raw", "weights=raw").status == 0
    assert "fd_random" not in Path("raw/README.md").read_text(), "which is of the averaged weights"
    about = json.loads(Path("cats/config.json").read_text())
    assert about["num_classes"] == 10 and about["latent_dim"] == 8 and about["image_shape"] == [1, 8, 8]
    assert gancli.load("cats").sample(2, labels=4).shape == (2, 8, 8, 1)


def test_an_export_is_replaced_only_where_asked_and_only_if_it_is_one(cli, trained):
    words = ("export", f"run={trained}", "formats=[]", "out=there")
    assert cli(*words).status == 0
    result = cli(*words)
    assert result.status == 2 and "overwrite=true" in result.err
    assert cli(*words, "overwrite=true").status == 0
    Path("theirs").mkdir()
    for name in ("config.json", "model.safetensors", "README.md"):
        Path("theirs", name).write_text('{"model_type": "bert"}')
    result = cli(*words[:-1], "out=theirs", "overwrite=true")
    assert result.status == 2 and "holds a model that gancli did not export" in result.err
    assert cli("export", f"run={trained}", "formats=[]", "out=.").status == 2, "the current folder, also if it is empty"
    Path("there/notes.txt").write_text("mine")
    result = cli(*words, "overwrite=true")
    assert result.status == 2 and "holds notes.txt" in result.err and Path("there/notes.txt").exists()
    result = cli("export", "run=there", "out=again")
    assert result.status == 2 and "not a run folder" in result.err


def test_damaged_rows_of_a_run_cost_nothing(cli, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    rows = ['{"images": 64}', '{"images": 64, "seconds": "long"}', '{"images": 64, "seconds": 2.0}']
    (run / "metrics.jsonl").write_text("\n".join(rows))
    values = f'{{"fid": {10**400}, "kid": 0.25, "odd": [1]}}'
    row = f'{{"images": 64, "seconds": 2.0, "weights": "ema", "by": "evaluate", "values": {values}}}'
    (run / "evaluations.jsonl").write_text(row)
    result = cli("export", f"run={run}", "formats=[]", "out=there")
    assert result.status == 0, result.err
    card = Path("there/README.md").read_text()
    assert "| kid | 0.25 |" in card and "| fid |" not in card


def test_an_export_is_sampled_and_projected_onto_without_writing_into_it(cli, exported, trained):
    before = sorted(exported.iterdir())
    assert cli("sample", f"run={exported}", "format=npz", "out=a.npz", "count=4").status == 0
    assert cli("sample", f"run={exported}", "format=png", "count=1").status == 0
    assert cli("project", f"run={exported}", f"image={exported}/samples.png", "steps=1").status == 0
    assert sorted(exported.iterdir()) == before and len(list(Path().glob("projection-*"))) == 2
    with np.load("a.npz") as file:
        assert np.array_equal(file["images"], gancli.load(trained).sample(4))
    result = cli("sample", f"run={exported}", "neighbours=2")
    assert result.status == 2 and "Traceback" not in result.err


def test_a_missing_extra_is_named_before_anything_is_written(cli, trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = cli("export", f"run={trained}", "out=there")
    assert result.status == 2 and "pip install 'gancli[export]'" in result.err and not Path("there").exists()


DAMAGE = {
    "no classes": (
        "config.json",
        lambda text: text.replace('"num_classes"', '"x"'),
        "not the description of a generator",
    ),
    "no format": ("config.json", lambda text: text.replace('"format": 1', '"format": 99'), "reads format 1"),
    "not json": ("config.json", lambda text: text[:40], "not a run folder"),
    "foreign code": ("config.json", lambda text: text.replace("gancli.priors.Gaussian", "os.system"), "may run code"),
    "another kind": (
        "config.json",
        lambda text: text.replace("gancli.priors.Gaussian", "gancli.losses.Hinge"),
        "prior",
    ),
    "huge": (
        "config.json",
        lambda text: text.replace('"channels": 8', '"channels": 80000').replace("512", "80000"),
        "memory",
    ),
    "other sizes": ("config.json", lambda text: text.replace('"channels": 8', '"channels": 16'), "another network"),
    "other noise": ("config.json", lambda text: text.replace('"latent_dim": 8', '"latent_dim": 9'), "latent_dim=9"),
    "bad shape": ("config.json", lambda text: text.replace('"num_classes": 0', '"num_classes": -1'), "of no generator"),
    "cut off": ("model.safetensors", None, "not readable as safetensors"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_folder_from_elsewhere_is_data(exported, tmp_path, damage):
    folder = shutil.copytree(exported, tmp_path / "theirs")
    name, change, text = DAMAGE[damage]
    file = folder / name
    if change is None:
        file.write_bytes(file.read_bytes()[:1000])
    else:
        before = file.read_text()
        file.write_text(change(before))
        assert file.read_text() != before
    with pytest.raises(UserError, match=text):
        gancli.load(folder)


def test_points_are_exported_too(cli, trained_on_points):
    assert cli("export", f"run={trained_on_points}", "formats=[graph]", "out=ring").status == 0
    assert gancli.load("ring").sample(3).shape == (3, 2)
