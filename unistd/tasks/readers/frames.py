"""Recordings as folders of numbered pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from unistd.tasks.files import DataFileError
from unistd.tasks.readers.clips import Clip, content_id, file_id
from unistd.tasks.readers.images import read_images


def unbroken(numbered: Iterable[tuple[int, Path]]) -> list[list[Path]]:
    """Pictures, each with the number of its frame, in order, cut where a number is missing.

    Raises DataFileError for two of one number, as 3.png and 0003.png: nobody knows which of them is the frame.
    """
    ordered = sorted(numbered)
    steps = np.diff([number for number, _ in ordered])
    if len(same := np.flatnonzero(steps == 0)):
        first, second = (path for _, path in ordered[same[0] : same[0] + 2])
        raise DataFileError(f"{second}: the same frame as {first.name} by its number, expected one picture a frame")
    runs = np.split(np.arange(len(ordered)), np.flatnonzero(steps != 1) + 1)
    return [[ordered[place][1] for place in run] for run in runs]


def picture_clip(paths: Sequence[Path], channels: int) -> Clip:
    """Pictures that follow one another; what stands for them is the content of the first, middle and last file."""
    return Clip(str(paths[0]), len(paths), partial(read_pixels, paths, channels), partial(files_id, paths))


def read_pixels(paths: Sequence[Path], channels: int, rows: np.ndarray) -> np.ndarray:
    """Frames (n, channels, h, w) uint8; as `read_images`, and raises for deeper pictures, of another scale."""
    frames = read_images(paths, channels, rows)
    if frames.dtype != np.uint8:
        raise DataFileError(f"{paths[rows[0]]}: pixels of {frames.dtype}, expected uint8")
    return frames


def files_id(paths: Sequence[Path]) -> np.ndarray:
    """What stands for the content of a clip, (1,)."""
    chosen = (paths[0], paths[len(paths) // 2], paths[-1])
    return np.array([content_id(*(file_id(path).to_bytes(8, "little") for path in chosen))])
