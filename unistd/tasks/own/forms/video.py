"""Videos, a recording each; of the colours, red comes first, so that one channel of a grey video is its brightness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unistd.tasks.files import DataFileError, open_file
from unistd.tasks.guarded import GuardedProcess
from unistd.tasks.own.description import OwnTask
from unistd.tasks.own.records import Record, check_frame, numbered

_process = GuardedProcess(Path(__file__).parents[1] / "video_process.py", "video")


@dataclass(frozen=True)
class _Video:
    """Frames of a video, at these presentation times (frames,) int64."""

    path: Path
    times: np.ndarray
    channels: int
    size: tuple[int, int]

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """rows (n,) -> (n, C, h, w) uint8."""
        request = {"wanted": self.times[rows].tolist(), "size": self.size}
        _, frames = _process.ask(self.path, request, (len(rows), 3, *self.size), np.dtype(np.uint8))
        return frames[:, : self.channels]


def records(paths: Sequence[Path], root: Path, task: OwnTask) -> list[Record]:
    """See `records_of`."""
    channels = 3 if task.channels is None else task.channels
    if channels > 3:
        raise DataFileError(f"{paths[0]}: channels is {channels}, expected at most 3 of a video")
    found = []
    for path in paths:
        open_file(path).close()
        about, _ = _process.ask(path, {})
        size = (about["height"], about["width"])
        check_frame(path, (3, *size), 1)
        count = numbered(path, about["frames"])
        _, times = _process.ask(path, {"times": True}, (about["frames"],), np.dtype(np.int64))
        found.append(Record(path, str(path), count, False, _Video(path, times, channels, size), [path]))
    return found
