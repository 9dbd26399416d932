"""Frames that come one array after another, as programs pass them to each other: .npy, as `numpy.save` writes it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from unistd.tasks.files import DataFileError, in_words
from unistd.tasks.npy import read_header

_PIECE = 1 << 24  # bytes read at once: a header may claim any number, what comes takes the memory


@dataclass(frozen=True)
class StreamedArray:
    """An array of a stream, whole in memory. `path`: what messages call it."""

    path: Path
    values: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return self.values.shape

    def rows(self, start: int, stop: int) -> np.ndarray:
        """[start:stop] along the first axis."""
        return self.values[start:stop]


def arrays_of(stream: BinaryIO, name: str) -> Iterator[StreamedArray]:
    """The arrays of a stream, each as soon as it is there, until the stream ends; at least one.

    Raises DataFileError, naming the stream and the array: not .npy, of anything but numbers, or cut short.
    """
    number = 0
    while (first := stream.read(1)) or number == 0:
        number += 1
        path = Path(f"{name}, array {number}")
        yield StreamedArray(path, _read_array(path, _After(first, stream)))


def _read_array(path: Path, stream: BinaryIO) -> np.ndarray:
    shape, fortran, dtype, _ = read_header(path, stream)
    if dtype.kind not in "iuf" or any(side < 0 for side in shape):
        raise DataFileError(f"{path}: expected numbers, found elements of type {in_words(dtype)}, {in_words(shape)}")
    size, content = math.prod(shape) * dtype.itemsize, bytearray()
    while len(content) < size:
        piece = stream.read(min(_PIECE, size - len(content)))
        if not piece:
            raise DataFileError(f"{path}: {len(content)} bytes after the header, expected {size}")
        content += piece
    values = np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
    return values.astype(dtype.newbyteorder("="), copy=False)


class _After:
    """A stream of which one byte was read already."""

    def __init__(self, first: bytes, stream: BinaryIO) -> None:
        self._first, self._stream = first, stream

    def read(self, size: int) -> bytes:
        first, self._first = self._first, b""
        return first + self._stream.read(size - len(first))
