"""Sequences of one length in one .npy array, as clips."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from unistd.tasks.files import DataFileError, in_words
from unistd.tasks.npy import NpyArray
from unistd.tasks.readers.clips import Clip
from unistd.tasks.readers.index import indexed


def array_clips(array: NpyArray, axes: str) -> list[Clip]:
    """One clip for each sequence of an array, with frames (C, h, w).

    Args:
        axes: what its axes are, in letters: n (sequences) and t (frames) in either order, then a frame's as hw (one
            channel), chw or hwc.

    Raises:
        DataFileError: another number of axes, an empty one, or Fortran order.
    """
    if len(array.shape) != len(axes) or 0 in array.shape or array.fortran:
        order = " in Fortran order" if array.fortran else ""
        raise DataFileError(
            f"{array.path}: {array.dtype} {in_words(array.shape)}{order}, expected ({', '.join(axes)}), none of them 0"
        )
    sequences = _Sequences(array, axes)
    return [
        Clip(sequences.name(number), sequences.frames, partial(sequences.read, number), partial(sequences.id, number))
        for number in range(sequences.count)
    ]


@dataclass(frozen=True)
class _Sequences:
    array: NpyArray
    axes: str

    @property
    def count(self) -> int:
        return self.array.shape[self.axes.index("n")]

    @property
    def frames(self) -> int:
        return self.array.shape[self.axes.index("t")]

    def name(self, number: int) -> str:
        return f"{self.array.path}: sequence {number}"

    def read(self, number: int, rows: np.ndarray) -> np.ndarray:
        """Frames (n, C, h, w) of a sequence."""
        frame = self.array.shape[2:]
        first, stride = (number, self.count) if self.axes[0] == "t" else (number * self.frames, 1)
        frames = self.array.blocks([(first + int(row) * stride) * math.prod(frame) for row in rows], frame)
        if self.axes.endswith("hwc"):
            return np.moveaxis(frames, 3, 1)
        return frames if self.axes.endswith("chw") else frames[:, None]

    def id(self, number: int) -> np.ndarray:
        """What stands for the content of a sequence, (1,)."""
        return self._ids[number : number + 1]

    @cached_property
    def _ids(self) -> np.ndarray:
        files = [(self.array.path, self.array.stamp)]
        return indexed(f"sequences-{self.axes}-1", files, lambda: {"id": self._make_ids()})["id"]

    def _make_ids(self) -> np.ndarray:
        clips = (Clip(self.name(n), self.frames, partial(self.read, n)) for n in range(self.count))
        return np.concatenate([clip.frame_ids() for clip in clips])
