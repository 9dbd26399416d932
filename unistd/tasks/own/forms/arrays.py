"""What the forms share whose files hold arrays: which axis is what, and rows that are read in pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from unistd.tasks.files import DataFileError, in_words
from unistd.tasks.own.records import MOST_RECORDS, Record, check_frame, numbered

_COLOURS = 4  # an axis that is no longer than this holds channels


class Array(Protocol):
    """An array in a file."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype

    def rows(self, start: int, stop: int) -> np.ndarray:
        """[start:stop] along the first axis."""


def axes_of(path: Path, key: str, shape: Sequence[int], said: str | None) -> str:
    """The axes of an array of that shape, as a word like "tchw": what was said, else by the sizes.

    Raises:
        DataFileError: another number of axes than was said, frames that do not lie together, or sizes that fit
            several words.
    """
    what = f"{path}: {key} {in_words(tuple(shape))}"
    if said is None:
        said = _axes_by_size(shape)
        if said is None:
            raise DataFileError(f"{what}: cannot tell what its axes are; axes says it, as tchw or nthw")
    if len(said) != len(shape):
        raise DataFileError(f"{what}: {len(shape)} axes, expected {len(said)} as in axes {said!r}")
    if said.removeprefix("n")[0] != "t":
        raise DataFileError(f"{what}: axes {said!r}, expected time first, or sequences and then time")
    return said


def _axes_by_size(shape: Sequence[int]) -> str | None:
    if len(shape) == 3:
        return "thw"
    if len(shape) not in (4, 5):
        return None
    before, last = shape[-3] <= _COLOURS, shape[-1] <= _COLOURS
    frame = {(True, False): "chw", (False, True): "hwc"}.get((before, last))
    return None if frame is None else f"{'nt' if len(shape) == 5 else 't'}{frame}"


@dataclass(frozen=True)
class Frames:
    """Reads frames of channels from one or more arrays of the same shape, each of them a channel or several.

    Args:
        axes: of each array, without the sequences.
        sequence: which one, where the first axis is sequences.
    """

    arrays: tuple[Array, ...]
    axes: str
    sequence: int | None

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """rows (n,) -> (n, C, h, w)."""
        return np.concatenate([self._channels(self._rows(array, rows)) for array in self.arrays], axis=1)

    def _rows(self, array: Array, rows: np.ndarray) -> np.ndarray:
        if self.sequence is not None:
            return array.rows(self.sequence, self.sequence + 1)[0][rows]
        if rows[-1] - rows[0] == len(rows) - 1:
            return array.rows(int(rows[0]), int(rows[-1]) + 1)
        return np.concatenate([array.rows(row, row + 1) for row in rows.tolist()])

    def _channels(self, frames: np.ndarray) -> np.ndarray:
        if "c" not in self.axes:
            axes, frames = self.axes.replace("t", "tc"), frames[:, None]
        else:
            axes = self.axes
        return np.ascontiguousarray(frames.transpose([axes.index(letter) for letter in "tchw"]))


def array_records(
    path: Path, arrays: Sequence[Array], axes: str, times: np.ndarray | None = None, dated: bool = False
) -> list[Record]:
    """The recordings of arrays in a file: one, or one for each sequence.

    Raises DataFileError where they are no numbers, not of one shape, or of far too many frames.
    """
    first = arrays[0]
    for array in arrays:
        if array.dtype.kind not in "biuf":
            raise DataFileError(f"{path}: holds elements of type {in_words(array.dtype)}, expected numbers")
        if array.shape != first.shape:
            raise DataFileError(f"{path}: arrays {first.shape} and {array.shape}, expected one shape")
    sequences = axes[0] == "n"
    check_frame(path, first.shape[axes.index("t") + 1 :], first.dtype.itemsize * len(arrays))
    count, frames = (first.shape[0], first.shape[1]) if sequences else (1, first.shape[0])
    if count > MOST_RECORDS:
        raise DataFileError(f"{path}: {count} sequences, expected at most {MOST_RECORDS}")
    if sequences:
        check_frame(path, first.shape[1:], first.dtype.itemsize * len(arrays))
    if times is None:
        times = numbered(path, frames)
    read = partial(Frames, tuple(arrays), axes.removeprefix("n"))
    if not sequences:
        return [Record(path, str(path), times, dated, read(None), [path])]
    return [Record(path, f"{path}, sequence {number}", times, dated, read(number), [path]) for number in range(count)]
