"""Variables of netCDF files, of the classic formats and of HDF5's, read a few rows at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unistd.tasks.files import DataFileError, Stamp, in_words, open_file, stamp_of
from unistd.tasks.hdf5 import LARGEST_ROW, Hdf5Array, names_in, open_datasets
from unistd.tasks.npy import NpyArray

_LONGEST_HEADER = 1 << 20  # bytes
_TYPES = {1: "i1", 2: "S1", 3: ">i2", 4: ">i4", 5: ">f4", 6: ">f8", 7: "u1", 8: ">u2", 9: ">u4", 10: ">i8", 11: ">u8"}
_DIMENSIONS, _VARIABLES, _ATTRIBUTES = 10, 11, 12
_HDF5 = b"\x89HDF\r\n\x1a\n"


def open_variables(path: Path, *names: str) -> list[NpyArray | Hdf5Array | None]:
    """Variables of a file, with none of their data read yet; None for one that is not there.

    Raises:
        DataFileError: not a netCDF file, or a variable that the file does not hold all of, or in another way than
            readers of rows can follow (see `open_datasets`; classic: between those of other variables).
    """
    with open_file(path) as file:
        stamp = stamp_of(file)
        start = file.read(_LONGEST_HEADER)
    if start.startswith(_HDF5):
        held = set(names_in(path, "")[""])
        there = [name for name in names if name in held]
        opened = dict(zip(there, open_datasets(path, *there, by_rows=True), strict=True)) if there else {}
        return [opened.get(name) for name in names]
    if start[:4] not in (b"CDF\x01", b"CDF\x02", b"CDF\x05"):
        raise DataFileError(f"{path}: not a netCDF file (it starts with {start[:8]!r})")
    try:
        variables = _Header(start).variables()
    except (IndexError, ValueError) as error:
        raise DataFileError(f"{path}: not a readable netCDF file ({error or 'its header is cut'})") from None
    for name, variable in variables.items():
        if variable.begin + variable.size > stamp[0]:
            raise DataFileError(
                f"{path}: {in_words(name)} declares {variable.size} bytes from byte {variable.begin} on in a file of "
                f"{stamp[0]}"
            )
    return [_array(path, name, variables[name], stamp) if name in variables else None for name in names]


def _array(path: Path, name: str, variable: _Variable, stamp: Stamp) -> NpyArray:
    what = f"{path}: {name!r} is {variable.dtype} {in_words(variable.shape)}"
    if variable.size > LARGEST_ROW * max(variable.shape[:1], default=1):
        raise DataFileError(f"{what}, expected rows of at most {LARGEST_ROW} bytes")
    if not variable.together:
        raise DataFileError(f"{what} between other variables of an unlimited dimension, expected it in one piece")
    return NpyArray(path, variable.shape, variable.dtype, False, variable.begin, stamp)


@dataclass(frozen=True)
class _Variable:
    """Shape and dtype, where it begins in the file, and whether it lies together there."""

    shape: tuple[int, ...]
    dtype: np.dtype
    begin: int
    together: bool

    @property
    def size(self) -> int:
        """Bytes, without those of other variables in between."""
        return math.prod(self.shape) * self.dtype.itemsize


class _Header:
    """The header of a classic file; raises ValueError or IndexError where it is none."""

    def __init__(self, content: bytes) -> None:
        self._content, self._place = content, 4
        self._count = 8 if content[3] == 5 else 4  # bytes of a count
        self._offset = 4 if content[3] == 1 else 8  # bytes of a place in the file

    def variables(self) -> dict[str, _Variable]:
        """Name -> variable."""
        records = self._number(self._count)
        sides = [(self._name(), self._number(self._count))[1] for _ in range(self._list_of(_DIMENSIONS))]
        self._attributes()
        found, lengths = {}, []
        for _ in range(self._list_of(_VARIABLES)):
            name = self._name()
            axes = [self._number(self._count) for _ in range(self._number(self._count))]
            self._attributes()
            kind = self._number(4)
            if kind not in _TYPES or any(axis >= len(sides) for axis in axes):
                raise ValueError(f"variable {in_words(name)} of type {kind} with dimensions {in_words(axes)}")
            self._number(self._count)  # its size, which is cut for large ones: not used
            dtype = np.dtype(_TYPES[kind])
            begin, shape = self._number(self._offset), [sides[axis] for axis in axes]
            unlimited = bool(axes) and shape[0] == 0
            if 0 in shape[1:]:
                raise ValueError(f"variable {in_words(name)} has shape {in_words(shape)}")
            if unlimited:
                shape[0] = records
                length = math.prod(shape[1:]) * dtype.itemsize
                lengths.append(length)
            found[name] = (tuple(shape), dtype, begin, unlimited)
        alone = len(lengths) == 1
        return {name: _Variable(*about, alone or not unlimited) for name, (*about, unlimited) in found.items()}

    def _list_of(self, tag: int) -> int:
        found, count = self._number(4), self._number(self._count)
        if found not in (0, tag) or (not found and count) or count > len(self._content):
            raise ValueError(f"a list of {count} with tag {found}, expected {tag}")
        return count

    def _attributes(self) -> None:
        for _ in range(self._list_of(_ATTRIBUTES)):
            self._name()
            kind = self._number(4)
            if kind not in _TYPES:
                raise ValueError(f"an attribute of type {kind}")
            self._take(self._number(self._count) * np.dtype(_TYPES[kind]).itemsize)

    def _name(self) -> str:
        return self._take(self._number(self._count)).decode("utf-8")

    def _number(self, size: int) -> int:
        return int.from_bytes(self._take(size), "big")

    def _take(self, size: int) -> bytes:
        begin, self._place = self._place, self._place + size + -size % 4
        if self._place > len(self._content):
            raise IndexError
        return self._content[begin : begin + size]
