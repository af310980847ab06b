"""Folders and zips of images: which files are read, how they are decoded, and the cache."""

import errno
import io
import json
import os
import shutil
import threading
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from gancli.datasets import image_decoding
from gancli.datasets.folder import CelebA, Folder
from gancli.datasets.image_decoding import Decoding, Source, decode_cached
from gancli.errors import SettingError, UserError


def save(path, colour, size=(8, 8), mode="RGB", **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **more)


def grey(level):
    return (level, level, level)


@pytest.fixture
def photos(tmp_path):
    """A folder of ten images in nested folders; image i has the value 20 i everywhere."""
    for number in range(10):
        save(tmp_path / "in" / f"{number % 2}" / "deep" / f"{number}.png", grey(20 * number))
    return tmp_path / "in"


@pytest.fixture
def make(tmp_path):
    def call(path, **settings):
        return Folder(path=str(path), cache=str(tmp_path / "cache"), **{"resolution": 8, **settings})

    return call


def levels(data):
    return sorted(data.images[:, 0, 0, 0].tolist())


def folders(root):
    return sorted(path.name for path in root.iterdir() if path.is_dir())


def encoded(image, **more):
    file = io.BytesIO()
    image.save(file, "png", **more)
    return file.getvalue()


def test_images_in_nested_folders_are_found_and_hidden_files_are_not(photos, make):
    save(photos / "loose.JPG", grey(255))
    save(photos / ".hidden" / "a.png", grey(7))
    save(photos / "__MACOSX" / "a.png", grey(7))
    (photos / "notes.txt").write_text("no image")
    data = make(photos)
    assert levels(data) == [*range(0, 200, 20), 255]
    assert data.shape == (3, 8, 8) and data.num_classes == 0 and data.labels is None
    assert (len(data.train_indices), len(data.holdout_indices)) == (10, 1)
    assert sorted([*data.train_indices.tolist(), *data.holdout_indices.tolist()]) == list(range(11))
    batch, labels = data.batch(0, size=10, seed=0)
    assert labels is None and batch.shape == (10, 3, 8, 8) and batch.min() >= -1 and batch.max() <= 1


def test_a_zip_is_read_like_the_folder(photos, make, tmp_path):
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for file in sorted(photos.rglob("*.png")):
            archive.write(file, file.relative_to(photos))
        archive.writestr("__MACOSX/0/._0.png", b"junk")
        archive.writestr("readme.txt", b"text")
    zipped = make(tmp_path / "in.zip", labels=True)
    plain = make(photos, labels=True)
    assert torch.equal(zipped.images, plain.images) and torch.equal(zipped.labels, plain.labels)
    assert torch.equal(zipped.holdout_indices, plain.holdout_indices)


def test_rectangular_and_grey_images(photos, make):
    assert make(photos, resolution=[4, 6]).shape == (3, 4, 6)
    data = make(photos, resolution=[6, 4], channels=1)
    assert data.shape == (1, 6, 4) and levels(data) == list(range(0, 200, 20))


def test_colour_is_converted_to_grey_by_luminance():
    array = Decoding(2, 2, 1, "crop")(encoded(Image.new("RGB", (2, 2), (255, 0, 0))))
    assert array.shape == (1, 2, 2) and set(array.ravel().tolist()) == {76}  # ITU-R 601: 0.299 of 255


def test_channels_are_red_green_blue():
    array = Decoding(2, 2, 3, "crop")(encoded(Image.new("RGB", (2, 2), (10, 20, 30))))
    assert array[:, 1, 1].tolist() == [10, 20, 30] and array.dtype == np.uint8


