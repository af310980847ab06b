"""`gancli sample`: what it writes, and that sample i depends on the seed and i alone."""

import io
import json
import shutil
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import gancli
from gancli.commands.sample import COLUMNS, FRAMES, _default_name, _log_classes
from gancli.errors import UserError
from gancli.files import atomic
from gancli.files.atomic import atomic_folder
from gancli.inference.sample_files import write_mp4, write_shards
from gancli.inference.sampling import STOPS, chosen_classes, noise_rows, walk_through_noise
from gancli.priors import Gaussian
from gancli.reporting import image_grids


def arrays(cli, run, name, *overrides):
    result = cli("sample", f"run={run}", "format=npz", f"out={name}.npz", *overrides)
    assert result.status == 0, result.err
    with np.load(f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def test_arrays_and_their_shapes(cli, trained):
    content = arrays(cli, trained, "a", "count=10")
    assert content["images"].shape == (10, 8, 8, 1) and content["images"].dtype == np.uint8
    assert content["z"].shape == (10, 8) and content["z"].dtype == np.float32
    assert content["labels"].tolist() == [-1] * 10


def test_an_image_does_not_depend_on_count_or_batch_size(cli, trained):
    full = arrays(cli, trained, "a", "count=70", "batch_size=64")
    for name, count, batch_size in [("b", 70, 7), ("c", 5, 64), ("d", 1, 1), ("e", 64, 64)]:
        part = arrays(cli, trained, name, f"count={count}", f"batch_size={batch_size}")
        assert np.array_equal(part["images"], full["images"][:count])
        assert np.array_equal(part["z"], full["z"][:count])


def test_images_depend_on_the_seed_and_on_the_weights(cli, trained):
    a = arrays(cli, trained, "a")["images"]
    assert not np.array_equal(a, arrays(cli, trained, "b", "seed=1")["images"])
    assert not np.array_equal(a, arrays(cli, trained, "c", "weights=raw")["images"])
    assert np.array_equal(a, arrays(cli, trained, "d")["images"])


def test_noise_beyond_one_block_is_not_repeated(cli, trained):
    z = arrays(cli, trained, "a", "count=1030")["z"]
    assert len(np.unique(z, axis=0)) == 1030


def test_truncated_noise_stays_in_the_middle_of_the_prior(cli, trained):
    assert np.abs(arrays(cli, trained, "a")["z"]).max() > 2
    assert np.abs(arrays(cli, trained, "b", "truncation=0.5")["z"]).max() <= 0.5


def test_every_format_is_written_into_the_run_folder_by_default(cli, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    for kind, count in (("grid", 9), ("png", 3), ("gif", 2), ("npz", 2)):
        result = cli("sample", f"run={run}", f"format={kind}", f"count={count}")
        assert result.status == 0, result.err
    written = {path.name.split("-")[0]: path for path in (run / "samples").iterdir()}
    assert set(written) == {"grid", "png", "gif", "npz", "images"}
    assert [p.name for p in sorted(written["png"].iterdir())] == ["00000.png", "00001.png", "00002.png"]
    with Image.open(written["png"] / "00000.png") as image, np.load(written["npz"]) as file:
        assert np.array_equal(np.asarray(image), file["images"][0, :, :, 0])
    with Image.open(written["gif"]) as gif:
        assert 12 < gif.n_frames <= STOPS * FRAMES["gif"], "frames that are equal are one"


def test_a_gif_begins_as_the_grid_of_the_same_samples_and_moves(cli, trained):
    for kind in ("grid", "gif"):
        suffix = "png" if kind == "grid" else "gif"
        result = cli("sample", f"run={trained}", f"format={kind}", "count=8", "scale=2", f"out=a.{suffix}")
        assert result.status == 0 and result.out == f"a.{suffix}\n", "only the file is on standard output"
    with Image.open("a.png") as picture, Image.open("a.gif") as gif:
        first = np.asarray(gif.convert("L"))
        assert first.shape == (3 * 18 + 2, 3 * 18 + 2), "8 samples of 8x8 pixels, twice as large"
        assert np.array_equal(first, np.asarray(picture))
        gif.seek(FRAMES["gif"] // 2)
        assert not np.array_equal(np.asarray(gif.convert("L")), first)


def test_a_walk_depends_on_the_seed_and_its_number_alone():
    prior = Gaussian(dim=64)
    many, few = (
        walk_through_noise(prior, noise_rows(prior, count, seed=5), 12, seed=5, truncation=None) for count in (8, 2)
    )
    assert torch.equal(many[:, :2], few) and len(many) == STOPS * 12
    steps = (many - many.roll(-1, dims=0)).norm(dim=-1)
    assert steps.max() < 3 * steps.mean(), "the last frame leads to the first one"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["scale=0"], "scale=0: at least 1"),
        (["scale=2", "format=npz"], "scale=2: only for format=grid, format=gif and format=mp4"),
        (["scale=x"], "scale=x"),
        (["neighbours=0"], "neighbours=0: at least 1"),
        (["neighbours=2", "format=png"], "neighbours=2: only for format=grid"),
        (["data=there"], "data=there: only for neighbours=…"),
        (["vary=noise", "format=png"], "vary=noise: only for format=grid, format=gif and format=mp4"),
        (["vary=classes"], "vary=classes: this run was trained without labels"),
        (["vary=noise", "neighbours=1"], "vary=noise: not with neighbours=…"),
        (["vary=directions", "count=9"], "count=9: the noise has 8 dimensions, and as many directions"),
        (["vary=directions", "reach=0"], "reach=0"),
        (["vary=directions", "labels=[1,2]"], "trained without labels"),
        (["steps=3"], "steps=3: only where samples vary"),
        (["shard=3"], "shard=3: only for format=tar"),
        (["reach=2"], "reach=2: only for vary=directions"),
        (["vary=noise", "count=1", "steps=9000000000"], "steps=9000000000: would take"),
        (["vary=noise", "steps=1"], "steps=1: at least 2"),
        (["layout=classes"], "layout=classes: this run was trained without labels"),
        (["layout=classes", "format=npz"], "only for format=grid without vary=…"),
        (["shard=0", "format=tar"], "shard=0: at least 1"),
    ],
)
def test_a_setting_that_does_not_suit_is_refused(cli, trained, words, text):
    result = cli("sample", f"run={trained}", *words)
    assert result.status == 2 and text in result.err and "Traceback" not in result.err


