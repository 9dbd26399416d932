"""How every reader finds and opens files: what is missing, no file, or not meant as it lies there is named in one line.

Nothing here waits for a pipe, and nothing that lies where a task's files belong is passed over: a dangling link of the
right name is an error, since made-up data would take its place.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from unistd import files

_LARGE, _EXPANSION = 64 << 20, 100
_ENTRIES = 10_000  # of a root's subfolders that are searched for files in the wrong place

Stamp = tuple[int, int]  # size and time of last change of a file: other ones, another content


class DataFileError(ValueError):
    """A data file that is missing, truncated or not what its format says. The message, one line, names the file."""


def open_file(path: Path) -> BinaryIO:
    """Opens a file for reading.

    Raises:
        DataFileError: nothing there, a dangling or looping link, not permitted, or a folder, pipe, socket or device.
    """
    _require(path, "a file")
    try:
        return files.open_file(path)
    except OSError as error:
        raise _unreadable(path, error) from None


def list_folder(folder: Path) -> list[str]:
    """Sorted names of all that lies in a folder.

    Raises:
        DataFileError: nothing there, a dangling or looping link, not permitted, or not a folder.
    """
    _require(folder, "a folder")
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise _unreadable(folder, error) from None


def data_folder(root: str | Path) -> Path:
    """`root` as a folder that is there and can be listed; raises DataFileError."""
    if not str(root):
        raise DataFileError("data root '': expected the folder of the tasks' data files")
    list_folder(Path(root))
    return Path(root)


def stamp_of(file: BinaryIO) -> Stamp:
    """Size in bytes and time of last change of an open file."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def check_expansion(path: Path, what: str, declared: int, stored: int) -> None:
    """Raises a DataFileError where compressed content declares far more bytes than data of its kind unpack to.

    Measurements shrink 2 to 20 times; 100 times and more than 64 MiB is a small file that would fill the memory.
    """
    if declared > max(_LARGE, _EXPANSION * stored):
        raise DataFileError(
            f"{path}: {what} declares {declared} bytes in {stored} that are stored, expected at most "
            f"{_EXPANSION} times as many"
        )


def in_words(content: object, length: int = 60) -> str:
    """repr(), cut: what a damaged file holds can be of any length, and hold line breaks."""
    text = repr(content)
    return text if len(text) <= length else f"{text[:length]}..."


@dataclass(frozen=True)
class FileNames:
    """What the files of a task are called and where they lie: in a folder of its own below the root, or in the root.

    Args:
        task: name of the task.
        folders: lower-case names that the task's folder goes by, the first choice first.
        known: matches the names of the files that are read.
        alike: matches names that are meant as such files and are spelt otherwise, or are of a form that is not read.
        expected: the names that are read, for people.
        inside: further folders that the files may lie in, in the task's folder, which the root can be itself.
    """

    task: str
    folders: tuple[str, ...]
    known: re.Pattern[str]
    alike: re.Pattern[str]
    expected: str
    inside: tuple[str, ...] = ()

    def find(self, root: Path) -> Path | None:
        """The first folder that holds files of the task, whatever their state; None where nothing is meant as such.

        Raises:
            DataFileError: the task's folder is there without a file that is read, or not a folder; a file is there
                that must be the task's by its name, but has not the name, or lies one level too deep.
        """
        return next(self.find_all(root), None)

    def find_all(self, root: Path) -> Iterator[Path]:
        """All folders that hold files of the task, the first choice first; raises as `find` does."""
        homes = [name for name in list_folder(root) if name.lower() in self.folders]
        homes.sort(key=lambda name: self.folders.index(name.lower()))
        found, strays = False, []
        for folder in self._places(root, [root / name for name in homes]):
            names = list_folder(folder)
            strays += [folder / name for name in names if self._stray(name)]
            held = any(map(self.known.search, names))
            if strays and (held or found):
                raise DataFileError(f"{strays[0]}: would be left out, expected {self.expected}")
            if held:
                found = True
                yield folder
        if found:
            return
        if homes:
            held = list_folder(root / homes[0])
            raise DataFileError(
                f"{root / homes[0]}: found no files of task {self.task!r} (but {in_words(held[:3])}), "
                f"expected {self.expected}"
            )
        for path in _shallow(root):
            if self._stray(path.name) or self.known.search(path.name):
                raise DataFileError(
                    f"{path}: looks like a file of task {self.task!r}, but only {self.expected} in "
                    f"{root} or {root / self.folders[0]} are read"
                )

    def _places(self, root: Path, homes: list[Path]) -> Iterator[Path]:
        for base in [*homes, root]:
            yield base
            if base != root or Path(os.path.abspath(root)).name.lower() in self.folders:
                yield from filter(Path.is_dir, (base / name for name in self.inside))

    def files_in(self, folder: Path) -> list[Path]:
        """Those of a folder that are read, sorted."""
        return [folder / name for name in list_folder(folder) if self.known.search(name)]

    def _stray(self, name: str) -> bool:
        return self.alike.search(name) is not None and self.known.search(name) is None


def _shallow(root: Path) -> Iterator[Path]:
    """What lies in a root and in its folders; only so many entries, since a root can hold millions."""
    folders = []
    for name in list_folder(root):
        yield root / name
        if (root / name).is_dir() and not (root / name).is_symlink():
            folders.append(root / name)
    yield from islice((Path(entry) for folder in folders for entry in _entries(folder)), _ENTRIES)


def _entries(folder: Path) -> Iterator[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError:  # somebody else's folder, which is not ours to read
        return


def _require(path: Path, expected: str) -> None:
    found = files.kind(path)
    if found == "nothing":
        raise DataFileError(f"{path}: no such {expected.split()[-1]}")
    if found != expected:
        raise DataFileError(f"{path}: found {found}, expected {expected}")


def _unreadable(path: Path, error: OSError) -> DataFileError:
    return DataFileError(f"{path}: cannot be read ({error.strerror or error})")
