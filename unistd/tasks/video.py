"""Frames of videos, decoded in a process of their own: what crashes there is one line here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from unistd.tasks.files import DataFileError, Stamp, open_file, stamp_of
from unistd.tasks.guarded import GuardedProcess
from unistd.tasks.readers.index import indexed

_process = GuardedProcess(Path(__file__).with_name("video_process.py"), "video")


@dataclass(frozen=True)
class Video:
    """Frames of a video, of `size` (h, w), at these presentation times (frames,) int64."""

    path: Path
    times: np.ndarray
    size: tuple[int, int]
    stamp: Stamp

    def frames(self, rows: np.ndarray) -> np.ndarray:
        """rows (n,), increasing -> (n, 3, h, w) uint8, red first: decoded from the key frame before them on.

        Raises:
            DataFileError: damaged there, or the file is not the one that was opened.
        """
        with open_file(self.path) as file:
            if stamp_of(file) != self.stamp:
                raise DataFileError(f"{self.path}: has changed since it was opened, expected the same file")
        request = {"wanted": self.times[rows].tolist(), "size": self.size}
        return _process.ask(self.path, request, (len(rows), 3, *self.size), np.dtype(np.uint8))[1]


def open_videos(paths: Sequence[Path]) -> list[Video]:
    """Videos, looked through for the times of their frames, none of which is decoded yet; done once, see `indexed`.

    Raises:
        DataFileError: no file, not a video, cut, damaged, or larger than any sensor's.
    """
    stamps = []
    for path in paths:
        with open_file(path) as file:
            stamps.append(stamp_of(file))
            _check_whole(path, file, stamps[-1][0])
    if not paths:
        return []
    index = indexed("videos-1", zip(paths, stamps, strict=True), lambda: _survey(paths))
    times = np.split(index["times"], np.cumsum(index["frames"])[:-1])
    sizes = map(tuple, index["size"].tolist())
    return [Video(*about) for about in zip(paths, times, sizes, stamps, strict=True)]


def _survey(paths: Sequence[Path]) -> dict[str, np.ndarray]:
    times, sizes = [], []
    for path in paths:
        about, _ = _process.ask(path, {})
        times.append(_process.ask(path, {"times": True}, (about["frames"],), np.dtype(np.int64))[1])
        sizes.append((about["height"], about["width"]))
    return {"times": np.concatenate(times), "frames": np.array(list(map(len, times))), "size": np.array(sizes)}


def _check_whole(path: Path, file: BinaryIO, size: int) -> None:
    """A RIFF file (avi) says its size: a cut one would only have fewer frames, and what follows it that is no RIFF part
    of its own would be searched for frames to its end, as would a file of zeros."""
    start = file.read(12)
    declared = int.from_bytes(start[4:8], "little") + 8
    if start and not any(start):
        raise DataFileError(f"{path}: begins with zeros, expected a video")
    if start[:4] != b"RIFF":
        return
    if declared > size:
        raise DataFileError(f"{path}: {size} bytes, expected {declared} as its header says: it is cut")
    file.seek(declared + declared % 2)
    if file.read(4) not in (b"", b"RIFF"):
        raise DataFileError(f"{path}: {size} bytes, expected {declared} as its header says")