def test_the_nearest_training_images_stand_beside_each_sample(cli, trained):
    from gancli.datasets.digits import Digits

    assert cli("sample", f"run={trained}", "out=plain.png", "count=3", "scale=1").status == 0
    result = cli("sample", f"run={trained}", "out=a.png", "count=3", "scale=1", "neighbours=2")
    assert result.status == 0 and "1,617 training images, in the features random" in result.err, result.err
    with Image.open("a.png") as near, Image.open("plain.png") as plain:
        cells, samples = np.asarray(near)[-(3 * 10 + 2) :, :], np.asarray(plain)
    rows = [[cells[y : y + 8, x : x + 8] for x in (2, 12, 22)] for y in (2, 12, 22)]
    for number, (sample, *images) in enumerate(rows):
        y, x = divmod(number, 2)
        assert np.array_equal(sample, samples[2 + 10 * y : 10 + 10 * y, 2 + 10 * x : 10 + 10 * x])
        train = Digits().reference("train", 10_000)[0][:, 0].numpy()
        assert all((train == image).all(axis=(1, 2)).any() for image in images)
        assert not np.array_equal(*images)
    assert near.width > cells.shape[1] - 1 and near.height == 16 + 32, "the headings have a line of their own"


def test_neighbours_are_searched_where_the_data_lies_now(cli, photos, train):
    run = train("dataset=folder", f"dataset.path={photos}", "dataset.resolution=8", "train.batch_size=4", images=8)
    moved = photos.rename("moved")
    words = ("sample", f"run={run}", "out=a.png", "count=2", "neighbours=1")
    assert cli(*words).status == 2 and not Path("a.png").exists()
    assert cli(*words, f"data={moved}").status == 0
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("resolution: 8", "resolution: 16"))
    result = cli(*words, f"data={moved}", "overwrite=true")
    assert result.status == 2 and "the data set has images of (3, 16, 16), not (3, 8, 8)" in result.err


