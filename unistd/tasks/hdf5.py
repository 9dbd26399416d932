"""Data sets of HDF5 files, read in a process of their own: what crashes there is one line here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unistd.tasks.files import DataFileError, Stamp, check_expansion, open_file
from unistd.tasks.guarded import GuardedProcess

LARGEST_ROW = 64 << 20  # bytes


@dataclass(frozen=True)
class Hdf5Array:
    """A data set of a file: shape (n, ...) and dtype, numbers or bytes."""

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype
    stamp: Stamp

    def rows(self, start: int, stop: int) -> np.ndarray:
        """[start:stop] along the first axis, in this machine's byte order.

        Raises:
            DataFileError: damaged there, or the file is not the one that was opened.
        """
        request = {"keys": [self.key], "rows": [start, stop], "stamp": list(self.stamp)}
        _, content = _process.ask(self.path, request, (stop - start, *self.shape[1:]), self.dtype)
        return content.astype(self.dtype.newbyteorder("="), copy=False)

    def row_ids(self, rows: Sequence[int]) -> np.ndarray:
        """What stands for the stored content of these rows, int64: found without unpacking, so that the same numbers
        that were packed otherwise have another. -1: never written; 0: nothing but zeros, as far as looked at."""
        request = {"keys": [self.key], "identify": list(rows), "stamp": list(self.stamp)}
        return np.array(_process.ask(self.path, request)[0]["ids"], np.int64)


def open_datasets(path: Path, *keys: str, by_rows: bool = False) -> list[Hdf5Array]:
    """The data sets of those names (`group/name` below groups), checked, with none of their data read yet.

    Args:
        by_rows: a few rows of them are to be in memory at a time. They may then declare any number of rows, and not
            all need to be written: to ask for one that is not raises DataFileError (see `Hdf5Array.row_ids`).

    Raises:
        DataFileError: not an HDF5 file, or one of them is missing; is not held by the file itself (links other than
            hard ones, external storage, virtual data sets); is not of plain numbers or texts; needs a filter that is
            not part of HDF5; is not written whole; declares far more than the file holds; or the library crashes on it.
    """
    open_file(path).close()
    answer, _ = _process.ask(path, {"keys": list(keys), **({"partial": True} if by_rows else {})})
    arrays = []
    for key, found in zip(keys, answer["datasets"], strict=True):
        shape, dtype = tuple(found["shape"]), np.dtype(found["dtype"])
        row = math.prod(shape[1:]) * dtype.itemsize
        if not by_rows:
            check_expansion(path, f"{key!r}", shape[0] * row, found["stored"])
        elif row > LARGEST_ROW:
            raise DataFileError(f"{path}: {key!r} has rows of {row} bytes, expected at most {LARGEST_ROW}")
        arrays.append(Hdf5Array(path, key, shape, dtype, tuple(answer["stamp"])))
    return arrays


def names_in(path: Path, *groups: str) -> dict[str, list[str]]:
    """Names of what is in groups of a file ("": at its top), sorted; raises DataFileError if it is not an HDF5 file."""
    open_file(path).close()
    answer, _ = _process.ask(path, {"groups": list(groups)})
    return {group: sorted(answer["names"][group]) for group in groups}


def numbers_in(path: Path, group: str) -> dict[str, int]:
    """The data sets of a group, each of which is a single whole number, by name; raises DataFileError otherwise."""
    open_file(path).close()
    return _process.ask(path, {"numbers": group})[0]["numbers"]


def whole(arrays: Sequence[Hdf5Array]) -> np.ndarray:
    """Arrays of one file, all of one shape and dtype, at once: (len(arrays), n, ...); raises as `Hdf5Array.rows`."""
    first = arrays[0]
    request = {"keys": [array.key for array in arrays], "whole": True, "stamp": list(first.stamp)}
    _, content = _process.ask(first.path, request, (len(arrays), *first.shape), first.dtype)
    return content.astype(first.dtype.newbyteorder("="), copy=False)


_process = GuardedProcess(Path(__file__).with_name("hdf5_process.py"), "HDF5")
