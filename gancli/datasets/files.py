"""The image files of a folder or a zip: which they are, and their content. Nothing is decoded here."""

from __future__ import annotations

import logging
import os
import struct
import zipfile
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from gancli.datasets.decoding import ENDINGS, begins_like_an_image
from gancli.datasets.memory_budget import MemoryBudget
from gancli.datasets.unreadable import Unreadable, grouped, listed
from gancli.errors import UserError, printable

log = logging.getLogger(__name__)
LARGEST = 2**29  # bytes of a file, unpacked
CONTENTS = MemoryBudget(2**30)  # of all files that are held at a time
# Of a run, besides files that are no pictures.
RUN_FILES = {"samples", "samples.png", "progress.png", "progress.gif", "theory", "checkpoints"}
COMPANIONS = frozenset(  # endings of files that commonly lie beside pictures
    (".txt", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".md", ".html", ".log", ".db", ".ini", ".npy")
)
LISTED_ENDINGS = 8
PACKINGS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}
OTHER_PACKINGS = {1: "Shrink", 6: "Implode", 9: "Deflate64", 93: "Zstandard", 95: "XZ", 98: "PPMd"}

NO_ZIP = (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error)  # what zipfile raises for one


class ImageFiles(ABC):
    """The image files of one data set.

    path: a folder or a zip. key: the setting that gave it, for messages. names: of the files, relative to the path,
    with slashes, in order. folders: those that images may lie in, empty ones too. unlisted: those that cannot be
    listed, with the reason. Raises UserError.
    """

    def __init__(
        self,
        path: Path,
        names: Iterable[str],
        folders: Iterable[str],
        *,
        key: str,
        unlisted: Mapping[str, str] | None = None,
    ) -> None:
        self.path, self.setting, self.unlisted = path, _setting(key, path), unlisted or {}
        names, folders = self._without_runs(list(names), set(folders))
        self.folders = sorted(folder for folder in folders if not is_hidden(folder))
        names = [name for name in names if not is_hidden(name)]
        self.names = sorted(name for name in names if self._is_image(name))
        self._tell_left_out(Counter(_ending(name) for name in set(names) - set(self.names)))

    @abstractmethod
    def size(self, name: str) -> int:
        """Returns the number of bytes that `read` gives. Raises OSError."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Returns the file's content. Raises Unreadable, OSError, and what zipfile raises."""

    @abstractmethod
    def beginning(self, name: str) -> bytes:
        """Returns the first 16 bytes. Raises what `read` raises."""

    @contextmanager
    def content(self, name: str) -> Iterator[bytes]:
        """Yields the file's content, once there is memory for it beside those of other threads."""
        size = self.size(name)
        if reason := _too_large(size):
            raise Unreadable(reason)
        with CONTENTS.taking(2 * size):  # reading from a zip holds it twice
            yield self.read(name)

    def _is_image(self, name: str) -> bool:
        ending = _ending(name)
        if ending:
            return ending in ENDINGS
        try:
            return begins_like_an_image(self.beginning(name))
        except Exception:  # it is left out either way
            return False

    def _without_runs(self, names: list[str], folders: set[str]) -> tuple[list[str], set[str]]:
        """Leaves out runs, whose pictures are no data, and says so. A run may lie in the very folder of the data."""
        runs = _run_folders(names)
        if not runs:
            return names, folders
        left = {name for name in runs | (RUN_FILES if "" in runs else set()) if name}
        kept = [name for name in names if left.isdisjoint([name, *_above(name)])]
        if len(kept) < len(names):
            log.info("%s: left out, as runs and their pictures: %s", self.setting, listed(sorted(left), 3))
        around = {folder for run in runs for folder in _above(run)}
        return kept, {folder for folder in folders - around if left.isdisjoint([folder, *_above(folder)])}

    def _tell_left_out(self, endings: Counter[str]) -> None:
        if not endings and self.names:
            return
        counts = [f"{count:,} {printable(ending) or 'without one'}" for ending, count in _most_common(endings)]
        found = listed(counts, LISTED_ENDINGS)
        if not self.names:
            hint = "; a zip is read where it is named itself" if ".zip" in endings else ""
            there = f", and there are {found}{hint}" if found else ""
            raise UserError(f"{self.setting}: no images in it; they end in {' '.join(ENDINGS)}{there}")
        level = logging.INFO if endings.keys() <= COMPANIONS else logging.WARNING
        log.log(level, "%s: files left out, by their endings: %s", self.setting, found)


