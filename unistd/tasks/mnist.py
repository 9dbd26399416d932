"""The file formats of MNIST and of the published Moving MNIST test set."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from unistd.tasks.task import DataFileError


def read_idx_images(path: Path) -> np.ndarray:
    """Images (n, rows, columns) uint8 of a gzipped idx3 file, as MNIST is published.

    Raises:
        DataFileError: not gzip, not idx3 of unsigned bytes, or fewer or more bytes than its header says.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataFileError(f"{path}: not a readable gzip file ({error})") from error
    if len(content) < 16:
        raise DataFileError(f"{path}: {len(content)} bytes, expected an idx header of 16")
    magic, count, rows, columns = struct.unpack(">4I", content[:16])
    if magic != 0x803:
        raise DataFileError(f"{path}: magic number {magic:#010x}, expected 0x00000803 (idx3 of unsigned bytes)")
    if len(content) - 16 != count * rows * columns or not count * rows * columns or rows != columns:
        raise DataFileError(
            f"{path}: {len(content) - 16} bytes after the header, expected {count} square images of {rows}x{columns}"
        )
    return np.frombuffer(content, np.uint8, offset=16).reshape(count, rows, columns)


def read_test_sequences(path: Path) -> np.ndarray:
    """The published test set (20, n, 64, 64) uint8, time first, mapped from disk.

    Raises:
        DataFileError: not an npy file, truncated, or of another shape or dtype.
    """
    try:
        sequences = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataFileError(f"{path}: not a readable npy file ({error})") from error
    if (
        sequences.ndim != 4
        or sequences.dtype != np.uint8
        or not sequences.size
        or sequences.shape[2] != sequences.shape[3]
    ):
        raise DataFileError(f"{path}: {sequences.dtype} {sequences.shape}, expected uint8 (frames, n, side, side)")
    return sequences
