"""Which files a description means."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from unistd.tasks.files import DataFileError, data_folder, in_words, list_folder
from unistd.tasks.own.description import OwnTask
from unistd.tasks.own.forms import SAME_ENDINGS, form_of

_MOST_FILES = 2_000_000
_ZARR = ("zarr.json", ".zgroup", ".zarray", ".zmetadata")


def find_files(task: OwnTask, root: Path) -> tuple[str, list[Path], list[Path]]:
    """The form of the files that a description means, the files in the order of their names with numbers in them
    counted as such, and what lies among them and is of no form that is known.

    Raises:
        DataFileError: no such root, no file for one of the patterns, or files of several forms.
    """
    data_folder(root)
    paths: set[Path] = set()
    for pattern in task.patterns:
        found = set()
        for path in _matches(pattern, root):
            found |= {path} if not path.is_dir() or is_zarr(path) else set(_below(path))
            if len(found) > _MOST_FILES:
                raise DataFileError(f"{root / pattern}: more than {_MOST_FILES} files, expected fewer")
        if not found:
            there = in_words(list_folder(root)[:5])
            raise DataFileError(f"{root / pattern}: found no files (but in {root}: {there})")
        paths |= found
    forms = Counter(filter(None, map(form_of, paths)))
    form = task.form
    if form is None:
        if len(forms) != 1:
            kinds = " and ".join(sorted(forms)) or f"no known form ({in_words(sorted(p.name for p in paths)[:3])})"
            raise DataFileError(
                f"{root / task.patterns[0]}: files of {kinds}, expected one form; `files` or `form` says which"
            )
        (form,) = forms
    kept = [path for path in paths if form_of(path) == SAME_ENDINGS.get(form, form)] or list(paths)
    kept.sort(key=_in_order)
    return form, kept, sorted(paths - set(kept))


def place_of(task: OwnTask, root: Path) -> Path:
    """What is said to be read: the pattern, or the folder that several have in common."""
    if len(task.patterns) == 1:
        return root / task.patterns[0]
    return Path(os.path.commonpath([os.path.abspath(root / pattern) for pattern in task.patterns]))


def is_zarr(path: Path) -> bool:
    """Whether a folder is a zarr store."""
    return any((path / name).is_file() for name in _ZARR)


def _matches(pattern: str, root: Path) -> Iterator[Path]:
    if os.path.lexists(root / pattern):  # a name may have [ in it
        yield root / pattern
        return
    for name in glob.iglob(pattern, root_dir=root, recursive=True):
        yield root / name


def _below(folder: Path) -> Iterator[Path]:
    """All files below a folder but hidden ones; zarr stores as one."""
    for parent, folders, names in os.walk(folder):
        stores = [name for name in folders if is_zarr(Path(parent, name))]
        folders[:] = sorted(name for name in folders if name not in stores and not name.startswith("."))
        yield from (Path(parent, name) for name in (*stores, *names) if not name.startswith("."))


def _in_order(path: Path) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", str(path))
    return [
        (1, int(part), part) if number % 2 and len(part) < 1000 else (0, 0, part) for number, part in enumerate(parts)
    ]
