"""One look at every frame of one's own files: the values in it, whether it holds any, and what it is the same as.

It is kept (`unistd.tasks.readers.index`), so that it costs its time once. Of more than 4 GiB of frames only so many are
looked at, spread evenly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b

import numpy as np

from unistd.tasks.own.description import OwnTask
from unistd.tasks.own.records import Record
from unistd.tasks.readers.clips import content_id, file_id
from unistd.tasks.readers.index import Arrays, indexed

_MOST_BYTES = 4 << 30
_BLOCK = 32 << 20  # bytes that are read at once
_MATTERS = {"form", "variable", "axes", "time", "channels", "missing"}  # keys on which frames depend


@dataclass(frozen=True)
class Survey:
    """What was seen of the frames of a recording.

    Args:
        low, high: (frames,) float64, smallest and largest value; NaN of a frame that was not looked at.
        empty: (frames,) bool, whether nothing was measured.
        content: (frames,) int64: frames of the same number are the same.
        looked_at: one in so many frames.
    """

    low: np.ndarray
    high: np.ndarray
    empty: np.ndarray
    content: np.ndarray
    looked_at: int

    def ids(self, name: str) -> np.ndarray:
        """(frames,) int64, what stands for each frame, for `Clip.ids`: the content of it and of the two that follow,
        so that a frame that looks like another by chance is none; where these do not change, its place."""
        if len(self.content) == 1 or self.looked_at > 1:
            return self.content
        last = len(self.content) - 1
        rows = np.minimum(np.arange(len(self.content))[:, None] + np.arange(3), last)
        three = self.content[rows]
        ids = np.array([content_id(row.tobytes()) for row in three], np.int64)
        still = (three == three[:, :1]).all(axis=1)
        ids[still] = [content_id(name.encode("utf-8", "surrogateescape"), row.tobytes()) for row in rows[still, 0]]
        return ids


def measured(frames: np.ndarray, missing: Sequence[float]) -> np.ndarray:
    """Frames as they are stored -> float32, NaN where a value is one of `missing`."""
    numbers = frames.astype(np.float32)
    if missing:
        # compared in the type of the frames: 1e20 in float32 is another number than in float64
        values = np.array([value for value in missing if _fits(value, frames.dtype)]).astype(frames.dtype)
        numbers[np.isin(frames, values)] = np.nan
    return numbers


def _fits(value: float, dtype: np.dtype) -> bool:
    if dtype.kind not in "iu":
        return dtype.kind == "f"
    limits = np.iinfo(dtype)
    return value == int(value) and limits.min <= value <= limits.max


def survey(records: Sequence[Record], task: OwnTask) -> list[Survey]:
    """Looks at all recordings; raises DataFileError where one cannot be read."""
    about = task.model_dump_json(include=_MATTERS).encode()
    kind = f"own-1-{blake2b(about, digest_size=8).hexdigest()}"
    stamps = sorted({stamp for record in records for stamp in record.stamps()})
    arrays = indexed(kind, stamps, partial(_look, records, task))
    borders = np.cumsum([len(record) for record in records])[:-1]
    parts = [np.split(arrays[key], borders) for key in ("low", "high", "empty", "content")]
    return [Survey(*part, int(arrays["looked_at"])) for part in zip(*parts, strict=True)]


def _look(records: Sequence[Record], task: OwnTask) -> Arrays:
    size = records[0].read(np.array([0]))[0].nbytes
    every = max(1, -(-size * sum(map(len, records)) // _MOST_BYTES))
    found = [_look_at(record, task.missing_values, max(1, _BLOCK // max(1, size)), every) for record in records]
    low, high, empty, content = (np.concatenate(part) for part in zip(*found, strict=True))
    return {"low": low, "high": high, "empty": empty, "content": content, "looked_at": np.array(every)}


def _look_at(record: Record, missing: Sequence[float], block: int, every: int) -> tuple[np.ndarray, ...]:
    count = len(record)
    low, high = np.full(count, np.nan), np.full(count, np.nan)
    empty, content = np.zeros(count, bool), np.empty(count, np.int64)
    if every > 1:
        place = file_id(record.files[0]).to_bytes(8, "little") + record.name.encode("utf-8", "surrogateescape")
        content[:] = [content_id(place, row.to_bytes(8, "little")) for row in range(count)]
    rows = np.arange(0, count, every)
    for chosen in np.array_split(rows, -(-len(rows) // block)):
        frames = record.read(chosen)
        if every == 1:
            content[chosen] = [content_id(np.ascontiguousarray(frame).tobytes()) for frame in frames]
        for row, frame in zip(chosen, measured(frames, missing), strict=True):
            there = frame[~np.isnan(frame)]
            empty[row] = not there.size
            if there.size:
                low[row], high[row] = there.min(), there.max()
    return low, high, empty, content