@pytest.mark.parametrize(
    ("image", "more", "expected"),
    [
        (Image.new("RGBA", (2, 2), (0, 0, 0, 0)), {}, [255, 255, 255]),
        (Image.new("RGBA", (2, 2), (255, 0, 0, 128)), {}, [255, 127, 127]),
        (Image.new("LA", (2, 2), (0, 0)), {}, [255, 255, 255]),
        (Image.new("P", (2, 2), 0), {"transparency": 0}, [255, 255, 255]),
        (Image.new("1", (2, 2), 1), {}, [255, 255, 255]),
    ],
    ids=["clear", "half", "LA", "palette", "bits"],
)
def test_transparency_is_put_over_white(image, more, expected):
    array = Decoding(2, 2, 3, "crop")(encoded(image, **more))
    assert array[:, 0, 0].tolist() == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_sixteen_bits_are_scaled_to_eight(level):
    sixteen = np.full((4, 4), level * 257, dtype=np.uint16)
    array = Decoding(4, 4, 3, "crop")(encoded(Image.fromarray(sixteen)))
    assert np.unique(array).tolist() == [level]


def test_dark_images_of_sixteen_bits_stay_dark():
    dark = np.full((4, 4), 200, dtype=np.uint16)  # 200 of 65535 is black, not light grey
    assert Decoding(4, 4, 1, "crop")(encoded(Image.fromarray(dark))).max() <= 1


def test_the_rotation_in_exif_is_applied():
    image = Image.new("RGB", (4, 2), "black")
    image.paste((255, 255, 255), (0, 0, 1, 2))  # the left column
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by a quarter clockwise: left becomes top
    array = Decoding(4, 2, 3, "stretch")(encoded(image, exif=exif))
    assert array[0].tolist() == [[255, 255], [0, 0], [0, 0], [0, 0]]


def test_crop_cuts_the_sides_off_and_stretch_keeps_them():
    wide = Image.new("RGB", (24, 8), (255, 0, 0))
    wide.paste((0, 0, 255), (8, 0, 16, 8))  # red, blue, red
    crop, stretch = (Decoding(8, 8, 3, fit)(encoded(wide)) for fit in ("crop", "stretch"))
    assert (crop[0] == 0).all() and (crop[2] == 255).all()
    assert stretch[0, 4, 0] > 200 and stretch[2, 4, 0] < 60
    assert stretch[2, 4, 4] > 200


def test_top_folders_are_the_classes(tmp_path, make):
    for name, level in (("cat", 10), ("ant", 20), ("bee", 30)):
        for number in range(3):
            save(tmp_path / "in" / name / f"sub{number}" / "a.png", grey(level))
    data = make(tmp_path / "in", labels=True)
    assert data.num_classes == 3
    assert {(int(row[0, 0, 0]), int(label)) for row, label in zip(data.images, data.labels, strict=True)} == {
        (20, 0),
        (30, 1),
        (10, 2),
    }
    save(tmp_path / "in" / "loose.png", grey(1))
    with pytest.raises(UserError, match=r"dataset\.labels=true: .* outside of class folders, such as loose\.png"):
        make(tmp_path / "in", labels=True)


@pytest.mark.parametrize("parts", [("test",), ("val",), ("validation",), ("val", "test")])
def test_folders_train_and_test_are_the_split(tmp_path, make, parts):
    for part in ("train", *parts):
        for name in ("cat", "dog"):
            for number in range(4 if part == "train" else 2):
                level = number + 10 * (name == "dog") + 100 * (part != "train")
                save(tmp_path / "in" / part / name / f"{number}.png", grey(level))
    data = make(tmp_path / "in", labels=True)
    assert (len(data), len(data.holdout_indices), data.num_classes) == (8, 4 * len(parts), 2)
    assert (data.images[data.train_indices] < 100).all() and (data.images[data.holdout_indices] >= 100).all()
    assert data.labels[data.holdout_indices].tolist() == [0, 0, 1, 1] * len(parts)


def test_a_folder_train_beside_others_is_a_class(tmp_path, make):
    for part in ("train", "test", "more"):
        for number in range(5):
            save(tmp_path / "in" / part / f"{number}.png", grey(number))
    data = make(tmp_path / "in", labels=True, holdout=0.2)
    assert (len(data), len(data.holdout_indices), data.num_classes) == (12, 3, 3)


