"""Which files of a folder or zip are images, and what is said of the others."""

import errno
import os
import shutil
import struct
import zipfile

import pytest
import torch
from pictures import encoded, grey, levels, save
from PIL import Image

from gancli.datasets.cache import decode_cached
from gancli.datasets.decoding import Decoding
from gancli.datasets.files import LARGEST, find_images
from gancli.errors import UserError


def test_images_in_nested_folders_are_found_and_hidden_files_are_not(photos, read_folder):
    save(photos / "loose.JPG", grey(255))
    save(photos / ".hidden" / "a.png", grey(7))
    save(photos / "__MACOSX" / "a.png", grey(7))
    (photos / "notes.txt").write_text("no image")
    data = read_folder(photos)
    assert levels(data) == [*range(0, 200, 20), 255]
    assert data.shape == (3, 8, 8) and data.num_classes == 0 and data.labels is None
    assert (len(data.train_indices), len(data.holdout_indices)) == (10, 1)
    assert sorted([*data.train_indices.tolist(), *data.holdout_indices.tolist()]) == list(range(11))
    batch, labels = data.batch(0, size=10, seed=0)
    assert labels is None and batch.shape == (10, 3, 8, 8) and batch.min() >= -1 and batch.max() <= 1


def test_a_zip_is_read_like_the_folder(photos, read_folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for file in sorted(photos.rglob("*.png")):
            archive.write(file, file.relative_to(photos))
        archive.writestr("__MACOSX/0/._0.png", b"junk")
        archive.writestr("readme.txt", b"text")
    zipped = read_folder(tmp_path / "in.zip", labels=True)
    plain = read_folder(photos, labels=True)
    assert torch.equal(zipped.images, plain.images) and torch.equal(zipped.labels, plain.labels)
    assert torch.equal(zipped.holdout_indices, plain.holdout_indices)


def test_paths_without_images_are_errors(tmp_path, read_folder):
    with pytest.raises(UserError, match=r"dataset\.path=.*none: no such folder or zip"):
        read_folder(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").write_text("")
    with pytest.raises(UserError, match=r"no images in it; they end in \.jpg"):
        read_folder(tmp_path / "empty")
    (tmp_path / "file.zip").write_text("no zip")
    with pytest.raises(UserError, match="neither a folder nor a zip that can be read"):
        read_folder(tmp_path / "file.zip")
    save(tmp_path / "one.png", grey(0))
    with pytest.raises(UserError, match="is one image; name the folder that holds it"):
        read_folder(tmp_path / "one.png")
    save(tmp_path / "one" / "a.png", grey(0))
    with pytest.raises(UserError, match="no image is left to train on; it has 1"):
        read_folder(tmp_path / "one")


def test_linked_folders_are_read_and_circles_are_not(photos, tmp_path, caplog):
    save(tmp_path / "real" / "dogs" / "a.png", grey(1))
    (photos / "dogs").symlink_to(tmp_path / "real" / "dogs")
    (photos / "again").symlink_to(photos / "0")
    (photos / "0" / "up").symlink_to(photos)
    (photos / "around").symlink_to(tmp_path)
    names = find_images(photos).names
    assert len(names) == 11 and "dogs/a.png" in names
    assert "lead to folders that are read already or hold this one: again, around, 0/up" in caplog.text


def test_folders_that_cannot_be_listed_are_named(photos, read_folder, monkeypatch, caplog):
    (photos / "cats").symlink_to(photos / "nowhere")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("/1/deep"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert levels(read_folder(photos)) == [0, 40, 80, 120, 160]
    assert "folders left out: 1 no such file or directory (cats); 1 permission denied (1/deep)" in caplog.text
    with pytest.raises(UserError, match=r"folders cannot be listed: .*\(cats\)"):
        read_folder(photos, unreadable="fail")


def test_pictures_of_all_endings_are_read_and_others_are_counted(photos, caplog):
    jpeg = encoded(Image.new("RGB", (8, 8)), "jpeg")
    for name in ("a.jfif", "b.JPE", "c", "0/2f8a.7c"):  # the last has no ending that is known
        (photos / name).write_bytes(jpeg)
    for name in ("d.heic", "e.HEIC", "f.svg", "README", "Thumbs.db", ".g.jpg"):
        (photos / name).write_bytes(b"no picture")
    assert {"a.jfif", "b.JPE", "c"} == {name for name in find_images(photos).names if "/" not in name}
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "files left out, by their endings: 2 .heic, 1 .7c, 1 .svg, 1 without one" in record.getMessage()


def test_captions_beside_pictures_are_no_warning(photos, caplog):
    caplog.set_level("INFO")
    (photos / "0.txt").write_text("a digit")
    assert len(find_images(photos).names) == 10
    (record,) = caplog.records
    assert record.levelname == "INFO" and "files left out, by their endings: 1 .txt" in record.getMessage()


def test_pipes_are_no_files(photos, caplog):
    os.mkfifo(photos / "pipe.png")
    (photos / "null.png").symlink_to("/dev/null")
    assert len(find_images(photos).names) == 10
    assert "pipes and devices are no files: null.png, pipe.png" in caplog.text


def test_names_are_shown_without_terminal_escapes(photos, read_folder, caplog):
    (photos / "a\x1b[31m\nb.png").write_text("no picture")
    with open(os.fsencode(photos) + b"/\xff.png", "w"):
        pass
    read_folder(photos)
    assert r"1 no picture of a kind that is read (a\x1b[31m\x0ab.png)" in caplog.text
    assert r"1 empty (\xff.png)" in caplog.text


def zipped(path, entries, packing=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def changed(path, *, flag=None, method=None, size=None, entries=None):
    """Overwrites fields of the first entries of a zip, in both of its directories."""
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at, done = data.find(mark), 0
        while at >= 0 and done != entries:
            for value, place in ((flag, offset), (method, offset + 2)):
                if value is not None:
                    struct.pack_into("<H", data, at + place, value)
            if size is not None:
                struct.pack_into("<I", data, at + offset + 16, size)
            at, done = data.find(mark, at + 4), done + 1
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"flag": 1}, "locked with a password"),
        ({"method": 9}, "compressed by Deflate64, which is not read"),
        ({"size": LARGEST + 1}, "too large, above 512 MiB"),
    ],
    ids=["password", "method", "size"],
)
def test_entries_of_a_zip_that_cannot_be_read(photos, read_folder, tmp_path, caplog, change, reason):
    entries = [(file.name, file.read_bytes()) for file in sorted(photos.rglob("*.png"))]
    with pytest.raises(UserError, match=f"none of the images in this zip can be read: 10 {reason}"):
        find_images(changed(zipped(tmp_path / "all.zip", entries), **change))
    read_folder(changed(zipped(tmp_path / "two.zip", entries), entries=2, **change))
    assert f"2 of 10 images cannot be read: 2 {reason} (0.png, 1.png)" in caplog.text or "2.png" in caplog.text


