"""Map-style datasets: generated sequences, and windows cut from a long record."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from unistd.tasks.spec import TaskSpec
from unistd.tasks.task import SPLITS

# Each split draws its indices from a range of its own, so no sequence can occur in two of them.
_STREAM = 1 << 40


class SequenceDataset(Dataset[tuple[Tensor, Tensor]]):
    """Sequences made one at a time by `make(index)` -> (Tin + Tout, C, H, W) float32 in [0, 1].

    Items are (inputs (Tin, C, H, W), targets (Tout, C, H, W)). `notes`: lines for people.
    """

    def __init__(
        self,
        spec: TaskSpec,
        make: Callable[[int], np.ndarray],
        length: int,
        source: str,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.spec = spec
        self.source = source
        self.notes = notes
        self._make = make
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < self._length:
            raise IndexError(f"index {index} is out of range for {self._length} samples of task {self.spec.name}")
        frames = torch.from_numpy(self._make(int(index)))
        return frames[: self.spec.frames_in], frames[self.spec.frames_in :]


def stream_index(split: str, index: int) -> int:
    """Index of sample `index` of a split in the one stream that a generator draws from."""
    return SPLITS.index(split) * _STREAM + index


def spread(count: int, length: int | None) -> np.ndarray:
    """Which of `count` samples to use: all, or `length` of them spread evenly, int64."""
    if length is None or length >= count:
        return np.arange(count)
    return np.arange(length) * count // length