def test_unreadable_files_are_skipped_with_a_warning(photos, make, caplog):
    (photos / "text.png").write_text("no image")
    for _ in range(2):  # the second time from the cache, with the same warning
        caplog.clear()
        data = make(photos)
        warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert len(warnings) == 1 and "1 of 11 images cannot be read: text.png;" in warnings[0]
        assert levels(data) == list(range(0, 200, 20))


def test_unreadable_files_are_an_error_where_that_is_chosen(photos, make):
    (photos / "text.png").write_text("no image")
    make(photos)
    with pytest.raises(UserError, match=r"1 of 11 images cannot be read: text\.png; repair or remove"):
        make(photos, unreadable="fail")


def test_a_truncated_image_is_unreadable(photos, make, caplog):
    content = encoded(Image.effect_noise((64, 64), 50))
    (photos / "half.png").write_bytes(content[: len(content) // 2])
    assert levels(make(photos)) == list(range(0, 200, 20))
    assert "half.png" in caplog.text


def test_a_warning_of_many_unreadable_files_lists_ten(photos, make, caplog):
    for number in range(13):
        (photos / f"text{number:02}.png").write_text("no image")
    make(photos)
    assert "13 of 23 images" in caplog.text and "text09.png and 3 more" in caplog.text
    assert "text10" not in caplog.text


def test_a_dangling_link_is_unreadable(photos, make, caplog):
    (photos / "gone.png").symlink_to(photos / "nowhere.png")
    assert levels(make(photos)) == list(range(0, 200, 20))
    assert "1 of 11 images cannot be read: gone.png" in caplog.text


def test_an_unreadable_file_is_tried_again_the_next_time(photos, make, monkeypatch):
    read = Source.read

    def refuse(self, name):
        if name.endswith("/3.png"):
            raise PermissionError(errno.EACCES, "denied", name)
        return read(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(Source, "read", refuse)
        assert 60 not in levels(make(photos))
    assert levels(make(photos)) == list(range(0, 200, 20))


def test_a_folder_without_a_readable_image_is_an_error(tmp_path, make):
    (tmp_path / "in").mkdir()
    for number in range(2):
        (tmp_path / "in" / f"{number}.png").write_text("no image")
    for _ in range(2):
        with pytest.raises(UserError, match="none of its 2 images can be read"):
            make(tmp_path / "in")


def test_paths_without_images_are_errors(tmp_path, make):
    with pytest.raises(UserError, match=r"dataset\.path=.*none: no such folder or zip"):
        make(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").write_text("")
    with pytest.raises(UserError, match=r"no images in it; they end in \.jpg"):
        make(tmp_path / "empty")
    (tmp_path / "file.zip").write_text("no zip")
    with pytest.raises(UserError, match="neither a folder nor a zip that can be read"):
        make(tmp_path / "file.zip")
    save(tmp_path / "one" / "a.png", grey(0))
    with pytest.raises(UserError, match="no image is left to train on; it has 1"):
        make(tmp_path / "one")


@pytest.mark.parametrize(
    "settings", [{"resolution": 0}, {"resolution": [4]}, {"holdout": 0.0}, {"holdout": 1.0}, {"limit": 0}]
)
def test_wrong_settings_are_refused(photos, make, settings):
    with pytest.raises(SettingError, match=f"{next(iter(settings))}="):
        make(photos, **settings)


def test_celebas_test_part_is_held_out_and_every_tenth_where_no_list_tells(tmp_path):
    settings = {"root": str(tmp_path), "download": False, "resolution": 8, "cache": str(tmp_path / "cache")}
    with pytest.raises(UserError, match=r"CelebA is not there, and dataset\.download=false") as caught:
        CelebA(**settings)
    assert str(tmp_path / "celeba" / "img_align_celeba") in str(caught.value)
    for number in range(20):
        save(tmp_path / "celeba" / "img_align_celeba" / f"{number:06}.jpg", grey(10 * number), size=(18, 22))
    data = CelebA(**settings)
    assert (len(data), data.holdout_indices.tolist(), data.shape, data.flip) == (18, [0, 10], (3, 8, 8), True)
    rows = [f"{number:06}.jpg {2 if number > 15 else number % 2}" for number in range(20)]
    (tmp_path / "celeba" / "list_eval_partition.txt").write_text("\n".join(rows) + "\n")
    assert CelebA(**settings).holdout_indices.tolist() == [16, 17, 18, 19]


def test_a_copy_of_a_folder_uses_the_same_cache(photos, make, tmp_path, monkeypatch):
    first = make(photos)
    before = folders(tmp_path / "cache")
    shutil.copytree(photos, tmp_path / "copy")
    monkeypatch.delattr(Decoding, "__call__")  # every image would be unreadable
    second = make(tmp_path / "copy")
    assert torch.equal(first.images, second.images)
    assert folders(tmp_path / "cache") == before and len(before) == 1


def test_each_decoding_has_a_cache_of_its_own(photos, make, tmp_path):
    for settings in ({}, {"resolution": 4}, {"channels": 1}, {"fit": "stretch"}):
        make(photos, **settings)
    assert len(folders(tmp_path / "cache")) == 4


def test_a_changed_image_is_decoded_into_another_cache(photos, make, tmp_path):
    make(photos)
    file = photos / "1" / "deep" / "3.png"
    save(file, grey(61))
    os.utime(file, ns=(1, 1))
    assert 61 in levels(make(photos)) and 60 not in levels(make(photos))
    assert len(folders(tmp_path / "cache")) == 2


def test_a_moved_image_is_decoded_into_another_cache(photos, make, tmp_path):
    make(photos)
    (photos / "1" / "deep" / "3.png").rename(photos / "0" / "deep" / "3.png")
    assert make(photos, labels=True).labels.tolist().count(0) == 6
    assert len(folders(tmp_path / "cache")) == 2


BROKEN = {
    "truncated": lambda folder: os.truncate(folder / "images.u8", 100),
    "longer": lambda folder: os.truncate(folder / "images.u8", 10_000),
    "no images": lambda folder: (folder / "images.u8").unlink(),
    "no meta": lambda folder: (folder / "meta.json").unlink(),
    "half meta": lambda folder: (folder / "meta.json").write_text('{"names": ["0/'),
    "binary meta": lambda folder: (folder / "meta.json").write_bytes(b"\xff\xfe\0"),
    "other meta": lambda folder: (folder / "meta.json").write_text("[1, 2]"),
    "names alone": lambda folder: (folder / "meta.json").write_text(
        json.dumps({"names": json.loads((folder / "meta.json").read_text())["names"]})
    ),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_a_broken_cache_is_built_again(photos, make, tmp_path, damage):
    make(photos)
    (name,) = folders(tmp_path / "cache")
    BROKEN[damage](tmp_path / "cache" / name)
    assert levels(make(photos)) == list(range(0, 200, 20))
    assert folders(tmp_path / "cache") == [name]
    meta = json.loads((tmp_path / "cache" / name / "meta.json").read_text())
    assert len(meta["names"]) == 10 and meta["unreadable"] == []


@pytest.mark.parametrize("index", ["", "[]", '{"0/deep/0.png": 3}', '{"0/deep/0.png": []}'])
def test_a_broken_index_is_written_again(photos, make, tmp_path, index):
    make(photos)
    (file,) = (tmp_path / "cache").glob("index-*.json")
    before = file.read_text()
    file.write_text(index)
    assert levels(make(photos)) == list(range(0, 200, 20))
    assert file.read_text() == before


@pytest.mark.parametrize("stale", [False, True], ids=["no cache", "a broken cache"])
def test_two_processes_that_decode_at_once_both_succeed(photos, make, tmp_path, monkeypatch, stale):
    make(photos)  # writes the index too
    (name,) = folders(tmp_path / "cache")
    if stale:
        BROKEN["truncated"](tmp_path / "cache" / name)
    else:
        shutil.rmtree(tmp_path / "cache" / name)
    build, gate, results, built, failed = image_decoding._build, threading.Barrier(2, timeout=5), [], [], []

    def together(*args):
        gate.wait()
        build(*args)
        built.append(1)

    monkeypatch.setattr(image_decoding, "_build", together)

    def work():
        try:
            results.append(decode_cached(Source(photos), Decoding(8, 8, 3, "crop"), root=tmp_path / "cache"))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and len(results) == len(built) == 2
    assert torch.equal(results[0][0], results[1][0]) and results[0][1] == results[1][1]
    assert sorted(results[0][0][:, 0, 0, 0].tolist()) == list(range(0, 200, 20))
    assert len(folders(tmp_path / "cache")) == 1
    assert not list((tmp_path / "cache").rglob("*tmp*"))


class FullDisk(io.BytesIO):
    def write(self, _):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("at", ["images.u8", "meta.json", "index"])
def test_a_full_disk_leaves_no_partial_cache(photos, make, tmp_path, monkeypatch, at):
    atomic_write = image_decoding.atomic_write

    def full(path, content, *args, **more):
        if path.name.startswith(at):
            raise OSError(errno.ENOSPC, "No space left on device")
        return atomic_write(path, content, *args, **more)

    with monkeypatch.context() as patch:
        if at == "images.u8":
            patch.setattr(image_decoding, "open", lambda *_: FullDisk(), raising=False)
        else:
            patch.setattr(image_decoding, "atomic_write", full)
        with pytest.raises(OSError) as caught:
            make(photos)
    assert caught.value.errno == errno.ENOSPC
    left = [path.name for path in (tmp_path / "cache").iterdir() if not path.name.startswith("index-")]
    assert left == []
    assert levels(make(photos)) == list(range(0, 200, 20))


def test_only_changed_files_are_read_again(photos, make, monkeypatch):
    make(photos)
    names, read = [], Source.read

    def counted(self, name):
        names.append(name)
        return read(self, name)

    monkeypatch.setattr(Source, "read", counted)
    make(photos)
    assert names == []
    file = photos / "0" / "deep" / "4.png"
    os.utime(file, ns=(1, 1))  # touched: read for its hash, which is the same, so nothing is decoded
    make(photos)
    assert names == ["0/deep/4.png"]
    names.clear()
    save(photos / "0" / "deep" / "new.png", grey(33))
    Source(photos).fingerprints(photos.parent / "cache")
    assert names == ["0/deep/new.png"]


def test_a_folder_around_all_others_is_not_a_class(tmp_path, make):
    for kind in ("cat", "dog"):
        for number in range(4):
            save(tmp_path / "zipped" / "photos" / kind / f"{number}.png", grey(40 * number))
    assert make(tmp_path / "zipped", labels=True).num_classes == 2


def test_a_format_that_could_start_a_program_is_not_opened(photos, make, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "script.eps")
    shutil.copy(tmp_path / "script.eps", photos / "script.png")
    with pytest.raises(UserError, match=r"1 of 11 images cannot be read: script\.png"):
        make(photos, unreadable="fail")


def test_decoding_waits_for_a_slow_disk(photos, make, monkeypatch):
    """The number of decoded images in memory does not grow with the number of images."""
    for number in range(300):
        save(photos / f"{number}.png", grey(number % 256), size=(2, 2))
    monkeypatch.setattr(image_decoding, "THREADS", 2)
    started, waiting, call = [], [], Decoding.__call__

    def counted(self, content):
        started.append(1)
        return call(self, content)

    class Slow(io.FileIO):
        def write(self, content):
            written.append(1)
            waiting.append(len(started) - len(written))
            return super().write(content)

    written = []
    monkeypatch.setattr(Decoding, "__call__", counted)
    monkeypatch.setattr(image_decoding, "open", lambda path, mode: Slow(path, "w"), raising=False)
    assert len(make(photos).images) == len(started) == 310
    assert max(waiting) <= 8
