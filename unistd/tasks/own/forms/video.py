"""Videos, a recording each; of the colours, red comes first, so that one channel of a grey video is its brightness."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from unistd.tasks.files import DataFileError
from unistd.tasks.own.description import OwnTask
from unistd.tasks.own.records import Record, check_frame, numbered
from unistd.tasks.video import Video, open_videos


def records(paths: Sequence[Path], root: Path, task: OwnTask) -> list[Record]:
    """See `records_of`."""
    channels = 3 if task.channels is None else task.channels
    if channels > 3:
        raise DataFileError(f"{paths[0]}: channels is {channels}, expected at most 3 of a video")
    found = []
    for video in open_videos(paths):
        check_frame(video.path, (3, *video.size), 1)
        count = numbered(video.path, len(video.times))
        read = partial(_frames, video, channels)
        found.append(Record(video.path, str(video.path), count, False, read, [video.path]))
    return found


def _frames(video: Video, channels: int, rows: np.ndarray) -> np.ndarray:
    """rows (n,) -> (n, C, h, w) uint8."""
    return video.frames(rows)[:, :channels]
