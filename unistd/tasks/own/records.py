"""Recordings of any form: frames in an order, with their times."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unistd.tasks.files import DataFileError, Stamp, open_file, stamp_of

MOST_RECORDS = 200_000
MOST_FRAMES = 10_000_000  # of a recording
_LARGEST_FRAME = 1 << 28  # bytes


@dataclass(frozen=True)
class Record:
    """Frames in their order. Everything in it can be pickled.

    Args:
        path: the file; of single pictures their folder.
        name: path, and the place in it, as messages say it.
        times: float64, one for each frame.
        dated: whether these are dates, in seconds since 1970, rather than numbers of frames.
        read: rows (n,) int64, increasing -> these frames (n, C, h, w) as they are stored. Raises DataFileError.
        files: what it is read from.
    """

    path: Path
    name: str
    times: np.ndarray
    dated: bool
    read: Callable[[np.ndarray], np.ndarray]
    files: Sequence[Path]

    def __len__(self) -> int:
        return len(self.times)

    def stamps(self) -> list[tuple[Path, Stamp]]:
        """The files with their sizes and times of change; raises DataFileError."""
        return [(path, _stamp(path)) for path in self.files]


def _stamp(path: Path) -> Stamp:
    if not path.is_dir():
        with open_file(path) as file:
            return stamp_of(file)
    # a zarr store is a folder of many files: their sizes together, and the last change of one
    files = [os.stat(Path(folder, name)) for folder, _, names in os.walk(path) for name in names]
    return sum(file.st_size for file in files), max((file.st_mtime_ns for file in files), default=0)


def numbered(path: Path, frames: int) -> np.ndarray:
    """Times of frames that have none: 0, 1, 2, ...; raises DataFileError where there are none or far too many."""
    if not 0 < frames <= MOST_FRAMES:
        raise DataFileError(f"{path}: {frames} frames, expected 1 to {MOST_FRAMES}")
    return np.arange(frames, dtype=np.float64)


def check_frame(path: Path, shape: Sequence[int], itemsize: int) -> None:
    """Raises DataFileError for a frame of no pixel, or of more bytes than any is."""
    size = int(np.prod(np.array(shape, object))) * itemsize
    if not 0 < size <= _LARGEST_FRAME:
        raise DataFileError(f"{path}: frames {tuple(shape)} of {size} bytes, expected 1 to {_LARGEST_FRAME}")