def test_names_in_zips(photos, tmp_path, caplog):
    picture = encoded(Image.new("RGB", (8, 8)))
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = zipped(
            tmp_path / "in.zip",
            [
                *(("cats\\a.png", picture), ("/dogs/./b.png", picture), ("../birds/c.png", picture), ("empty/", b"")),
                *(("same.png", b"no picture"), ("same.png", picture), ("__MACOSX/cats/._a.png", b"junk")),
            ],
        )
    files = find_images(path)
    assert files.names == ["birds/c.png", "cats/a.png", "dogs/b.png", "same.png"]
    assert files.folders == ["", "birds", "cats", "dogs", "empty"]
    assert files.read("same.png") == picture and "a later one in this zip has the same name: 1" in caplog.text


def test_names_in_zips_of_no_stated_encoding_are_taken_for_utf8(tmp_path):
    path = zipped(tmp_path / "in.zip", [("кот/a.png", encoded(Image.new("RGB", (8, 8))))])
    assert find_images(changed(path, flag=0)).names == ["кот/a.png"]


def test_a_zip_that_is_cut_short_says_so(photos, tmp_path):
    path = zipped(tmp_path / "in.zip", [("a.png", encoded(Image.new("RGB", (8, 8))))])
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match="the zip is cut short, split or damaged"):
        find_images(path)


def test_large_files_are_refused_by_their_size(photos, monkeypatch):
    os.truncate(photos / "0" / "deep" / "0.png", LARGEST + 1)  # a file with a hole, which takes no room
    monkeypatch.delattr("gancli.datasets.files.FolderImages.read")
    with (
        pytest.raises(Exception, match="too large, above 512 MiB"),
        find_images(photos).content("0/deep/0.png"),
    ):
        pass


def a_run(folder, *files):
    for name in ("config.yaml", "run.json", *files):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    save(folder / "samples" / "a.png", grey(1))
    save(folder / "samples.png", grey(2))


@pytest.mark.parametrize("kind", ["finished", "begun", "in the folder of the data", "in a zip"])
def test_the_pictures_of_runs_are_no_data(photos, caplog, kind):
    caplog.set_level("INFO")
    before = find_images(photos).names
    folder = photos if kind == "in the folder of the data" else photos / "outputs" / "train" / "now"
    a_run(folder)
    if kind == "begun":
        shutil.rmtree(folder)
        save(folder / "samples.png", grey(2))
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "config.yaml").write_text("{}")
    if kind == "in a zip":
        photos = shutil.make_archive(str(photos), "zip", photos)
    files = find_images(type(folder)(photos))
    assert files.names == before and "outputs" not in files.folders and "samples" not in files.folders
    assert "left out, as runs and their pictures: " in caplog.text


def test_files_without_pictures_of_runs_keep_their_folder(photos, tmp_path):
    (photos / "config.yaml").write_text("{}")  # alone it is no run
    assert len(decode_cached(find_images(photos), Decoding(8, 8, 3, "crop"), root=tmp_path / "cache").names) == 10
