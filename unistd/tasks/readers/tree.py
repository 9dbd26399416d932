"""Where the files of a task lie below a root, where they are a tree of folders."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from unistd.tasks.files import DataFileError, in_words, list_folder

_NEIGHBOURS = 1000  # of a root's folders that are searched for a tree in the wrong place


@dataclass(frozen=True)
class Tree:
    """What the folder tree of a task looks like: it lies in a folder of the task's below the root, or is the root.

    Args:
        task: name of the task.
        folders: lower-case names that the task's folder goes by, the first choice first.
        holds: whether a folder is the top of the tree.
        expected: what is read, for people; where a task has several forms, all of them.
        inside: further folders that the tree may lie in, in the task's folder or the root.
        distinct: no other task's files look the same. Else the root is the tree only if it has the task's name.
    """

    task: str
    folders: tuple[str, ...]
    holds: Callable[[Path], bool]
    expected: str
    inside: tuple[str, ...] = ()
    distinct: bool = True

    def find(self, root: Path) -> Path | None:
        """The top of the tree, whatever its state; None where nothing is meant as such.

        Raises:
            DataFileError: the task's folder is there without the tree, or no folder; or the tree lies in a folder of
                another name.
        """
        names = list_folder(root)
        homes = [root / name for name in names if name.lower() in self.folders]
        homes.sort(key=lambda home: self.folders.index(home.name.lower()))
        itself = self.distinct or Path(os.path.abspath(root)).name.lower() in self.folders
        for base in [*homes, root] if itself else homes:
            if (top := self._within(base)) is not None:
                return top
        if homes:
            held = in_words(list_folder(homes[0])[:3])
            raise DataFileError(
                f"{homes[0]}: found no files of task {self.task!r} (but {held}), expected {self.expected}"
            )
        for top in self._elsewhere(root, names):
            raise DataFileError(
                f"{top}: looks like the files of task {self.task!r}, but only {root} and "
                f"{root / self.folders[0]} are searched for them"
            )
        return None

    def _elsewhere(self, root: Path, names: list[str]) -> Iterator[Path]:
        for name in names[:_NEIGHBOURS] if self.distinct else []:
            with suppress(DataFileError):  # what cannot be listed is nothing of the task's
                if (top := self._within(root / name)) is not None:
                    yield top

    def _within(self, base: Path) -> Path | None:
        held = list_folder(base)
        return next((top for top in (base, *(base / n for n in self.inside if n in held)) if self.holds(top)), None)


def files_of(folder: Path, known: re.Pattern[str], alike: re.Pattern[str], expected: str) -> list[Path]:
    """The files of a folder whose names are `known`, sorted; hidden ones are passed over.

    Raises DataFileError for one whose name is only `alike`: it would be left out without a word.
    """
    names = [name for name in list_folder(folder) if not name.startswith(".")]
    for name in names:
        if alike.search(name) and not known.search(name):
            raise DataFileError(f"{folder / name}: would be left out, expected {expected}")
    return [folder / name for name in names if known.search(name)]


def has(folder: Path, known: re.Pattern[str]) -> bool:
    """Whether a folder is there and has something of such a name in it."""
    return folder.is_dir() and any(known.search(name) for name in list_folder(folder))
