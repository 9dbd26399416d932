"""Readers of BAIR robot pushing: the published tfrecords, and PredBench's arrays.

Both have a window at every start in train, and one in the middle of each sequence in val and test, as PredBench tests
(start 9 of 30 frames for 12). Where no val split is there, the last twentieth of the train sequences is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from unistd.tasks.files import DataFileError, in_words
from unistd.tasks.npy import open_npy
from unistd.tasks.readers.clips import Clip, ClipDataset, content_id, cut, every
from unistd.tasks.readers.example import bytes_features
from unistd.tasks.readers.fit import resize
from unistd.tasks.readers.index import indexed
from unistd.tasks.readers.sequences import array_clips
from unistd.tasks.readers.splits import TreeReader, held_out
from unistd.tasks.readers.tfrecord import Record, open_records
from unistd.tasks.readers.tree import Tree, files_of, has
from unistd.tasks.spec import TaskSpec

_EXPECTED = "softmotion30_44k/{train,test}/*.tfrecords or {train,val,test}.npy"
_RECORDS, _RECORDS_ALIKE = re.compile(r"\.tfrecords?$"), re.compile(r"tfrecord", re.IGNORECASE)
_ARRAYS = re.compile(r"^(train|val|test)\.npy$")
_KEY = "{}/image_aux1/encoded"


def _dataset(clips_of: Callable[[Path, str], list[Clip] | None], spec: TaskSpec, top: Path, split: str) -> ClipDataset:
    """Args: clips_of: (top, split) -> the clips of a split as published, None for val where there is none."""
    clips = clips_of(top, split)
    if split == "val" and clips is None:
        clips = held_out("val", clips_of(top, "train"), top)
    elif split == "train" and clips_of(top, "val") is None:
        clips = held_out("train", clips, top)
    frames = spec.frames_in + spec.frames_out
    windows = cut(clips, frames, every(1) if split == "train" else lambda room: [room // 2])
    if not len(windows):
        raise DataFileError(f"{clips[0].name}: {clips[0].frames} frames, expected at least {frames}")
    return ClipDataset(spec, clips, windows, str(top), resize)


def _record_clips(top: Path, split: str) -> list[Clip] | None:
    folder = top / split
    if split == "val" and not folder.exists():
        return None
    paths = files_of(folder, _RECORDS, _RECORDS_ALIKE, "names that end in .tfrecords")
    if not paths:
        raise DataFileError(f"{folder}: no tfrecords, expected {_EXPECTED}")
    records = open_records(paths)
    firsts = [record for record in records if record.number == 0]
    files = [(record.path, record.stamp) for record in firsts]
    held = indexed("bair-frames-1", files, lambda: {"frames": np.array([_frames(record) for record in firsts])})
    frames = dict(zip(paths, held["frames"].tolist(), strict=True))
    return [Clip(str(r), frames[r.path], partial(_record_frames, r), partial(_record_id, r)) for r in records]


def _record_id(record: Record) -> np.ndarray:
    return np.array([content_id(record.length.to_bytes(8, "little"), record.checksum.to_bytes(4, "little"))])


def _features(record: Record) -> dict[str, list[memoryview]]:
    try:
        return bytes_features(record.read())
    except ValueError as error:
        if isinstance(error, DataFileError):
            raise
        raise DataFileError(f"{record}: not a tf.train.Example ({error})") from None


def _frames(record: Record) -> int:
    """How many frames a record holds: those numbered from 0 on without a gap."""
    features = _features(record)
    frames = next(number for number in range(len(features) + 1) if _KEY.format(number) not in features)
    if not frames:
        raise DataFileError(f"{record}: found keys {in_words(sorted(features)[:3])}, expected {_KEY.format(0)}, ...")
    return frames


def _record_frames(record: Record, rows: np.ndarray) -> np.ndarray:
    """Frames (n, 3, side, side) uint8."""
    features, frames = _features(record), []
    for key in map(_KEY.format, rows.tolist()):
        values = features.get(key, [])
        if len(values) != 1:
            raise DataFileError(f"{record}: {len(values)} values of {key}, expected one")
        side = int((len(values[0]) // 3) ** 0.5)
        if not side or len(values[0]) != 3 * side * side or (frames and frames[0].shape[1] != side):
            expected = 3 * frames[0].shape[1] ** 2 if frames else "3 * side * side of a square RGB frame, as 12288"
            raise DataFileError(f"{record}: {key} has {len(values[0])} bytes, expected {expected}")
        frames.append(np.moveaxis(np.frombuffer(values[0], np.uint8).reshape(side, side, 3), 2, 0))
    return np.stack(frames)


def _array_clips(top: Path, split: str) -> list[Clip] | None:
    path = top / f"{split}.npy"
    if split == "val" and path.name not in {found.name for found in files_of(top, _ARRAYS, _ARRAYS, _EXPECTED)}:
        return None
    array = open_npy(path)
    if array.dtype != np.uint8 or len(array.shape) != 5 or array.shape[-1] != 3:
        raise DataFileError(f"{path}: {array.dtype} {in_words(array.shape)}, expected uint8 (n, frames, side, side, 3)")
    return array_clips(array, "nthwc")


def _has_records(top: Path) -> bool:
    return any(has(top / split, _RECORDS) for split in ("train", "val", "test"))


def _has_arrays(top: Path) -> bool:
    return has(top, _ARRAYS)


RECORDS = TreeReader(
    Tree("bair", ("bair", "softmotion30_44k"), _has_records, _EXPECTED, inside=("softmotion30_44k",)),
    partial(_dataset, _record_clips),
)
ARRAYS = TreeReader(Tree("bair", ("bair",), _has_arrays, _EXPECTED, distinct=False), partial(_dataset, _array_clips))
