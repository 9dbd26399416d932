"""Files of any task in one fast form, as `unistd data prepare` writes them: frames as they train, in .npy files.

<root>/<task>/prepared.json       format, task, the spec's sizes and scale, per split its step and counts
<root>/<task>/<split>-frames.npy  (F, C, H, W), uint8 or float32
<root>/<task>/<split>-starts.npy  (n,) int64: the frame that each sample begins with; its others are `step` apart
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from unistd.files import read_text
from unistd.tasks.files import DataFileError, in_words, list_folder
from unistd.tasks.npy import NpyArray, open_npy
from unistd.tasks.readers.clips import Clip, ClipDataset, Windows
from unistd.tasks.readers.fit import as_stored
from unistd.tasks.spec import TaskSpec
from unistd.tasks.task import SPLITS

RECORD = "prepared.json"
FORMAT = 1
SIZES = ("channels", "height", "width")
UNITS = ("scale", "offset", "unit", "missing")


def frames_file(folder: Path, split: str) -> Path:
    """Where the frames of a split are."""
    return folder / f"{split}-frames.npy"


def starts_file(folder: Path, split: str) -> Path:
    """Where the first frames of a split's samples are."""
    return folder / f"{split}-starts.npy"


class PreparedReader:
    """`<root>/<task>/prepared.json`, for any task."""

    def __init__(self, task: str) -> None:
        self.task = task

    def find(self, root: Path) -> Path | None:
        """The folder that was prepared for the task."""
        for name in list_folder(root):
            if name == self.task and (root / name / RECORD).exists():
                return root / name
        return None

    def open(self, spec: TaskSpec, split: str, root: Path, length: int | None, seed: int) -> ClipDataset:
        """See `Task.open`; `seed` has no effect."""
        folder = self.find(root)
        if folder is None:
            raise DataFileError(f"{root}: found no {RECORD} of task {self.task!r}")
        record = _record(folder / RECORD, spec, split)
        part = record["splits"][split]
        spec = spec.replace(**{name: record[name] for name in UNITS})
        frames = open_npy(frames_file(folder, split))
        expected = (part["frames"], spec.channels, spec.height, spec.width)
        if frames.shape != expected or frames.dtype not in (np.uint8, np.float32):
            raise DataFileError(
                f"{frames.path}: {frames.dtype} {in_words(frames.shape)}, expected uint8 or float32 {expected}"
            )
        windows = _windows(starts_file(folder, split), part, spec.frames_in + spec.frames_out)
        clip = Clip(str(frames.path), part["frames"], partial(_rows, frames))
        notes = tuple(part["notes"])
        return ClipDataset(spec, [clip], windows, str(folder), as_stored, notes).limited(length)


def _rows(frames: NpyArray, rows: np.ndarray) -> np.ndarray:
    size = int(np.prod(frames.shape[1:]))
    return frames.blocks([int(row) * size for row in rows], frames.shape[1:])


def _windows(path: Path, part: dict[str, Any], frames: int) -> Windows:
    stored, step = open_npy(path), part["step"]
    if stored.shape != (part["samples"],) or stored.dtype != np.int64:
        raise DataFileError(
            f"{path}: {stored.dtype} {in_words(stored.shape)}, expected int64 ({part['samples']},) as {RECORD} says"
        )
    starts = stored.rows(0, part["samples"])
    last = part["frames"] - (frames - 1) * step
    if ((starts < 0) | (starts >= last)).any():
        raise DataFileError(f"{path}: a sample begins at frame {in_words(starts.max())}, expected 0 to {last - 1}")
    return Windows(np.zeros(len(starts), np.int64), starts, step)


def _record(path: Path, spec: TaskSpec, split: str) -> dict[str, Any]:
    try:
        record = json.loads(read_text(path))
        if record["format"] != FORMAT or record["task"] != spec.name:
            raise DataFileError(
                f"{path}: format {in_words(record['format'])} of task {in_words(record['task'])}, expected format"
                f" {FORMAT} of task {spec.name!r}"
            )
        _check(record, record["splits"][split])
    except DataFileError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        reason = in_words(" ".join(str(error).split()), 120)
        raise DataFileError(f"{path}: not a record of prepared data ({type(error).__name__}: {reason})") from None
    sizes = {name: getattr(spec, name) for name in SIZES} | {"frames": spec.frames_in + spec.frames_out}
    for name, value in sizes.items():
        if record[name] != value:
            raise DataFileError(
                f"{path}: prepared with {name} {in_words(record[name])}, expected {value}, as the run has it"
            )
    return record


def _check(record: dict[str, Any], part: dict[str, Any]) -> None:
    for place, names in ((record, (*SIZES, "frames")), (part, ("frames", "samples", "step"))):
        for name in names:
            if type(place[name]) is not int or place[name] < 1:
                raise ValueError(f"{name} is {in_words(place[name])}, expected a whole number >= 1")
    if not all(isinstance(note, str) and note.isprintable() for note in part["notes"]):
        raise ValueError(f"notes are {in_words(part['notes'])}, expected lines of text")
    if not isinstance(record["unit"], str) or type(record["missing"]) is not bool:
        raise ValueError(f"unit {in_words(record['unit'])}, missing {in_words(record['missing'])}")
    for name in ("scale", "offset"):
        if type(record[name]) not in (int, float) or not np.isfinite(record[name]):
            raise ValueError(f"{name} is {in_words(record[name])}, expected a number")


def record_of(data: dict[str, ClipDataset], parts: dict[str, dict[str, Any]], source: str) -> dict[str, Any]:
    """The content of `prepared.json` for the data sets of all splits."""
    spec = data[SPLITS[0]].spec
    sizes = {name: getattr(spec, name) for name in (*SIZES, *UNITS)}
    frames = {"frames": spec.frames_in + spec.frames_out}
    return {"format": FORMAT, "task": spec.name, "source": source, **sizes, **frames, "splits": parts}
