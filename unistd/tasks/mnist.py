"""The file formats of MNIST and of the published Moving MNIST test set."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from unistd.tasks.files import DataFileError, check_expansion, in_words, open_file, stamp_of
from unistd.tasks.npy import NpyArray, open_npy


def read_idx_images(path: Path) -> np.ndarray:
    """Images (n, rows, columns) uint8 of a gzipped idx3 file, as MNIST is published.

    No more is unpacked than the header declares, and nothing where that is far more than digits unpack to.

    Raises:
        DataFileError: not gzip, not idx3 of unsigned bytes, or fewer or more bytes than its header says.
    """
    with open_file(path) as file:
        try:
            with gzip.GzipFile(fileobj=file) as content:
                return _images(path, content, stamp_of(file)[0])
        except (OSError, EOFError, zlib.error) as error:
            raise DataFileError(f"{path}: not a readable gzip file ({in_words(str(error), 200)})") from None


def _images(path: Path, content: gzip.GzipFile, stored: int) -> np.ndarray:
    header = content.read(16)
    if len(header) < 16:
        raise DataFileError(f"{path}: {len(header)} bytes, expected an idx header of 16")
    magic, count, rows, columns = struct.unpack(">4I", header)
    if magic != 0x803:
        raise DataFileError(f"{path}: magic number {magic:#010x}, expected 0x00000803 (idx3 of unsigned bytes)")
    declared, expected = count * rows * columns, f"expected {count} square images of {rows}x{columns}"
    if not declared or rows != columns:
        raise DataFileError(f"{path}: its header declares {declared} bytes, {expected}")
    check_expansion(path, "its header", declared, stored)
    images = np.empty((count, rows, columns), np.uint8)
    found = content.readinto(memoryview(images).cast("B"))
    if found < declared:
        raise DataFileError(f"{path}: {found} bytes after the header, {expected}")
    if content.read(1):  # at the end, this compares the checksum
        raise DataFileError(f"{path}: more than {declared} bytes after the header, {expected}")
    return images


def read_test_sequences(path: Path) -> NpyArray:
    """The published test set (20, n, 64, 64) uint8, time first; its frames are read when they are asked for.

    Raises:
        DataFileError: not an npy file, truncated, or of another shape or dtype.
    """
    sequences = open_npy(path)
    shape = sequences.shape
    if len(shape) != 4 or sequences.dtype != np.uint8 or 0 in shape or shape[2] != shape[3] or sequences.fortran:
        order = " in Fortran order" if sequences.fortran else ""
        raise DataFileError(
            f"{path}: {sequences.dtype} {in_words(shape)}{order}, expected uint8 (frames, n, side, side)"
        )
    return sequences