def test_a_file_that_exists_is_replaced_only_where_asked(cli, trained):
    Path("a.png").write_bytes(b"precious")
    result = cli("sample", f"run={trained}", "out=a.png")
    assert result.status == 2 and "overwrite=true" in result.err
    assert Path("a.png").read_bytes() == b"precious"
    assert cli("sample", f"run={trained}", "out=a.png", "overwrite=true").status == 0
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_of_samples_is_replaced_as_a_whole(cli, trained):
    words = ["sample", f"run={trained}", "format=png", "out=made", "overwrite=true"]
    left = Path(f".made.{dead_process()}-1.tmp")  # of a killed process
    left.mkdir()
    assert cli(*words, "count=5").status == 0
    assert cli(*words, "count=2", "seed=1").status == 0
    assert sorted(path.name for path in Path("made").iterdir()) == ["00000.png", "00001.png"]
    assert [path.name for path in Path().iterdir()] == ["made"]


def dead_process():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.mark.parametrize("name", ["cat.png", "00000.png", "00000.png/", "-> elsewhere/00000.png"])
def test_a_folder_of_anything_else_is_never_replaced(cli, trained, name):
    Path("made").mkdir()
    Path("elsewhere").mkdir()
    Image.new("L", (8, 8)).save("elsewhere/00000.png")
    image_grids.write_png(Path("made/00001.png"), np.zeros((8, 8, 1), np.uint8))
    if name.startswith("->"):
        Path("made/00000.png").symlink_to(Path("elsewhere/00000.png").resolve())
    elif name.endswith("/"):
        Path("made", name).mkdir()
    else:
        shutil.copy("elsewhere/00000.png", f"made/{name}")
    before = sorted(Path("made").iterdir())
    result = cli("sample", f"run={trained}", "format=png", "out=made", "overwrite=true", "count=1")
    assert result.status == 2 and "which is no sample of gancli" in result.err
    assert sorted(Path("made").iterdir()) == before


def test_the_current_folder_is_not_replaced(cli, trained):
    result = cli("sample", f"run={trained}", "format=png", "out=.")
    assert result.status == 2 and "would be replaced as a whole" in result.err


@pytest.mark.parametrize("in_one_step", [True, False])
def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch, in_one_step):
    if not in_one_step:
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    elif not sys.platform.startswith("linux"):
        pytest.skip("only Linux exchanges two names in one step")
    path = tmp_path / "a [b]"
    for text in ("old", "new"):
        with atomic_folder(path) as folder:
            (folder / text).touch()
            assert not (path / text).exists()
        assert [file.name for file in path.iterdir()] == [text]
    with pytest.raises(KeyboardInterrupt), atomic_folder(path) as folder:
        (folder / "half").touch()
        raise KeyboardInterrupt
    assert [file.name for file in path.iterdir()] == ["new"] and list(tmp_path.iterdir()) == [path]


def test_the_default_name_tells_samples_apart():
    settings = {"format": "png", "weights": "ema", "seed": 0, "count": 8, "labels": None, "truncation": None}
    settings |= {"scale": None, "neighbours": None, "vary": None, "steps": None, "layout": "auto"}
    file = Path("images-000000000064.pt")
    assert _default_name(settings, file, [0, 1]) == "png-images-000000000064-ema-seed0-count8"
    chosen = {**settings, "labels": [1, "cats"], "truncation": 0.7, "scale": 2, "neighbours": 3}
    assert _default_name(chosen, file, [1, 0]).endswith("-seed0-count8-labels1_0-truncation0.7-scale2-neighbours3")
    many = [_default_name(chosen, file, [*range(500), last]) for last in (1, 2)]
    assert many[0] != many[1] and len(many[0]) < 120


