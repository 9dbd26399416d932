"""Data sets of HDF5 files, read in a process of their own: what crashes there is one line here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unistd.tasks.files import Stamp, check_expansion, open_file
from unistd.tasks.guarded import GuardedProcess


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


def open_datasets(path: Path, *keys: str) -> list[Hdf5Array]:
    """The data sets of those names (`group/name` below groups), checked, with none of their data read yet.

    Raises:
        DataFileError: not an HDF5 file, or one of them is missing; is not held by the file itself (links other than
            hard ones, external storage, virtual data sets); is not of plain numbers or texts; needs a filter that is
            not part of HDF5; is not written whole; declares far more than the file holds; or the library crashes on it.
    """
    open_file(path).close()
    answer, _ = _process.ask(path, {"keys": list(keys)})
    arrays = []
    for key, found in zip(keys, answer["datasets"], strict=True):
        shape, dtype = tuple(found["shape"]), np.dtype(found["dtype"])
        check_expansion(path, f"{key!r}", math.prod(shape) * dtype.itemsize, found["stored"])
        arrays.append(Hdf5Array(path, key, shape, dtype, tuple(answer["stamp"])))
    return arrays


def names_in(path: Path, *groups: str) -> dict[str, list[str]]:
    """Names of what is in groups of a file, sorted; raises DataFileError where it is not an HDF5 file."""
    open_file(path).close()
    answer, _ = _process.ask(path, {"groups": list(groups)})
    return {group: sorted(answer["names"][group]) for group in groups}


_process = GuardedProcess(Path(__file__).with_name("hdf5_process.py"), "HDF5")
