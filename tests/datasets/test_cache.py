"""The cache of decoded images: when it is built, what a reader is told, and what happens when things go wrong."""

import errno
import io
import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from pictures import encoded, grey, levels, save
from PIL import Image

from gancli.datasets import cache
from gancli.datasets.cache import decode_cached
from gancli.datasets.decoding import Decoding
from gancli.datasets.files import FolderImages
from gancli.errors import UserError
from gancli.files.atomic import atomic_write


def folders(root):
    return sorted(path.name for path in root.iterdir() if path.is_dir())


def test_unreadable_files_are_skipped_with_a_warning(photos, read_folder, caplog):
    (photos / "text.png").write_text("no image")
    for _ in range(2):  # the second time from the cache, with the same warning
        caplog.clear()
        data = read_folder(photos)
        warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert (
            len(warnings) == 1
            and "1 of 11 images cannot be read: 1 no picture of a kind that is read (text.png);" in warnings[0]
        )
        assert levels(data) == list(range(0, 200, 20))


def test_unreadable_files_are_an_error_where_that_is_chosen(photos, read_folder):
    (photos / "text.png").write_text("no image")
    read_folder(photos)
    with pytest.raises(UserError, match=r"1 of 11 images cannot be read: .*\(text\.png\); repair or remove"):
        read_folder(photos, unreadable="fail")