class FolderImages(ImageFiles):
    """The image files of a folder and of those below it. Links are followed."""

    def __init__(self, path: Path, *, key: str) -> None:
        found, setting = _Walk(path), _setting(key, path)
        if "" in found.unlisted:
            raise UserError(f"{setting}: cannot be listed: {found.unlisted['']}")
        if found.unlisted:
            log.warning("%s: folders left out: %s", setting, grouped(found.unlisted))
        if found.again:
            text = "%s: links left out, since they lead to folders that are read already or hold this one: %s"
            log.warning(text, setting, listed(found.again))
        if found.no_files:
            log.warning("%s: left out, since pipes and devices are no files: %s", setting, listed(found.no_files))
        super().__init__(path, found.names, found.folders, key=key, unlisted=found.unlisted)

    def size(self, name: str) -> int:
        return (self.path / name).stat().st_size

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def beginning(self, name: str) -> bytes:
        with open(self.path / name, "rb") as file:
            return file.read(16)


class _Walk:
    """What lies in the folder `root` and below, each folder read once, hidden files left out.

    names: of the files. folders: that were read. unlisted: folders that cannot be, with the reason. again: links to
    folders that are read elsewhere or hold `root`. no_files: pipes, devices and sockets.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names, self.folders, self.again, self.no_files = list[str](), list[str](), list[str](), list[str]()
        self.unlisted: dict[str, str] = {}
        self._read = {_identity(folder) for folder in root.resolve().parents}
        self._waiting, self._links = deque([""]), deque[str]()
        while self._waiting or self._links:  # links wait until all that is no link has been read
            folder = (self._waiting or self._links).popleft()
            try:
                entries = self._entries(folder)
            except OSError as error:
                self._cannot_list(folder, error)
                continue
            for entry in entries:
                self._add(entry, f"{folder}/{entry.name}" if folder else entry.name)

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        identity = _identity(self.root / folder)
        if identity in self._read:
            self.again.append(folder)
            return []
        self._read.add(identity)
        with os.scandir(self.root / folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        self.folders.append(folder)
        return found

    def _add(self, entry: os.DirEntry[str], name: str) -> None:
        if is_hidden(entry.name) and entry.name != ".hydra":  # which tells the folder of a run
            return
        try:
            if entry.is_dir():
                (self._links if entry.is_symlink() else self._waiting).append(name)
            elif entry.is_file():
                self.names.append(name)
            elif os.stat(entry.path):  # raises OSError for a link that leads nowhere
                self.no_files.append(name)
        except OSError as error:
            if _ending(name) in ENDINGS:
                self.names.append(name)  # reading it tells why not
            else:
                self._cannot_list(name, error)

    def _cannot_list(self, folder: str, error: OSError) -> None:
        self.unlisted[folder] = (error.strerror or str(error)).lower()


class ZipImages(ImageFiles):
    """The image files of a zip."""

    def __init__(self, path: Path, *, key: str) -> None:
        setting = _setting(key, path)
        self.archive = _open_zip(path, setting)
        self.entries: dict[str, zipfile.ZipInfo] = {}
        folders, again = {""}, 0
        for entry in self.archive.infolist():
            name = _name_in_zip(entry)
            folders.update(_above(name))
            if entry.filename.endswith(("/", "\\")):
                folders.add(name)
            elif name:
                again += name in self.entries
                self.entries[name] = entry
        if again:
            text = "%s: files left out, since a later one in this zip has the same name: %s"
            log.warning(text, setting, f"{again:,}")
        super().__init__(path, self.entries, folders, key=key)
        refused = {name: reason for name in self.names if (reason := _refusal(self.entries[name]))}
        if len(refused) == len(self.names):
            raise UserError(f"{self.setting}: none of the images in this zip can be read: {grouped(refused)}")

    def size(self, name: str) -> int:
        return self.entries[name].file_size

    def read(self, name: str) -> bytes:
        reason = _refusal(self.entries[name])
        if reason is not None:
            raise Unreadable(reason)
        return self.archive.read(self.entries[name])

    def beginning(self, name: str) -> bytes:
        with self.archive.open(self.entries[name]) as file:
            return file.read(16)


def find_images(path: Path, *, key: str = "dataset.path") -> ImageFiles:
    """Returns the image files of a folder or a zip. key: the setting that gave it. Raises UserError."""
    if path.is_dir():
        return FolderImages(path, key=key)
    if path.is_file():
        return ZipImages(path, key=key)
    raise UserError(f"{key}={printable(path)}: no such folder or zip")


def count_images(path: Path) -> int | None:
    """Returns how many files of a folder or zip end as images do, None where none is found. Without a message."""
    try:
        if path.is_dir():
            names = _Walk(path).names
        else:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
    except (OSError, *NO_ZIP):
        return None  # reading the data says why
    return sum(_ending(name) in ENDINGS and not is_hidden(name) for name in names) or None


def is_hidden(name: str) -> bool:
    """Whether the file or folder, or one that it lies in, is meant for programs, not for people."""
    return any(part.startswith((".", "__MACOSX")) or part in ("Thumbs.db", "desktop.ini") for part in name.split("/"))


def without_common_folders(names: list[str]) -> tuple[list[str], str]:
    """Returns the names without the folders that all images lie in, such as the one that was zipped, and these."""
    parts = [name.split("/") for name in names]
    common = []
    while parts and min(map(len, parts)) > 2 and len({part[0] for part in parts}) == 1:
        common.append(parts[0][0])
        parts = [part[1:] for part in parts]
    return ["/".join(part) for part in parts], "".join(f"{folder}/" for folder in common)


def _open_zip(path: Path, setting: str) -> zipfile.ZipFile:
    try:
        with open(path, "rb") as file:
            beginning = file.read(16)
        return zipfile.ZipFile(path)
    except OSError as error:
        raise UserError(f"{setting}: cannot be read: {error.strerror or error}") from None
    except NO_ZIP as error:
        if beginning.startswith(b"PK"):
            raise UserError(f"{setting}: the zip is cut short, split or damaged ({error})") from None
        if begins_like_an_image(beginning):
            raise UserError(f"{setting}: is one image; name the folder that holds it") from None
        raise UserError(f"{setting}: neither a folder nor a zip that can be read") from None


def _setting(key: str, path: Path) -> str:
    return f"{key}={printable(path)}"


def _ending(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _most_common(endings: Counter[str]) -> list[tuple[str, int]]:
    return sorted(endings.items(), key=lambda item: (-item[1], not item[0], item[0]))


def _above(name: str) -> list[str]:
    """Returns the folders that `name` lies in, itself not among them."""
    parts = name.split("/")[:-1]
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]


def _run_folders(names: list[str]) -> set[str]:
    """Returns the folders with the files of a run; "" is the one that all names are relative to."""
    settings = _folders_with("config.yaml", names)
    composed = {folder.rpartition("/")[0] for folder in settings if folder.rpartition("/")[2] == ".hydra"}
    return composed | (settings & _folders_with("run.json", names) if settings else set())


def _folders_with(file: str, names: list[str]) -> set[str]:
    return {folder for folder, _, last in (name.rpartition("/") for name in names) if last == file}


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _name_in_zip(entry: zipfile.ZipInfo) -> str:
    """Returns the name with slashes, as programs for Windows do not always write it, and in the encoding it is in."""
    name = entry.filename
    if not entry.flag_bits & 0x800:  # no encoding is stated, for which zipfile takes the oldest
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", ".", ".."))


def _too_large(size: int) -> str | None:
    return f"too large, above {LARGEST >> 20} MiB" if size > LARGEST else None


def _refusal(entry: zipfile.ZipInfo) -> str | None:
    """Returns why the entry of a zip cannot be read, by what its directory says."""
    if entry.flag_bits & 1:
        return "locked with a password"
    if entry.compress_type not in PACKINGS:
        return f"compressed by {OTHER_PACKINGS.get(entry.compress_type, 'an unknown method')}, which is not read"
    return _too_large(entry.file_size)