def test_a_wrong_label_is_told_before_what_exists_already(cli, trained):
    Path("a.png").touch()
    result = cli("sample", f"run={trained}", "out=a.png", "labels=1")
    assert result.status == 2 and "trained without labels" in result.err


def test_a_conditional_run_is_sampled_in_the_chosen_classes(cli, train):
    run = train("conditional=true")
    assert arrays(cli, run, "a", "count=12")["labels"].tolist() == [*range(10), 0, 1]
    assert arrays(cli, run, "b", "count=4", "labels=[3,5]")["labels"].tolist() == [3, 5, 3, 5]
    result = cli("sample", f"run={run}", "labels=10")
    assert result.status == 2 and "classes of this run are 0 to 9" in result.err


def test_points_are_sampled_as_arrays_or_a_plot(cli, trained_on_points):
    points = arrays(cli, trained_on_points, "a", "count=5")["points"]
    assert points.shape == (5, 2) and points.dtype == np.float32
    assert cli("sample", f"run={trained_on_points}", "out=ring.png").status == 0
    for word in ("format=gif", "scale=2", "neighbours=2"):
        result = cli("sample", f"run={trained_on_points}", word)
        assert result.status == 2 and "this run makes points" in result.err


def test_a_checkpoint_is_chosen_by_its_number_of_images(cli, train):
    run = train("checkpoint.every=32")
    a, b = (arrays(cli, run, name, f"checkpoint={name}")["images"] for name in ("32", "64"))
    assert not np.array_equal(a, b)
    assert np.array_equal(b, arrays(cli, run, "last")["images"])
    result = cli("sample", f"run={run}", "checkpoint=33")
    assert result.status == 2 and "32, 64" in result.err
    result = cli("sample", f"run={run}", "checkpoint=best")
    assert result.status == 2 and "best" in result.err


def test_the_data_set_is_not_needed(cli, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("gancli.datasets.digits.Digits", "somebody.elses.Photos"))
    assert cli("sample", f"run={run}", "out=a.png").status == 0


@pytest.mark.parametrize(
    "foreign", ["os.system", "gancli.randomness.random.Random", "gancli.cli.os.system", "torch.hub.load"]
)
def test_a_run_folder_never_runs_foreign_code(cli, trained, tmp_path, foreign):
    run = shutil.copytree(trained, tmp_path / "run")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("gancli.priors.Gaussian", foreign))
    result = cli("sample", f"run={run}")
    assert result.status == 2 and "building it may run code" in result.err


def test_classes_are_chosen_by_number_or_by_name(caplog):
    caplog.set_level("INFO")
    names = ["cats", "2", "do\x1bgs"]
    assert chosen_classes(["2", 2, "cats"], 3, names) == [1, 2, 0]
    _log_classes([1, 2, 0], names)
    assert r"classes: 1 (2), 2 (do\x1bgs), 0 (cats)" in caplog.text
    assert chosen_classes("cats", 3, names) == [0]
    with pytest.raises(UserError, match=r"labels=cast: no class of this run; its classes are cats, .* mean cats\?"):
        chosen_classes("cast", 3, names)
    with pytest.raises(UserError, match="labels=cats: no class of this run, whose classes have numbers only"):
        chosen_classes("cats", 3, [])
    with pytest.raises(UserError, match=r"labels=\[3\]: classes of this run are 0 to 2"):
        chosen_classes([3], 3, names)


