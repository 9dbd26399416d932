"""Pictures that hold a recording each: square frames side by side, from left to right."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from unistd.tasks.files import DataFileError
from unistd.tasks.own.description import OwnTask
from unistd.tasks.own.records import Record, numbered
from unistd.tasks.readers.images import read_image


def records(paths: Sequence[Path], root: Path, task: OwnTask) -> list[Record]:
    """See `records_of`."""
    found = []
    for path in paths:
        colours, side, width = read_image(path).shape
        if width % side:
            raise DataFileError(f"{path}: {width} pixels wide, expected a multiple of its height {side}: square frames")
        channels = task.channels or {2: 1, 4: 3}.get(colours, colours)
        if channels > colours:
            raise DataFileError(f"{path}: {colours} channels, expected {channels}")
        times = numbered(path, width // side)
        found.append(Record(path, str(path), times, False, partial(_frames, path, channels), [path]))
    return found


def _frames(path: Path, channels: int, rows: np.ndarray) -> np.ndarray:
    strip = read_image(path)
    side = strip.shape[1]
    if strip.shape[0] < channels or strip.shape[2] < side * (int(rows[-1]) + 1):
        raise DataFileError(f"{path}: has changed since it was opened, expected the same file")
    frames = strip[:channels].reshape(channels, side, -1, side)
    return np.ascontiguousarray(frames[:, :, rows].transpose(2, 0, 1, 3))