def test_a_truncated_image_is_unreadable(photos, read_folder, caplog):
    content = encoded(Image.effect_noise((64, 64), 50))
    (photos / "half.png").write_bytes(content[: len(content) // 2])
    assert levels(read_folder(photos)) == list(range(0, 200, 20))
    assert "1 cut short (half.png)" in caplog.text


def test_a_warning_of_many_unreadable_files_lists_ten(photos, read_folder, caplog):
    for number in range(13):
        (photos / f"text{number:02}.png").write_text("no image")
    read_folder(photos)
    assert "13 of 23 images" in caplog.text and "text09.png and 3 more" in caplog.text
    assert "text10" not in caplog.text


def test_a_dangling_link_is_unreadable(photos, read_folder, caplog):
    (photos / "gone.png").symlink_to(photos / "nowhere.png")
    assert levels(read_folder(photos)) == list(range(0, 200, 20))
    assert "1 of 11 images cannot be read: 1 a link that leads nowhere (gone.png)" in caplog.text


def test_an_unreadable_file_is_tried_again_the_next_time(photos, read_folder, monkeypatch):
    read = FolderImages.read

    def refuse(self, name):
        if name.endswith("/3.png"):
            raise PermissionError(errno.EACCES, "denied", name)
        return read(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(FolderImages, "read", refuse)
        assert 60 not in levels(read_folder(photos))
    assert levels(read_folder(photos)) == list(range(0, 200, 20))


def test_a_fault_of_the_disk_while_decoding_is_no_property_of_the_picture(photos, read_folder, monkeypatch):
    original, faults = Decoding.with_remarks, iter([True])

    def once(self, content):
        if next(faults, False):
            raise OSError(errno.EIO, "Input/output error")
        return original(self, content)

    monkeypatch.setattr(Decoding, "with_remarks", once)
    with pytest.raises(OSError, match="Input/output error"):
        read_folder(photos)
    assert levels(read_folder(photos)) == list(range(0, 200, 20)), "all are read the next time"


def test_a_folder_without_a_readable_image_is_an_error(tmp_path, read_folder):
    (tmp_path / "in").mkdir()
    for number in range(2):
        (tmp_path / "in" / f"{number}.png").write_text("no image")
    for _ in range(2):
        with pytest.raises(UserError, match="none of its 2 images can be read"):
            read_folder(tmp_path / "in")


def test_a_format_that_could_start_a_program_is_not_opened(photos, read_folder, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "script.eps")
    shutil.copy(tmp_path / "script.eps", photos / "script.png")
    with pytest.raises(UserError, match=r"1 of 11 images cannot be read: .*\(script\.png\)"):
        read_folder(photos, unreadable="fail")


def test_a_copy_of_a_folder_uses_the_same_cache(photos, read_folder, tmp_path, monkeypatch):
    first = read_folder(photos)
    before = folders(tmp_path / "cache")
    shutil.copytree(photos, tmp_path / "copy")
    monkeypatch.delattr(Decoding, "with_remarks")  # every image would be unreadable
    second = read_folder(tmp_path / "copy")
    assert torch.equal(first.images, second.images)
    assert folders(tmp_path / "cache") == before and len(before) == 1


def test_each_decoding_has_a_cache_of_its_own(photos, read_folder, tmp_path):
    for settings in ({}, {"resolution": 4}, {"channels": 1}, {"fit": "stretch"}):
        read_folder(photos, **settings)
    assert len(folders(tmp_path / "cache")) == 4


def test_a_changed_image_is_decoded_into_another_cache(photos, read_folder, tmp_path):
    read_folder(photos)
    file = photos / "1" / "deep" / "3.png"
    save(file, grey(61))
    os.utime(file, ns=(1, 1))
    assert 61 in levels(read_folder(photos)) and 60 not in levels(read_folder(photos))
    assert len(folders(tmp_path / "cache")) == 2


def test_a_replaced_image_of_equal_size_and_time_is_another(photos, read_folder):
    file = photos / "1" / "deep" / "3.png"
    before = file.stat()
    assert 60 in levels(read_folder(photos))
    save(file, grey(61))
    assert file.stat().st_size == before.st_size
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert 61 in levels(read_folder(photos))


def test_a_moved_image_is_decoded_into_another_cache(photos, read_folder, tmp_path):
    read_folder(photos)
    (photos / "1" / "deep" / "3.png").rename(photos / "0" / "deep" / "3.png")
    assert read_folder(photos, labels=True).labels.tolist().count(0) == 6
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
def test_a_broken_cache_is_built_again(photos, read_folder, tmp_path, damage):
    read_folder(photos)
    (name,) = folders(tmp_path / "cache")
    BROKEN[damage](tmp_path / "cache" / name)
    assert levels(read_folder(photos)) == list(range(0, 200, 20))
    assert folders(tmp_path / "cache") == [name]
    meta = json.loads((tmp_path / "cache" / name / "meta.json").read_text())
    assert len(meta["names"]) == 10 and meta["unreadable"] == {}


@pytest.mark.parametrize("index", ["", "[]", '{"0/deep/0.png": 3}', '{"0/deep/0.png": []}'])
def test_a_broken_index_is_written_again(photos, read_folder, tmp_path, index):
    read_folder(photos)
    (file,) = (tmp_path / "cache").glob("index-*.json")
    before = file.read_text()
    file.write_text(index)
    assert levels(read_folder(photos)) == list(range(0, 200, 20))
    assert file.read_text() == before


def in_two_threads(work):
    """What both calls of `work` return, in any order."""
    with ThreadPoolExecutor(2) as pool:
        return [future.result(timeout=20) for future in [pool.submit(work) for _ in range(2)]]


@pytest.fixture
def counted_builds(monkeypatch):
    """`counted_builds(times)`: a list that grows with each cache built; all wait until `times` of them have begun."""

    def call(times):
        build, gate, built = cache._build, threading.Barrier(times, timeout=5), []

        def counted(*args, **known):
            gate.wait()
            build(*args, **known)
            built.append(1)

        monkeypatch.setattr(cache, "_build", counted)
        return built

    return call


@pytest.mark.parametrize("locks", [True, False], ids=["locks", "no locks"])
@pytest.mark.parametrize("stale", [False, True], ids=["no cache", "a broken cache"])
def test_two_processes_that_decode_at_once_both_succeed(
    photos, read_folder, tmp_path, monkeypatch, counted_builds, stale, locks
):
    read_folder(photos)  # writes the index too
    (name,) = folders(tmp_path / "cache")
    if stale:
        BROKEN["truncated"](tmp_path / "cache" / name)
    else:
        shutil.rmtree(tmp_path / "cache" / name)
    if not locks:
        monkeypatch.setattr(cache, "fcntl", None)
    built = counted_builds(1 if locks else 2)

    def work():
        files = FolderImages(photos, key="dataset.path")
        return decode_cached(files, Decoding(8, 8, 3, "crop"), root=tmp_path / "cache")

    first, second = in_two_threads(work)
    assert len(built) == (1 if locks else 2), "with locks, one waits for the other"
    assert torch.equal(first.images, second.images) and first[1:] == second[1:]
    assert sorted(first.images[:, 0, 0, 0].tolist()) == list(range(0, 200, 20))
    assert folders(tmp_path / "cache") == [name]


def test_what_a_killed_process_left_is_deleted(photos, read_folder, tmp_path):
    read_folder(photos)
    (key,) = folders(tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache" / key)
    for left in (f".{key}.123.4.tmp", ".another.123.4.tmp", ".busy.123.4.tmp"):
        (tmp_path / "cache" / left).mkdir()
    with cache._locked(tmp_path / "cache" / "busy"):
        (tmp_path / "cache" / ".busy.123.4.tmp").mkdir()  # one of the process that holds the lock
        read_folder(photos)
    assert folders(tmp_path / "cache") == [".busy.123.4.tmp", key]


class FullDisk(io.BytesIO):
    def write(self, _):
        raise OSError(errno.ENOSPC, "No space left on device")


def opening(images):
    """An `open` that opens `images.u8` by the function `images`."""
    return lambda path, mode: images(path) if mode == "wb" else open(path, mode)


@pytest.mark.parametrize("at", ["images.u8", "meta.json"])
def test_a_full_disk_leaves_no_partial_cache(photos, read_folder, tmp_path, monkeypatch, at):
    with monkeypatch.context() as patch:
        if at == "images.u8":
            patch.setattr(cache, "open", opening(lambda path: FullDisk()), raising=False)
        else:
            patch.setattr(cache, "atomic_write", full_at(at))
        with pytest.raises(OSError) as caught:
            read_folder(photos)
    assert caught.value.errno == errno.ENOSPC
    assert folders(tmp_path / "cache") == []
    assert levels(read_folder(photos)) == list(range(0, 200, 20))


def full_at(name):
    """An `atomic_write` for which the disk is full at the file `name`."""

    def write(path, content):
        if path.name.startswith(name):
            raise OSError(errno.ENOSPC, "No space left on device")
        return atomic_write(path, content)

    return write


def test_an_index_that_cannot_be_written_costs_time_only(photos, read_folder, monkeypatch, caplog):
    monkeypatch.setattr(cache, "atomic_write", full_at("index"))
    assert levels(read_folder(photos)) == list(range(0, 200, 20))
    assert "No space left on device; all images are read again the next time" in caplog.text


def test_only_changed_files_are_read_again(photos, read_folder, monkeypatch):
    read_folder(photos)
    names, read = [], FolderImages.read

    def counted(self, name):
        names.append(name)
        return read(self, name)

    monkeypatch.setattr(FolderImages, "read", counted)
    read_folder(photos)
    assert names == []
    file = photos / "0" / "deep" / "4.png"
    os.utime(file, ns=(1, 1))  # touched: read for its hash, which is the same, so nothing is decoded
    read_folder(photos)
    assert names == ["0/deep/4.png"]
    names.clear()
    save(photos / "0" / "deep" / "new.png", grey(33))
    cache.fingerprints(FolderImages(photos, key="dataset.path"), photos.parent / "cache")
    assert names == ["0/deep/new.png"]


def test_decoding_waits_for_a_slow_disk(photos, read_folder, monkeypatch):
    """The number of decoded images in memory does not grow with the number of images."""
    for number in range(300):
        save(photos / f"{number}.png", grey(number % 256), size=(2, 2))
    monkeypatch.setattr(cache, "THREADS", 2)
    started, waiting, decode = [], [], Decoding.with_remarks

    def counted(self, content):
        started.append(1)
        return decode(self, content)

    class Slow(io.FileIO):
        def write(self, content):
            written.append(1)
            waiting.append(len(started) - len(written))
            return super().write(content)

    written = []
    monkeypatch.setattr(Decoding, "with_remarks", counted)
    monkeypatch.setattr(cache, "open", opening(lambda path: Slow(path, "w")), raising=False)
    assert len(read_folder(photos).images) == len(started) == 310
    assert max(waiting) <= 8


def test_reasons_are_grouped(photos, read_folder, caplog, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    whole = encoded(Image.effect_noise((64, 64), 50))
    for number in range(2):
        (photos / f"half{number}.png").write_bytes(whole[: len(whole) // 2])
    (photos / "empty.png").write_bytes(b"")
    (photos / "page.jpg").write_text("\n<!DOCTYPE html><html>not found</html>")
    (photos / "phone.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(32))
    (photos / "pointer.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    (photos / "large.png").write_bytes(encoded(Image.new("1", (200, 200))))
    read_folder(photos)
    for reason in (
        *("7 of 17 images", "2 cut short (half0.png, half1.png)", "1 empty (empty.png)", "1 text such as HTML"),
        *(
            "1 HEIC, which is not read; convert",
            "1 pointers of Git LFS",
            "1 too large, above 20,000 pixels (large",
        ),
    ):
        assert reason in caplog.text


def test_the_content_hash_is_that_of_names_and_contents_wherever_they_lie(photos, read_folder, tmp_path):
    first = read_folder(photos).content_hash
    shutil.copytree(photos, tmp_path / "elsewhere" / "within")
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "in")
    others = [read_folder(tmp_path / name, resolution=4).content_hash for name in ("elsewhere", "packed.zip")]
    assert first and others == [first, first]
    save(photos / "1" / "deep" / "3.png", grey(61))
    changed = read_folder(photos).content_hash
    save(photos / "1" / "deep" / "30.png", grey(0))
    assert len({first, changed, read_folder(photos).content_hash}) == 3


def test_a_black_set_is_told(tmp_path, read_folder, caplog):
    twelve_bits = Image.fromarray(np.full((8, 8), 4000, dtype=np.uint16))
    for number in range(10):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{number}.png").write_bytes(encoded(twelve_bits))
    assert read_folder(tmp_path / "in").images.max() == 16
    assert "10 of 10 images are nearly black" in caplog.text and "dataset.white=4095" in caplog.text
    caplog.clear()
    assert read_folder(tmp_path / "in", white=4095).images.min() > 240 and not caplog.records


def test_what_is_odd_about_images_is_told_each_time(photos, read_folder, caplog):
    film = [Image.new("RGB", (8, 8), grey(level)) for level in (99, 0)]
    film[0].save(photos / "film.gif", save_all=True, append_images=film[1:])
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        assert 99 in levels(read_folder(photos))
        assert "images with several frames or pages, of which the first is taken: 1 (film.gif)" in caplog.text
