"""Arrays in .npy files, and in .npz archives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unistd.tasks.files import DataFileError
from unistd.tasks.npy import open_npy
from unistd.tasks.own.description import OwnTask
from unistd.tasks.own.forms.arrays import array_records, axes_of
from unistd.tasks.own.records import Record


def records(paths: Sequence[Path], root: Path, task: OwnTask) -> list[Record]:
    """See `records_of`."""
    if task.time is not None:
        raise DataFileError(
            f"{paths[0]}: time {task.time!r}, expected null for arrays, whose frames follow one another"
        )
    found = []
    for path in paths:
        if task.variable is not None:
            raise DataFileError(f"{path}: variable {task.variable!r}, expected null for .npy, which holds one array")
        arrays = [open_npy(path)]
        axes = axes_of(path, "array", arrays[0].shape, task.axes)
        found += array_records(path, arrays, axes)
    return found
