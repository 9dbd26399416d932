"""TFRecord files: records of bytes, each with its length and checksums before and after it.

Source: record_writer.h of TensorFlow. A record is uint64 length, uint32 checksum of those 8 bytes, the bytes, uint32
checksum of them; little endian, checksums CRC-32C, rotated and shifted ("masked").
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np

from unistd.tasks.files import DataFileError, Stamp, open_file, stamp_of
from unistd.tasks.readers.index import indexed

_HEAD, _TAIL = 12, 4
_LONGEST = 64 << 20  # bytes of a record; those of BAIR have three quarters of one million


@dataclass(frozen=True)
class Record:
    """A record of a file: where its bytes begin, how many, and their masked checksum."""

    path: Path
    number: int
    place: int
    length: int
    checksum: int
    stamp: Stamp

    def __str__(self) -> str:
        return f"{self.path}: record {self.number}"

    def read(self) -> bytes:
        """Its bytes, which have been compared with the checksum.

        Raises:
            DataFileError: they differ from it, or the file is not the one that was indexed.
        """
        with open_file(self.path) as file:
            if stamp_of(file) != self.stamp:
                raise DataFileError(f"{self.path}: has changed since it was opened, expected the same file")
            file.seek(self.place)
            content = file.read(self.length)
        if masked_crc(content) != self.checksum:
            raise DataFileError(f"{self}: has another CRC-32C than was written")
        return content


def masked_crc(content: bytes) -> int:
    """The checksum of TFRecord files."""
    crc = google_crc32c.value(content)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def open_records(paths: Sequence[Path]) -> list[Record]:
    """The records of files, in their order, none of them read; found once, and kept by `indexed`.

    Raises:
        DataFileError: empty, cut, not TFRecord files, or with a record of more than 64 MiB.
    """
    stamps = []
    for path in paths:
        with open_file(path) as file:
            stamps.append(stamp_of(file))
    index = indexed("tfrecord-1", zip(paths, stamps, strict=True), lambda: _scan(paths))
    numbers = np.concatenate([np.arange(count) for count in index["count"]])
    files = np.repeat(np.arange(len(paths)), index["count"])
    columns = (index[name].tolist() for name in ("place", "length", "checksum"))
    return [
        Record(paths[file], number, *place, stamps[file])
        for file, number, *place in zip(files.tolist(), numbers.tolist(), *columns, strict=True)
    ]


def _scan(paths: Sequence[Path]) -> dict[str, np.ndarray]:
    found = [_scan_file(path) for path in paths]
    place, length, checksum = np.concatenate(found).T
    return {"count": np.array([len(rows) for rows in found]), "place": place, "length": length, "checksum": checksum}


def _scan_file(path: Path) -> np.ndarray:
    """(records, 3) int64: place, length and checksum of each."""
    rows, place = [], 0
    with open_file(path) as file:
        size = stamp_of(file)[0]
        while place < size:
            file.seek(place)
            head = file.read(_HEAD)
            name = f"{path}: record {len(rows)} at byte {place}"
            if len(head) < _HEAD or struct.unpack("<I", head[8:])[0] != masked_crc(head[:8]):
                raise DataFileError(f"{name}: its length has not the CRC-32C that was written, no TFRecord file")
            length = struct.unpack("<Q", head[:8])[0]
            if not 0 < length <= _LONGEST:
                raise DataFileError(f"{name}: {length} bytes, expected 1 to {_LONGEST}")
            if place + _HEAD + length + _TAIL > size:
                raise DataFileError(f"{name}: {length} bytes, but the file ends after {size}; expected a whole record")
            file.seek(place + _HEAD + length)
            rows.append((place + _HEAD, length, *struct.unpack("<I", file.read(_TAIL))))
            place += _HEAD + length + _TAIL
    if not rows:
        raise DataFileError(f"{path}: empty, expected a TFRecord file")
    return np.array(rows, np.int64)
