"""Recordings of any form as clips of frames, and data sets of the windows that are cut from them.

A reader lists its clips without reading them; frames are read when a sample is asked for. Splits are kept apart here:
`ClipDataset.apart` leaves out of one split every window that shares a frame with another.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from unistd.tasks.data import spread
from unistd.tasks.files import DataFileError, in_words, open_file
from unistd.tasks.spec import TaskSpec

Fit = Callable[[np.ndarray, TaskSpec], np.ndarray]
_PIECE = 1 << 16


@dataclass(frozen=True)
class Clip:
    """Frames that follow one another at one interval; a gap in a recording ends a clip.

    Everything in it can be pickled: clips travel to the processes that load.

    Args:
        name: the file, and the place in it, as messages say it.
        frames: how many there are.
        read: rows (n,) int64, increasing -> these frames (n, C, H, W) as they are stored. Raises DataFileError.
        ids: what stands for the frames: int64, one for each, or one for the clip as a whole. Two windows that have one
            in common share a frame. None: taken from the content of three frames.
    """

    name: str
    frames: int
    read: Callable[[np.ndarray], np.ndarray]
    ids: Callable[[], np.ndarray] | None = None

    def frame_ids(self) -> np.ndarray:
        """`ids`, or the one of the clip's content."""
        if self.ids is not None:
            return self.ids()
        rows = np.unique([0, self.frames // 2, self.frames - 1])
        return np.array([content_id(np.ascontiguousarray(self.read(rows)).tobytes(), str(self.frames).encode())])


def content_id(*parts: bytes) -> int:
    """A number of 63 bits that stands for these bytes."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return int.from_bytes(digest.digest(), "little") >> 1


def file_id(path: Path) -> int:
    """A number that stands for a file's content: its size, and 64 KiB of its beginning, its middle and its end."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        parts = [size.to_bytes(8, "little")]
        for place in (0, size // 2, max(0, size - _PIECE)):
            file.seek(place)
            parts.append(file.read(_PIECE))
    return content_id(*parts)


@dataclass(frozen=True)
class Windows:
    """Where samples begin: clip (n,) and first row in it (n,), both int64; their frames are `step` rows apart."""

    clip: np.ndarray
    start: np.ndarray
    step: int = 1

    def __len__(self) -> int:
        return len(self.clip)

    def take(self, chosen: np.ndarray) -> Windows:
        """The windows of these numbers, or of this mask."""
        return Windows(self.clip[chosen], self.start[chosen], self.step)


def cut(clips: Sequence[Clip], frames: int, starts: Callable[[int], Iterable[int]], step: int = 1) -> Windows:
    """All windows of `frames` frames, `step` apart.

    Args:
        starts: number of rows at which a window of a clip can start -> those at which one does (`every(stride)`).
    """
    rooms = [clip.frames - (frames - 1) * step for clip in clips]
    chosen = {room: np.asarray(list(starts(room)) if room > 0 else [], np.int64) for room in set(rooms)}
    firsts = [chosen[room] for room in rooms]
    numbers = np.repeat(np.arange(len(clips)), np.asarray(list(map(len, firsts)), np.int64))
    return Windows(numbers, np.concatenate([np.empty(0, np.int64), *firsts]), step)


def every(stride: int) -> Callable[[int], range]:
    """`starts` for `cut`: 0, stride, 2 * stride, ..."""
    return lambda room: range(0, room, stride)


@dataclass
class ClipDataset(Dataset[tuple[Tensor, Tensor]]):
    """Windows of clips as samples (inputs (Tin, C, H, W), targets (Tout, C, H, W)), float32 of the spec's scale.

    Args:
        spec: with the scale and offset that values are divided by; NaN is refused unless it says `missing`.
        clips, windows: what samples are cut from, and where.
        source: the path that is read.
        fit: frames (n, C, h, w) as stored -> (n, C, H, W) of the spec (see `unistd.tasks.readers.fit`).
        notes: lines for people: what was left out, breaks in time, and the like.
    """

    spec: TaskSpec
    clips: Sequence[Clip]
    windows: Windows
    source: str
    fit: Fit
    notes: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        spec = self.spec
        frames = (self.frames(index).astype(np.float32) - np.float32(spec.offset)) / np.float32(spec.scale)
        tensor = torch.from_numpy(frames)
        return tensor[: spec.frames_in], tensor[spec.frames_in :]

    def frames(self, index: int) -> np.ndarray:
        """The frames of a sample, (Tin + Tout, C, H, W), fitted, in the values of the file."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} samples of task {self.spec.name}")
        clip = self.clips[self.windows.clip[index]]
        return fitted(clip, self.rows(index), self.fit, self.spec)

    def rows(self, index: int) -> np.ndarray:
        """The rows of a sample in its clip, int64."""
        count = self.spec.frames_in + self.spec.frames_out
        return self.windows.start[index] + self.windows.step * np.arange(count)

    def limited(self, length: int | None) -> ClipDataset:
        """At most `length` of the samples, spread evenly."""
        return self._with(self.windows.take(spread(len(self), length)), self.notes)

    def apart(self, *others: ClipDataset) -> ClipDataset:
        """Without the windows that share a frame with one of `others`, the other splits; a note says how many.

        Raises DataFileError where nothing is left.
        """
        if not others:
            return self
        ids = [ids.ravel() for other in others for _, ids in other._ids()]
        held = np.unique(np.concatenate([np.empty(0, np.int64), *ids]))
        keep = np.ones(len(self), bool)
        for numbers, ids in self._ids():
            places = np.searchsorted(held[:-1], ids)  # where it would be; np.isin sorts `held` for every clip
            keep[numbers] = ~(held[places] == ids).any(axis=1) if len(held) else True
        left_out = len(keep) - int(keep.sum())
        if left_out and left_out == len(keep):
            raise DataFileError(f"{self.source}: every window of a split is in another split too, expected others")
        note = f"{left_out} of {len(keep)} windows left out: they share frames with another split"
        return self._with(self.windows.take(keep), (*self.notes, note)) if left_out else self

    def _ids(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Of every clip: numbers (k,) of its windows, and what stands for their frames, (k, 1) or (k, T)."""
        steps = self.windows.step * np.arange(self.spec.frames_in + self.spec.frames_out)
        order = np.argsort(self.windows.clip, kind="stable")
        clips, firsts = np.unique(self.windows.clip[order], return_index=True)
        for clip, first, end in zip(clips, firsts, [*firsts[1:], len(order)], strict=False):  # none: one `end` alone
            numbers = order[first:end]
            ids = self.clips[clip].frame_ids()
            rows = self.windows.start[numbers, None] + steps
            yield numbers, ids[rows] if len(ids) == self.clips[clip].frames > 1 else np.tile(ids[:1], (len(numbers), 1))

    def _with(self, windows: Windows, notes: tuple[str, ...]) -> ClipDataset:
        return ClipDataset(self.spec, self.clips, windows, self.source, self.fit, notes)


def fitted(clip: Clip, rows: np.ndarray, fit: Fit, spec: TaskSpec) -> np.ndarray:
    """Rows of a clip as frames (n, C, H, W) of the spec.

    Raises DataFileError for frames of another shape, for Inf, and for NaN unless the spec says `missing`.
    """
    frames = fit(clip.read(rows), spec)
    expected = (len(rows), spec.channels, spec.height, spec.width)
    if frames.shape != expected:
        raise DataFileError(f"{clip.name}: frames {in_words(frames.shape)}, expected {in_words(expected)}")
    if frames.dtype.kind == "f" and not np.isfinite(frames).all() and not (spec.missing and not np.isinf(frames).any()):
        raise DataFileError(f"{clip.name}: holds NaN or Inf, expected numbers")
    return frames
