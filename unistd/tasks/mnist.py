"""The file formats of MNIST and of finished Moving MNIST sequences."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from unistd.tasks.files import DataFileError, check_expansion, in_words, open_file, stamp_of
from unistd.tasks.npy import NpyArray, open_npy

FRAMES = 20  # of a finished sequence: what tells the axis of time from that of the sequences
_LARGEST = 256 << 20  # bytes of images, which are held in memory; MNIST has 47 MB of them


def read_idx_images(path: Path) -> np.ndarray:
    """Images (n, side, side) uint8 of an idx3 file as MNIST is published: gzipped where its name ends in .gz.

    No more is unpacked than the header declares, and nothing where that is far more than digits unpack to.

    Raises:
        DataFileError: not gzip, not idx3 of unsigned bytes, or fewer or more bytes than its header says.
    """
    with open_file(path) as file:
        stored = stamp_of(file)[0]
        try:
            if path.suffix != ".gz":
                return _images(path, file, stored)
            with gzip.GzipFile(fileobj=file) as content:
                return _images(path, content, stored)
        except (OSError, EOFError, zlib.error) as error:
            what = "gzip file" if path.suffix == ".gz" else "file"
            raise DataFileError(f"{path}: not a readable {what} ({in_words(str(error), 200)})") from None


def _images(path: Path, content: BinaryIO | gzip.GzipFile, stored: int) -> np.ndarray:
    header = content.read(16)
    if len(header) < 16:
        raise DataFileError(f"{path}: {len(header)} bytes, expected an idx header of 16")
    magic, count, rows, columns = struct.unpack(">4I", header)
    if magic != 0x803:
        raise DataFileError(f"{path}: magic number {magic:#010x}, expected 0x00000803 (idx3 of unsigned bytes)")
    declared, expected = count * rows * columns, f"expected {count} square images of {rows}x{columns}"
    if not declared or rows != columns:
        raise DataFileError(f"{path}: its header declares {declared} bytes, {expected}")
    if declared > _LARGEST:
        raise DataFileError(f"{path}: its header declares {declared} bytes of images, expected at most {_LARGEST}")
    check_expansion(path, "its header", declared, stored)
    images = np.empty((count, rows, columns), np.uint8)
    found = content.readinto(memoryview(images).cast("B"))
    if found < declared:
        raise DataFileError(f"{path}: {found} bytes after the header, {expected}")
    if content.read(1):  # at the end, this compares the checksum
        raise DataFileError(f"{path}: more than {declared} bytes after the header, {expected}")
    return images


def open_sequences(path: Path, dtype: type[np.generic]) -> tuple[NpyArray, str]:
    """Finished sequences of 20 square frames, read when they are asked for; and their axes, "tnhw" or "nthw".

    Which of the first two axes is time is known by its length, 20, if the other one has another length.

    Raises:
        DataFileError: not an npy file, truncated, of another shape or dtype, or of two axes of length 20.
    """
    sequences = open_npy(path)
    shape = sequences.shape
    found = f"{path}: {sequences.dtype} {in_words(shape)}{' in Fortran order' if sequences.fortran else ''}"
    wrong = len(shape) != 4 or 0 in shape or shape[2] != shape[3] or sequences.fortran
    if wrong or sequences.dtype.newbyteorder("=") != dtype:
        kinds = f"({FRAMES}, n, side, side) or (n, {FRAMES}, side, side)"
        raise DataFileError(f"{found}, expected {np.dtype(dtype)} {kinds}")
    if shape[:2] == (FRAMES, FRAMES):
        raise DataFileError(f"{found}, expected another number of sequences than {FRAMES}: time or sample first?")
    if FRAMES not in shape[:2]:
        raise DataFileError(f"{found}, expected {FRAMES} frames, on the first or the second axis")
    return sequences, "tnhw" if shape[0] == FRAMES else "nthw"
