from __future__ import annotations

import errno
import logging
import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gancli.distributed.process_group import SINGLE_PROCESS
from gancli.errors import InvalidTensorFile, UserError
from gancli.files.atomic import atomic_write
from gancli.randomness import Stream, random_state, seeded
from gancli.training.checkpoint import FORMAT, Checkpoints, read


def state(value: float = 1.0) -> dict[str, Any]:
    weights = {"weight": torch.full((16, 16), value), "steps": torch.tensor(3)}
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "betas": (0.5, 0.9)}]}
    counts = {"step": 3, "samples": 10, "num_classes": 0, "threads": 1, "rollbacks": 0, "seconds": 1.5, "lr_factor": 1}
    evaluation = {"scale": [], "seconds": 0, "first": None, "best": 2.5, "best_images": 0, "healthy_images": 0}
    health = {"accuracy": 0.5, "norms": [1.0], "last": {}, "most": {"diversity": 0.9}}
    return {
        **counts,
        "shape": [1, 16, 16],
        "generator": weights,
        "discriminator": {},
        "ema": {},
        "optimizers": {"generator": optimizer, "discriminator": optimizer},
        "augment": {},
        "logging": {"sums": {"loss": [2.5, 2]}, "latest": {}},
        "evaluation": {**evaluation, "health": health},
        "random": random_state(Stream(seeded(0), device=torch.device("cpu"))),
    }


def value_of(found: dict[str, Any] | None) -> float:
    assert found is not None
    return found["generator"]["weight"][0, 0].item()


@pytest.fixture
def two(tmp_path: Path) -> Checkpoints:
    """Checkpoints after 100 and 200 images, of which 200 is to be damaged."""
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    checkpoints.save(state(1.0), images=100)
    checkpoints.save(state(2.0), images=200)
    return checkpoints


def test_read_gives_back_what_was_saved(two: Checkpoints) -> None:
    found = read(two.path(200))
    expected = state(2.0)
    assert torch.equal(found["generator"]["weight"], expected["generator"]["weight"])
    assert found["generator"]["weight"].dtype == torch.float32
    assert torch.equal(found["generator"]["steps"], torch.tensor(3))
    assert found["optimizers"]["generator"]["param_groups"] == expected["optimizers"]["generator"]["param_groups"]
    assert (found["seconds"], found["images"]) == (1.5, 200)


def test_names_sort_by_images(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=9)
    for images in (9, 1000, 20, 10**11, 0):
        checkpoints.save(state(images), images=images)
    (tmp_path / "images-12.pt").touch()
    (tmp_path / "best.pt").touch()
    assert checkpoints.files() == [checkpoints.path(images) for images in (0, 9, 20, 1000, 10**11)]
    assert sorted(file.name for file in checkpoints.files()) == [file.name for file in checkpoints.files()]
    assert value_of(checkpoints.newest()) == 1e11


def test_only_the_newest_stay_and_the_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    (tmp_path / "best.pt").touch()
    for images in (1, 2, 3, 4):
        path = checkpoints.save(state(), images=images)
        assert path == checkpoints.path(images)
        assert path.exists()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["best.pt", *(checkpoints.path(n).name for n in (3, 4))]


def test_what_was_just_saved_stays_beside_a_damaged_newer_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(state(2.0), images=200).write_bytes(b"damaged")
    assert checkpoints.save(state(1.0), images=100).exists()
    assert value_of(checkpoints.newest()) == 1.0


def test_nothing_there_is_no_state(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "absent").files() == []
    assert Checkpoints(tmp_path / "absent").newest() is None


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_skipped(two: Checkpoints, share: float, caplog: pytest.LogCaptureFixture) -> None:
    content = two.path(200).read_bytes()
    two.path(200).write_bytes(content[: int(share * len(content))])
    with pytest.raises(InvalidTensorFile):
        read(two.path(200))
    with caplog.at_level(logging.WARNING):
        assert value_of(two.newest()) == 1.0
    assert str(two.path(200)) in caplog.text
    assert two.pick("last")[0] == two.path(100)


def test_a_flipped_bit_in_a_weight_is_skipped(two: Checkpoints) -> None:
    content = bytearray(two.path(200).read_bytes())
    weight = content.index(torch.full((16, 16), 2.0).numpy().tobytes())
    content[weight + 500] ^= 1
    two.path(200).write_bytes(content)
    with pytest.raises(InvalidTensorFile, match="damaged"):
        read(two.path(200))
    assert value_of(two.newest()) == 1.0


def test_a_flipped_bit_anywhere_raises_nothing_else(two: Checkpoints) -> None:
    content = two.path(200).read_bytes()
    directory = content.index(b"PK\x01\x02")  # the list of contents, at the end
    refused = 0
    for position in [*range(0, directory, 16), *range(directory, len(content))]:
        damaged = bytearray(content)
        damaged[position] ^= 8
        two.path(200).write_bytes(damaged)
        try:
            assert value_of(read(two.path(200))) == 2.0
        except InvalidTensorFile:
            refused += 1
    assert refused > 100


def test_a_tensor_marked_as_a_folder_is_not_read_as_whatever_memory_holds(two: Checkpoints) -> None:
    content = bytearray(two.path(200).read_bytes())
    entry = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 1)
    while b"/data/0" not in content[entry : entry + 80]:
        entry = content.index(b"PK\x01\x02", entry + 1)
    content[entry + 38] ^= 0x10  # the external attribute "directory", which no check sum covers
    two.path(200).write_bytes(content)
    with pytest.raises(InvalidTensorFile):
        read(two.path(200))
    assert value_of(two.newest()) == 1.0


