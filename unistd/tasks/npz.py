"""Arrays in .npz archives: where they lie as they are (numpy.savez), read in pieces like .npy; packed ones whole."""

from __future__ import annotations

import io
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unistd.tasks.files import DataFileError, check_expansion, in_words, open_file, stamp_of
from unistd.tasks.npy import NpyArray, read_header

_LARGEST_PACKED = 256 << 20  # bytes of an array that is unpacked in memory
_LOCAL = struct.Struct("<4s22xHH")  # of a member: signature, ..., lengths of the name and of what follows it


@dataclass(frozen=True)
class MemoryArray:
    """An array that was unpacked."""

    path: Path
    values: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> np.dtype:
        return self.values.dtype

    def rows(self, start: int, stop: int) -> np.ndarray:
        """[start:stop] along the first axis."""
        return self.values[start:stop]


def open_npz(path: Path, variable: str | None) -> NpyArray | MemoryArray:
    """An array of an archive: that of the name, or the only one.

    Raises:
        DataFileError: not an archive, no such array, or one that is damaged, no numbers, or packed and above 256 MiB.
    """
    with open_file(path) as file:
        stamp = stamp_of(file)
        try:
            with zipfile.ZipFile(file) as archive:
                member = _member(path, archive, variable)
                file.seek(member.header_offset)
                signature, name, extra = _LOCAL.unpack(file.read(_LOCAL.size))
                if signature != b"PK\x03\x04" or member.flag_bits & 1:
                    raise DataFileError(f"{path}: {member.filename!r} is damaged or encrypted")
                begin = member.header_offset + _LOCAL.size + name + extra
                if member.compress_type == zipfile.ZIP_STORED:
                    file.seek(begin)
                    shape, fortran, dtype, offset = read_header(path, file)
                    _check(path, member, shape, dtype, offset, fortran)
                    return NpyArray(path, shape, dtype, fortran, begin + offset, stamp)
                check_expansion(path, repr(member.filename), member.file_size, member.compress_size)
                if member.file_size > _LARGEST_PACKED:
                    raise DataFileError(
                        f"{path}: {member.filename!r} is packed and {member.file_size} bytes large, expected at most "
                        f"{_LARGEST_PACKED}, or numpy.savez, which packs nothing"
                    )
                content = archive.read(member)
                shape, fortran, dtype, offset = read_header(path, io.BytesIO(content))
                _check(path, member, shape, dtype, offset, fortran)
                values = np.frombuffer(content, dtype, offset=offset).reshape(shape, order="F" if fortran else "C")
                return MemoryArray(path, values.astype(dtype.newbyteorder("="), copy=False))
        except DataFileError:
            raise
        except Exception as error:  # of the archive's reader: nearly any kind
            reason = in_words(" ".join(str(error).split()) or type(error).__name__)
            raise DataFileError(f"{path}: not a readable .npz archive ({reason}), expected numpy.savez's") from None


def _member(path: Path, archive: zipfile.ZipFile, variable: str | None) -> zipfile.ZipInfo:
    members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    if variable is None and len(members) == 1:
        return next(iter(members.values()))
    if variable not in members:
        raise DataFileError(
            f"{path}: variable is {in_words(variable)}, expected one of {in_words(sorted(members)[:8], 200)}"
        )
    return members[variable]


def _check(
    path: Path, member: zipfile.ZipInfo, shape: tuple[int, ...], dtype: np.dtype, offset: int, fortran: bool
) -> None:
    what = f"{path}: {member.filename!r}"
    if dtype.kind not in "biuf":
        raise DataFileError(f"{what} holds elements of type {in_words(dtype)}, expected numbers")
    size = int(np.prod(np.array(shape, object))) * dtype.itemsize
    if min(shape, default=0) < 1 or member.file_size - offset != size:
        raise DataFileError(
            f"{what} has {member.file_size - offset} bytes, expected {size} for {dtype} {in_words(shape)}"
        )
    if fortran and size > _LARGEST_PACKED:
        raise DataFileError(f"{what}: {size} bytes in Fortran order, expected C order in an array of that size")