def cells(file, rows, columns, *, side=8):
    """The images of a grid at scale=1, (rows, columns, side, side)."""
    with Image.open(file) as image:
        array = np.asarray(image.convert("L"))
    assert array.shape == (rows * (side + 2) + 2, columns * (side + 2) + 2)
    return np.stack(
        [[array[2 + y * (side + 2) :, 2 + x * (side + 2) :][:side, :side] for x in range(columns)] for y in range(rows)]
    )


def test_noise_varies_along_the_rows_of_a_grid(cli, trained):
    assert cli("sample", f"run={trained}", "vary=noise", "count=3", "scale=1", "out=a.png").status == 0
    grid = cells("a.png", 3, COLUMNS)
    plain = arrays(cli, trained, "plain", "count=3")["images"][..., 0]
    assert np.array_equal(grid[:, 0], plain), "a row begins with the sample of the same seed"
    other = gancli.load(trained)
    end = other(noise_rows(other._prior, 3, seed=0, stream="stop 1"))
    assert np.array_equal(grid[:, -1], image_grids.to_uint8(end)[..., 0]), "and ends with another sample"
    assert cli("sample", f"run={trained}", "vary=noise", "count=3", "scale=1", "steps=2", "out=b.png").status == 0
    assert np.array_equal(cells("b.png", 3, 2), grid[:, [0, -1]])
    changes = np.abs(np.diff(grid.astype(int), axis=1)).mean((0, 2, 3))
    assert (changes > 0).all() and np.abs(grid[:, -1].astype(int) - grid[:, 0]).mean() > 2 * changes.max()


def test_a_row_of_each_class_has_the_same_noise(cli, train):
    run = train("conditional=true")
    words = ("sample", f"run={run}", "scale=1", "labels=[3,5]")
    assert cli(*words, "layout=classes", "count=4", "out=a.png").status == 0
    grid = cells("a.png", 2, 4)
    noise = arrays(cli, run, "b", "count=4", "labels=3")
    assert np.array_equal(grid[0], noise["images"][..., 0])
    assert np.array_equal(grid[1], arrays(cli, run, "c", "count=4", "labels=5")["images"][..., 0])
    assert cli(*words, "vary=classes", "count=4", "steps=6", "out=d.png").status == 0
    between = cells("d.png", 4, 6)
    assert np.array_equal(between[:, 0], grid[0]) and np.array_equal(between[:, -1], grid[1])
    assert cli(*words, "vary=classes", "format=gif", "count=1", "steps=3", "out=e.gif").status == 0
    result = cli(*words[:2], "vary=classes", "labels=3")
    assert result.status == 2 and "needs two classes or more" in result.err


def test_directions_are_a_sheet_of_one_sample_moved_both_ways(cli, trained):
    result = cli("sample", f"run={trained}", "vary=directions", "count=3", "steps=5", "scale=1", "out=a.png")
    assert result.status == 0 and "directions: singular values" in result.err
    grid = cells("a.png", 3, 5)
    middle = arrays(cli, trained, "plain", "count=1")["images"][0, ..., 0]
    assert (grid[:, 2] == middle).all() and (grid[:, 0] != grid[:, 4]).any()
    assert cli("sample", f"run={trained}", "vary=directions", "count=3", "format=gif", "steps=4").status == 0


