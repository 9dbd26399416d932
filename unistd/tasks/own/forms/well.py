"""HDF5 of The Well (PolymathicAI): trajectories on a plane; scalars are a channel, vectors and tensors several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unistd.tasks.files import DataFileError, in_words
from unistd.tasks.hdf5 import Hdf5Array, names_in, open_datasets
from unistd.tasks.own.description import OwnTask
from unistd.tasks.own.forms.arrays import array_records
from unistd.tasks.own.records import Record

GROUPS = ("t0_fields", "t1_fields", "t2_fields")  # scalars, vectors, tensors: the number of axes behind the plane's


@dataclass(frozen=True)
class _Field:
    """A field as (n, t, h, w, c), its components as channels."""

    stored: Hdf5Array

    @property
    def path(self) -> Path:
        return self.stored.path

    @property
    def dtype(self) -> np.dtype:
        return self.stored.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.stored.shape[:4], int(np.prod(self.stored.shape[4:], dtype=np.int64)))

    def rows(self, start: int, stop: int) -> np.ndarray:
        """[start:stop] along the trajectories."""
        return self.stored.rows(start, stop).reshape(stop - start, *self.shape[1:])


def records(paths: Sequence[Path], root: Path, task: OwnTask) -> list[Record]:
    """See `records_of`."""
    found = []
    for path in paths:
        names = names_in(path, *GROUPS)
        keys = {name: f"{group}/{name}" for group in GROUPS for name in names[group]}
        if not keys:
            raise DataFileError(f"{path}: no fields in {', '.join(GROUPS)}, expected a file of The Well")
        if wrong := [name for name in task.variables if name not in keys]:
            raise DataFileError(
                f"{path}: no field {in_words(wrong[0])}, expected one of {in_words(list(keys)[:8], 200)}"
            )
        chosen = [keys[name] for name in task.variables or keys]
        fields = []
        for key, stored in zip(chosen, open_datasets(path, *chosen), strict=True):
            axes = 4 + GROUPS.index(key.split("/")[0])
            if len(stored.shape) != axes:
                shape = in_words(stored.shape)
                raise DataFileError(
                    f"{path}: {key!r} is {shape}, expected {axes} axes: trajectories, time, a plane of x and y"
                )
            fields.append(_Field(stored))
        for field in fields:
            if field.shape[:4] != fields[0].shape[:4]:
                raise DataFileError(f"{path}: fields {fields[0].shape[:4]} and {field.shape[:4]}, expected one shape")
        found += _together(path, fields)
    return found


def _together(path: Path, fields: Sequence[_Field]) -> list[Record]:
    """The trajectories, the channels of all fields in each frame."""
    parts = [array_records(path, [field], "nthwc") for field in fields]
    if len(parts) == 1:
        return parts[0]
    return [
        Record(
            first.path, first.name, first.times, False, _Side([first.read, *(other.read for other in others)]), [path]
        )
        for first, *others in zip(*parts, strict=True)
    ]


@dataclass(frozen=True)
class _Side:
    """Reads the channels of several fields."""

    reads: Sequence

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """rows (n,) -> (n, C, h, w)."""
        return np.concatenate([read(rows) for read in self.reads], axis=1)
