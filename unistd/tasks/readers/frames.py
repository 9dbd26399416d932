"""Recordings as folders of numbered pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from unistd.tasks.readers.clips import Clip, content_id, file_id
from unistd.tasks.readers.images import read_images


def unbroken(numbered: Mapping[int, Path]) -> list[list[Path]]:
    """Pictures by the numbers of their frames, in order, cut where a number is missing."""
    numbers = np.array(sorted(numbered))
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
    return [[numbered[number] for number in run.tolist()] for run in runs]


def picture_clip(paths: Sequence[Path], channels: int) -> Clip:
    """Pictures that follow one another; what stands for them is the content of the first, middle and last file."""
    return Clip(str(paths[0]), len(paths), partial(read_images, paths, channels), partial(files_id, paths))


def files_id(paths: Sequence[Path]) -> np.ndarray:
    """What stands for the content of a clip, (1,)."""
    chosen = (paths[0], paths[len(paths) // 2], paths[-1])
    return np.array([content_id(*(file_id(path).to_bytes(8, "little") for path in chosen))])