class Malicious:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.victim,)


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "plain pickle"])
def test_code_in_a_file_is_not_run(two: Checkpoints, tmp_path: Path, as_zip: bool) -> None:
    victim = tmp_path / "ran"
    bad = {"format": FORMAT, "images": 200, **state(2.0), "extra": Malicious(victim)}
    if as_zip:
        torch.save(bad, two.path(200))
    else:
        two.path(200).write_bytes(pickle.dumps(bad))
    with pytest.raises(InvalidTensorFile, match="refused" if as_zip else "damaged"):
        read(two.path(200))
    assert value_of(two.newest()) == 1.0
    assert not victim.exists()
    pickle.loads(pickle.dumps(Malicious(victim)))
    assert victim.exists(), "the trap works where it is let"


@pytest.mark.parametrize("content", [{"format": 1, "images": 200}, {"images": 200}, [1, 2]], ids=str)
def test_another_format_is_skipped(two: Checkpoints, content: Any) -> None:
    torch.save(content, two.path(200))
    with pytest.raises(InvalidTensorFile, match=r"format: is missing|not a mapping|has checkpoint format 1; "):
        read(two.path(200))
    assert value_of(two.newest()) == 1.0


def no_space(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_full_disk_leaves_everything_as_it_was(two: Checkpoints, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    before = sorted(two.folder.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(os, fails, no_space)
        with pytest.raises(OSError, match="No space left"):
            two.save(state(3.0), images=300)
        with pytest.raises(OSError, match="No space left"):
            two.save(state(3.0), images=200)
    assert sorted(two.folder.iterdir()) == before
    assert value_of(two.newest()) == 2.0


class FullDisk:
    """A file of which only the first bytes reach the disk."""

    def __init__(self, path: Path, mode: str) -> None:
        self.file = Path(path).open(mode)  # noqa: SIM115

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *_: Any) -> None:
        self.file.close()

    def write(self, content: bytes) -> None:
        self.file.write(bytes(content)[:10])
        no_space()


def test_a_write_cut_short_leaves_everything_as_it_was(two: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(two.folder.iterdir())
    monkeypatch.setattr("builtins.open", FullDisk)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(two.path(200), b"new content that does not fit")
    monkeypatch.undo()
    assert sorted(two.folder.iterdir()) == before
    assert value_of(read(two.path(200))) == 2.0


def test_an_interruption_leaves_nothing_behind_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "file", b"content")
    assert list(tmp_path.iterdir()) == []


def test_atomic_write_replaces_and_leaves_only_the_file(tmp_path: Path) -> None:
    atomic_write(tmp_path / "file", b"old")
    atomic_write(tmp_path / "file", memoryview(b"new"))
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"new"


def test_pick_by_name_and_number(two: Checkpoints) -> None:
    two.path(100).rename(two.folder / "best.pt")
    two.save(state(3.0), images=1300)
    for which, file, value in [
        ("last", two.path(1300), 3.0),
        ("best", two.folder / "best.pt", 1.0),
        (200, two.path(200), 2.0),
        ("1_300", two.path(1300), 3.0),
    ]:
        found, content = two.pick(which)
        assert (found, value_of(content)) == (file, value)


@pytest.mark.parametrize(
    ("which", "message"),
    [
        (150, "checkpoint=150: no such file in {folder}; say last or a number of images of: 100, 200"),
        (
            "best",
            "checkpoint=best: no evaluation chose a best one in {folder}; say last or a number of images of: 100, 200",
        ),
        ("newest", "checkpoint=newest: say last, best or a number of images"),
        ("-1", "checkpoint=-1: say last, best or a number of images"),
        ("../200", "checkpoint=../200: say last, best or a number of images"),
    ],
)
def test_pick_says_what_there_is_to_pick(two: Checkpoints, which: str | int, message: str) -> None:
    with pytest.raises(UserError) as caught:
        two.pick(which)
    assert str(caught.value) == message.format(folder=two.folder)


def test_pick_where_nothing_can_be_read(two: Checkpoints) -> None:
    for images in (100, 200):
        two.path(images).write_bytes(b"")
    with pytest.raises(UserError) as caught:
        two.pick("last")
    assert str(caught.value).startswith(f"{two.folder}: no readable checkpoint here; ")
    assert f"resume={two.folder.parent}" in str(caught.value)
    with pytest.raises(UserError, match=r"^checkpoint=200: .*images-000000000200\.pt is truncated or damaged"):
        two.pick(200)
    with pytest.raises(UserError, match=r"a number of images of: none$"):
        Checkpoints(two.folder / "empty").pick(5)


@pytest.mark.parametrize(("settings", "named"), [({"every": 0}, "every=0"), ({"keep": 0}, "keep=0")])
def test_bad_settings_are_named(tmp_path: Path, settings: dict[str, int], named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}: "):
        Checkpoints(tmp_path, **settings)


def test_the_main_process_chooses_for_all(tmp_path):
    """Here the main process found the older one only: its newer one is unreadable or not there yet."""
    checkpoints = Checkpoints(tmp_path, keep=3)
    for number in (1, 2):
        checkpoints.save(state(number), images=number)
    other = SimpleNamespace(is_main_process=False, broadcast_from_main=lambda function: 1)
    assert value_of(checkpoints.newest_on_all_processes(other)) == 1.0
    assert value_of(checkpoints.newest_on_all_processes(SINGLE_PROCESS)) == 2.0
    (tmp_path / "images-000000000001.pt").unlink()
    with pytest.raises(UserError, match="checkpoint=1"):
        checkpoints.newest_on_all_processes(other)