def test_a_tar_a_folder_and_arrays_hold_the_same_images(cli, train):
    run = train("conditional=true")
    words = ["sample", f"run={run}", "count=11", "labels=[4,2]", "seed=3"]
    for kind in (["format=tar", "shard=4"], ["format=png"]):
        result = cli(*words, *kind, f"out={kind[0][-3:]}")
        assert result.status == 0, result.err
    images = arrays(cli, run, "a", *words[2:])["images"]
    manifest = json.loads(Path("tar/manifest.json").read_text())
    assert manifest["seed"] == 3 and manifest["count"] == 11 and manifest["checkpoint"] == "images-000000000064.pt"
    assert [(shard["first"], shard["count"]) for shard in manifest["shards"]] == [(0, 4), (4, 4), (8, 3)]
    number = 0
    for shard in manifest["shards"]:
        with tarfile.open(Path("tar", shard["file"])) as tar:
            for name in [name for name in tar.getnames() if name.endswith(".png")]:
                content = tar.extractfile(name).read()
                assert content == Path("png", name).read_bytes() and name == f"{number:05d}.png"
                assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), images[number, ..., 0])
                assert tar.extractfile(name.replace("png", "cls")).read() == [b"4", b"2"][number % 2]
                number += 1
    assert number == 11
    assert cli(*words, "format=tar", "out=tar").status == 2
    assert cli(*words, "format=tar", "out=tar", "overwrite=true").status == 0
    Path("tar/samples-00077.tar").write_text("mine")
    result = cli(*words, "format=tar", "out=tar", "overwrite=true")
    assert result.status == 2 and "holds samples-00077.tar" in result.err
    Path("tar/samples-00077.tar").unlink()
    Path("tar/notes.txt").write_text("mine")
    result = cli(*words, "format=tar", "out=tar", "overwrite=true")
    assert result.status == 2 and "holds notes.txt" in result.err


def test_an_mp4_plays(cli, trained):
    av = pytest.importorskip("av", reason="gancli[video] is not installed")
    result = cli("sample", f"run={trained}", "format=mp4", "count=3", "scale=3", "steps=5", "out=a.mp4")
    assert result.status == 0, result.err
    with av.open("a.mp4") as video:
        (stream,) = video.streams.video
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(stream)]
        assert stream.codec_context.name == "h264" and stream.average_rate == 24
    assert len(frames) == STOPS * 5 and frames[0].shape == (54, 54, 3)
    assert cli("sample", f"run={trained}", "count=3", "scale=3", "out=a.png").status == 0
    with Image.open("a.png") as grid:
        assert np.abs(np.asarray(grid.convert("RGB")).astype(int) - frames[0]).mean() < 4


def test_an_mp4_without_its_extra_names_it(cli, trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    result = cli("sample", f"run={trained}", "format=mp4")
    assert result.status == 2 and "pip install 'gancli[video]'" in result.err


def test_a_film_that_cannot_be_encoded_is_one_clear_error(tmp_path):
    pytest.importorskip("av", reason="gancli[video] is not installed")
    with pytest.raises(UserError, match="format=mp4: a film of 17000x16 pixels cannot be encoded"):
        write_mp4(tmp_path / "a.mp4", [np.zeros((16, 17_000, 3), np.uint8)] * 2)
    assert not list(tmp_path.iterdir())


class Rank:
    """One of two processes, as threads that meet at barriers."""

    world_size = 2

    def __init__(self, rank, shared, barrier):
        self.rank, self.is_main_process, self.shared, self.barrier_ = rank, rank == 0, shared, barrier

    def broadcast_from_main(self, function):
        if self.is_main_process:
            self.shared.append(function())
        self.barrier()
        return self.shared[0]

    def barrier(self):
        self.barrier_.wait(30)


def test_each_process_writes_its_own_shards(tmp_path):
    images = torch.arange(10.0).view(10, 1, 1, 1).expand(-1, 1, 4, 4) / 10
    made, shared, barrier = {0: [], 1: []}, [], threading.Barrier(2)

    def write(rank):
        def generate(rows):
            made[rank].append((rows.start, rows.stop))
            yield images[rows]

        group = Rank(rank, shared, barrier)
        about = {"seed": 0}
        write_shards(tmp_path / "tar", generate, None, count=10, per_shard=3, about=about, process_group=group)

    threads = [threading.Thread(target=write, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert made == {0: [(0, 3), (6, 9)], 1: [(3, 6), (9, 10)]}
    assert sorted(path.name for path in (tmp_path / "tar").iterdir()) == [
        "manifest.json",
        *(f"samples-0000{number}.tar" for number in range(4)),
    ]
