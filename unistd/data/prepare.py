"""Published files turned into the one fast form that `unistd.tasks.readers.prepared` reads."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from unistd.files import read_text, write_atomically, write_text
from unistd.tasks import SPLITS, DataFileError, TaskSpec, build_dataset
from unistd.tasks.readers.clips import ClipDataset, fitted
from unistd.tasks.readers.prepared import RECORD, frames_file, record_of, starts_file

_BLOCK = 64 << 20  # bytes of frames that are held at once


def prepare(
    spec: TaskSpec, source: Path, target: Path, total: Callable[[int], None], advance: Callable[[int], None]
) -> Path:
    """Writes `<target>/<task>/`, or goes on with what an interrupted call wrote; returns that folder.

    The record is written last: without it the folder is not read as data.

    Args:
        spec: the task, in the size that its frames are to have.
        source: root of the published files.
        total, advance: are told how many frames there are, and of every piece how many are done.

    Raises:
        DataFileError: no files, or files that are damaged; what is done is kept.
        ValueError: a task whose samples are made as they are read.
        OSError: `target` cannot be written.
    """
    data = {split: build_dataset(spec, split, root=source) for split in SPLITS}
    for dataset in data.values():
        if not isinstance(dataset, ClipDataset):
            raise ValueError(f"task {spec.name!r}: its samples are put together as they are read, nothing to prepare")
    folder = target / spec.name
    if (folder / RECORD).exists():
        raise ValueError(f"{folder / RECORD}: holds prepared data already; delete the folder to prepare it again")
    folder.mkdir(parents=True, exist_ok=True)
    plans = {split: _Plan(dataset) for split, dataset in data.items()}
    total(sum(plan.frames for plan in plans.values()))
    parts = {split: plan.write(folder, split, advance) for split, plan in plans.items()}
    write_text(folder / RECORD, json.dumps(record_of(data, parts, str(source)), indent=2) + "\n")
    return folder


class _Plan:
    """Which rows of which clips are written, one after the other, and where each sample begins in that."""

    def __init__(self, data: ClipDataset) -> None:
        self.data = data
        self.step = 1
        placed = self._place(lambda rows: np.unique(rows))
        if placed is None:  # samples overlap between their steps: all rows from the first to the last
            self.step = data.windows.step
            placed = self._place(lambda rows: np.arange(rows.min(), rows.max() + 1))
        self.rows, self.starts = placed
        self.frames = sum(map(len, self.rows.values()))

    def write(self, folder: Path, split: str, advance: Callable[[int], None]) -> dict[str, Any]:
        """Writes frames and starts of a split; what the record says of them."""
        done, finished = frames_file(folder, split), starts_file(folder, split)
        if not finished.exists():
            self._write_frames(done, advance)
            write_atomically(finished, lambda path: _save(path, self.starts))
        else:
            advance(self.frames)
        notes = list(self.data.notes)
        return {"frames": self.frames, "samples": len(self.starts), "step": self.step, "notes": notes}

    def _place(self, needed: Callable[[np.ndarray], np.ndarray]) -> tuple[dict[int, np.ndarray], np.ndarray] | None:
        """Per clip the rows that are needed, and each sample's first frame among all of these; None where its frames
        would not be `self.step` apart there."""
        windows = self.data.windows
        steps = windows.step * np.arange(self.data.spec.frames_in + self.data.spec.frames_out)
        rows, starts, begin = {}, np.empty(len(windows), np.int64), 0
        for clip in np.unique(windows.clip).tolist():
            mine = windows.clip == clip
            wanted = windows.start[mine, None] + steps
            rows[clip] = needed(wanted)
            places = np.searchsorted(rows[clip], wanted)
            if (np.diff(places, axis=1) != self.step).any():
                return None
            starts[mine] = begin + places[:, 0]
            begin += len(rows[clip])
        return rows, starts

    def _write_frames(self, path: Path, advance: Callable[[int], None]) -> None:
        part, plan = path.with_name(path.name + ".part"), path.with_name(path.name + ".plan")
        spec = self.data.spec
        frame = (spec.channels, spec.height, spec.width)
        pieces = self._pieces()
        first = next(pieces)
        dtype = np.dtype(np.uint8 if first.dtype == np.uint8 else np.float32)
        header = _header((self.frames, *frame), dtype)
        digest = self._digest(header)
        again = part.exists() and plan.exists() and read_text(plan) == digest
        if not again:
            part.unlink(missing_ok=True)
            write_text(plan, digest)
        with part.open("ab") as file:
            if file.tell() < len(header):
                file.truncate(0)
                file.write(header)
            # what a killed writer left of a frame is cut off
            size = dtype.itemsize * math.prod(frame)
            written = (file.tell() - len(header)) // size
            file.truncate(len(header) + written * size)
            advance(written)
            for piece in self._pieces(written):
                if piece.dtype != first.dtype and dtype == np.uint8:
                    raise DataFileError(f"{self.data.source}: frames of {first.dtype} and of {piece.dtype}")
                file.write(np.ascontiguousarray(piece, dtype).tobytes())
                advance(len(piece))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        plan.unlink()

    def _pieces(self, skip: int = 0) -> Iterator[np.ndarray]:
        """The frames from number `skip` on, a few at a time."""
        spec = self.data.spec
        most = max(1, _BLOCK // (4 * spec.channels * spec.height * spec.width))
        for clip, rows in self.rows.items():
            rest = rows[skip:]
            skip = max(0, skip - len(rows))
            for begin in range(0, len(rest), most):
                yield fitted(self.data.clips[clip], rest[begin : begin + most], self.data.fit, spec)

    def _digest(self, header: bytes) -> str:
        """What stands for all that is going to be written."""
        digest = hashlib.blake2b(header, digest_size=16)
        names = [(self.data.clips[clip].name, rows.tolist()) for clip, rows in self.rows.items()]
        digest.update(json.dumps([self.data.source, names]).encode())
        return digest.hexdigest()


def _header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    buffer = BytesIO()
    content = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, content)
    return buffer.getvalue()


def _save(path: Path, starts: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, starts)
