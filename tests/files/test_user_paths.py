"""Paths of the user where there is a home, where there is none, and where it cannot be written."""

import os
import pwd
from pathlib import Path

import pytest

from gancli.errors import UserError
from gancli.files import user_paths
from gancli.files.user_paths import cache_folder, expand


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """A home, a folder for temporary files, and no folder that an earlier test chose."""
    monkeypatch.setattr(user_paths, "_substitutes", {})
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)


@pytest.fixture
def homeless(monkeypatch):
    """A user whom the system does not know, as in a container."""

    def unknown(_):
        raise KeyError("not found")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(pwd, "getpwnam", unknown)


def test_a_setting_goes_before_xdg_and_that_before_the_home(monkeypatch, tmp_path):
    assert cache_folder("~/mine", key="cache") == tmp_path / "home" / "mine"
    assert cache_folder(None, key="cache") == tmp_path / "home" / ".cache" / "gancli"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says its specification
    assert cache_folder(None, key="cache") == tmp_path / "home" / ".cache" / "gancli"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder(None, key="cache") == tmp_path / "xdg" / "gancli"
    assert not list((tmp_path / "xdg" / "gancli").iterdir())  # whether it can be written leaves nothing behind


def test_a_home_that_cannot_be_written_costs_the_cache_not_the_run(tmp_path, caplog):
    (tmp_path / "home").write_text("a file")
    folder = cache_folder(None, key="dataset.cache")
    assert folder == tmp_path / f"gancli-cache-{os.getuid()}" and folder.stat().st_mode & 0o777 == 0o700
    assert cache_folder(None, key="evaluation.cache") == folder
    (record,) = caplog.records  # one warning is enough
    for part in (str(tmp_path / "home"), "Not a directory", str(folder), "dataset.cache", "XDG_CACHE_HOME"):
        assert part in record.getMessage()


def test_no_home_is_a_temporary_cache_and_a_tilde_an_error(homeless, tmp_path, caplog):
    assert cache_folder(None, key="dataset.cache").is_relative_to(tmp_path)
    assert "no home folder" in caplog.text
    with pytest.raises(UserError, match=r"^run=~/a: no such home"):
        expand("~/a", key="run")
    with pytest.raises(UserError, match=r"^dataset.cache=~nobody-here/a: no such home"):
        cache_folder("~nobody-here/a", key="dataset.cache")
    assert expand(2024) == Path("2024")


def test_a_temporary_folder_that_others_could_have_prepared_is_not_used(tmp_path):
    (tmp_path / "home").write_text("a file")
    (tmp_path / f"gancli-cache-{os.getuid()}").symlink_to(tmp_path / "theirs", target_is_directory=True)
    (tmp_path / "theirs").mkdir()
    folder = cache_folder(None, key="cache")
    assert folder.name.startswith("gancli-cache-") and folder.resolve() != tmp_path / "theirs"


def test_no_folder_at_all_is_an_error_that_names_the_key(monkeypatch, tmp_path):
    (tmp_path / "home").write_text("a file")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    with pytest.raises(UserError, match=r"^dataset.cache=null: .*Not a directory.*set dataset.cache"):
        cache_folder(None, key="dataset.cache")


def test_a_training_with_evaluations_needs_no_home(train, homeless, tmp_path, caplog):
    folder = train("evaluation.every=64", "evaluation.count=20", "evaluation.reference_count=50", "diagnostic=none")
    assert (folder / "evaluations.jsonl").exists()
    assert "set evaluation.cache, or XDG_CACHE_HOME for all caches" in caplog.text
    assert list((tmp_path / f"gancli-cache-{os.getuid()}").glob("features-*"))
