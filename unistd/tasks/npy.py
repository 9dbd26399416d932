"""Arrays in .npy files, read in pieces and never mapped.

A mapped file that is cut while it is read ends the process (SIGBUS); a read that comes short is an error with a name.
The file is opened anew for each piece, so that an array travels to data workers as a few numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np

from unistd.tasks.files import DataFileError, Stamp, in_words, open_file, stamp_of

_MAGIC = b"\x93NUMPY"
_LONGEST_HEADER = 10_000  # characters, as numpy's own limit: longer ones take the parser's memory
_LARGEST_FORTRAN = 256 << 20  # bytes; such an array is read whole


@dataclass(frozen=True)
class NpyArray:
    """A .npy file of numbers: its shape and dtype, and where they lie. `fortran`: first index runs fastest."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    offset: int
    stamp: Stamp

    def rows(self, start: int, stop: int) -> np.ndarray:
        """[start:stop] along the first axis; raises DataFileError where the file is not the one that was opened."""
        if self.fortran:
            return self._whole[start:stop]
        size = math.prod(self.shape[1:])
        return self.blocks([start * size], (stop - start, *self.shape[1:]))[0]

    def blocks(self, starts: Sequence[int], shape: tuple[int, ...]) -> np.ndarray:
        """(len(starts), *shape): elements that follow one another in the file from each of `starts` on."""
        result = np.empty((len(starts), *shape), self.dtype)
        size = self.dtype.itemsize
        with open_file(self.path) as file:
            if stamp_of(file) != self.stamp:
                raise DataFileError(f"{self.path}: has changed since it was opened, expected the same file")
            for start, block in zip(starts, result, strict=True):
                file.seek(self.offset + start * size)
                # a dtype of the other byte order has no buffer of its own: through bytes
                view = memoryview(block.reshape(-1).view(np.uint8))
                if _read_into(self.path, file, view) != len(view):
                    raise DataFileError(f"{self.path}: was cut while it was read, expected {self.stamp[0]} bytes")
        return result.astype(self.dtype.newbyteorder("="), copy=False)

    @cached_property
    def _whole(self) -> np.ndarray:
        return self.blocks([0], (math.prod(self.shape),))[0].reshape(self.shape, order="F")


def open_npy(path: Path) -> NpyArray:
    """Reads and checks the header of a .npy file; no more than that.

    Raises:
        DataFileError: not a file, not npy (an archive, a pickle), of anything but numbers, more or fewer bytes than the
            header says, or in Fortran order and too large to be turned round.
    """
    with open_file(path) as file:
        stamp = stamp_of(file)
        shape, fortran, dtype, offset = read_header(path, file)
    if dtype.kind not in "biufc":
        what = "Python objects" if dtype.hasobject else f"elements of type {in_words(dtype)}"
        raise DataFileError(f"{path}: not a .npy file of numbers (it holds {what})")
    expected = math.prod(shape) * dtype.itemsize
    if any(side < 0 for side in shape) or stamp[0] - offset != expected:
        raise DataFileError(
            f"{path}: not a .npy file of numbers ({stamp[0] - offset} bytes after the header, "
            f"expected {expected} for {dtype} {in_words(shape)})"
        )
    if fortran and expected > _LARGEST_FORTRAN:
        raise DataFileError(f"{path}: {expected} bytes in Fortran order, expected C order in a file of that size")
    return NpyArray(path, shape, dtype, fortran, offset, stamp)


def read_header(path: Path, file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, whether it is in Fortran order, dtype and length of the header that a file is at; raises DataFileError."""
    start = _read(path, file, 12)
    if start[:6] != _MAGIC:
        what = (
            "an archive (.npz)" if start[:4] == b"PK\x03\x04" else f"it starts with {start[:6]!r}, expected {_MAGIC!r}"
        )
        raise DataFileError(f"{path}: not a .npy file of numbers ({what})")
    before = 10 if start[6:7] == b"\x01" else 12  # bytes ahead of the header: its length has two, later four
    length = int.from_bytes(start[8:before], "little")
    if start[6:8] not in (b"\x01\x00", b"\x02\x00", b"\x03\x00") or length > _LONGEST_HEADER:
        raise DataFileError(
            f"{path}: not a .npy file of numbers (format {start[6:8]!r}, a header of {length} characters, "
            f"expected format 1 to 3 and at most {_LONGEST_HEADER})"
        )
    content = start + _read(path, file, max(0, before + length - len(start)))
    try:
        # numpy says which version it reads by the name of the function, and reads the third with none of them
        reader = np.lib.format.read_array_header_1_0 if before == 10 else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = reader(BytesIO(content[8:]))
    except (Exception, RecursionError) as error:  # what is raised depends on where the text went wrong
        reason = in_words(" ".join(str(error).split()) or type(error).__name__)
        raise DataFileError(f"{path}: not a .npy file of numbers ({reason})") from None
    return tuple(map(int, shape)), fortran, dtype, before + length


def _read(path: Path, file: BinaryIO, size: int) -> bytes:
    try:
        return file.read(size)
    except OSError as error:
        raise DataFileError(f"{path}: cannot be read ({error.strerror})") from None


def _read_into(path: Path, file: BinaryIO, view: memoryview) -> int:
    try:
        return file.readinto(view)
    except OSError as error:
        raise DataFileError(f"{path}: cannot be read ({error.strerror})") from None
