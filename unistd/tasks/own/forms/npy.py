"""Arrays in .npy files, and in .npz archives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unistd.tasks.files import DataFileError
from unistd.tasks.npy import open_npy
from unistd.tasks.npz import open_npz
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
        if path.name.lower().endswith(".npz"):
            arrays = [open_npz(path, variable) for variable in task.variables or [None]]
        elif task.variable is None:
            arrays = [open_npy(path)]
        else:
            raise DataFileError(f"{path}: variable {task.variable!r}, expected null for .npy, which holds one array")
        axes = axes_of(path, "array", arrays[0].shape, task.axes)
        found += array_records(path, arrays, axes)
    return found
