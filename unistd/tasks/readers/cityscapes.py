"""Readers of Cityscapes' sequences: the frames as they are published, and the HDF5 shards that MCVD makes of them.

    <root>/leftImg8bit_sequence/{train,val,test}/CITY/CITY_SSSSSS_FFFFFF_leftImg8bit.png    30 frames, 2048 x 1024
    <root>/Cityscapes128_h5/{train,val,test}/shard_0001.hdf5    `len/<i>`: frames of video i; `<i>/<f>`: (128, 128, 3)

The splits are the published ones. As in PredBench, samples begin at every fifth frame of a video in train and val, and
at the first one alone in test. Of a frame the middle is taken, as large as the aspect of the spec allows, and scaled
with Lanczos' filter, as MCVD does it: both forms give the same samples.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from unistd.tasks.files import DataFileError, Stamp, in_words, list_folder, open_file, stamp_of
from unistd.tasks.hdf5 import names_in, numbers_in, open_datasets, whole
from unistd.tasks.readers.clips import Clip, ClipDataset, content_id, cut, every
from unistd.tasks.readers.fit import crop_and_scale
from unistd.tasks.readers.frames import read_pixels, unbroken
from unistd.tasks.readers.images import MOST_TOGETHER
from unistd.tasks.readers.index import indexed
from unistd.tasks.readers.splits import TreeReader
from unistd.tasks.readers.tree import Tree, files_of, has
from unistd.tasks.spec import TaskSpec
from unistd.tasks.task import SPLITS

_EXPECTED = (
    "leftImg8bit_sequence/{train,val,test}/CITY/*_leftImg8bit.png or Cityscapes128_h5/{train,val,test}/shard_0001.hdf5"
)
_FRAME = re.compile(r"^(.+)_(\d{6})_(\d{6})_leftImg8bit\.png$")
_FRAME_ALIKE = re.compile(r"leftImg8bit|\.(png|jpe?g)$", re.IGNORECASE)
_SHARD, _SHARD_ALIKE = re.compile(r"^shard_(\d{4})\.hdf5$"), re.compile(r"shard|\.(h5|hdf5)$", re.IGNORECASE)
_STRIDE = 5  # frames between the windows of train and val
_PNG_END = 24  # bytes: check sums of a picture's pixels and of its last piece, and what marks the end
_PIECE = 256  # bytes of its middle: something else may follow its pixels
_VIDEOS = 16  # whose frames are asked for at once


def _dataset(spec: TaskSpec, top: Path, split: str, clips: list[Clip]) -> ClipDataset:
    frames = spec.frames_in + spec.frames_out
    windows = cut(clips, frames, (lambda room: [0]) if split == "test" else every(_STRIDE))
    if not len(windows):
        longest = max(clips, key=lambda clip: clip.frames)
        raise DataFileError(f"{longest.name}: {longest.frames} frames in a row, expected at least {frames}")
    short = sum(clip.frames < frames for clip in clips)
    notes = (f"{short} of {len(clips)} clips left out: fewer than {frames} frames in a row",) if short else ()
    return ClipDataset(spec, clips, windows, str(top), crop_and_scale, notes)


def _from_pictures(spec: TaskSpec, top: Path, split: str) -> ClipDataset:
    recordings: dict[tuple[str, str], list[tuple[int, Path]]] = defaultdict(list)
    for city in [name for name in list_folder(top / split) if (top / split / name).is_dir()]:
        for path in _frames_of(top / split / city):
            _, sequence, number = _FRAME.search(path.name).groups()
            recordings[city, sequence].append((int(number), path))
    runs = [run for recording in recordings.values() for run in unbroken(recording)]
    if not runs:
        raise DataFileError(f"{top / split}: no frames of a city, expected {_EXPECTED}")
    pictures = _Pictures(runs)
    clips = [
        Clip(str(run[0]), len(run), partial(read_pixels, run, 3), partial(pictures.ids, number))
        for number, run in enumerate(runs)
    ]
    return _dataset(spec, top, split, clips)


def _frames_of(folder: Path) -> list[Path]:
    """The frames of a city, sorted."""
    expected = f"names like {folder.name}_000000_000019_leftImg8bit.png"
    paths = files_of(folder, _FRAME, _FRAME_ALIKE, expected)
    if not paths:
        raise DataFileError(f"{folder}: no frames (but {in_words(list_folder(folder)[:3])}), expected {expected}")
    for path in paths:
        if _FRAME.search(path.name)[1] != folder.name:
            raise DataFileError(f"{path}: a frame of another city than its folder, expected {expected}")
    return paths


class _Pictures:
    """Runs of frames; what stands for the content of each frame is looked up for all of them at once."""

    def __init__(self, runs: list[list[Path]]) -> None:
        self.runs = runs

    def ids(self, number: int) -> np.ndarray:
        """Of the frames of a run, (n,)."""
        return self._ids[number]

    @cached_property
    def _ids(self) -> list[np.ndarray]:
        paths = [path for run in self.runs for path in run]
        files = [(path, _stamp(path)) for path in paths]
        found = indexed("cityscapes-png-1", files, lambda: {"ids": np.array([_picture_id(*file) for file in files])})
        return np.split(found["ids"], np.cumsum([len(run) for run in self.runs])[:-1])


def _picture_id(path: Path, stamp: Stamp) -> int:
    """From the size of a PNG, its middle, and the check sum of all its pixels, which it holds at its end."""
    size = stamp[0]
    with open_file(path) as file:
        file.seek(size // 2)
        middle = file.read(_PIECE)
        file.seek(max(0, size - _PNG_END))
        return content_id(size.to_bytes(8, "little"), middle, file.read())


def _from_shards(spec: TaskSpec, top: Path, split: str) -> ClipDataset:
    folder = top / split
    paths = files_of(folder, _SHARD, _SHARD_ALIKE, "names like shard_0001.hdf5")
    numbers = [int(_SHARD.search(path.name)[1]) for path in paths]
    if not paths or numbers != list(range(1, len(paths) + 1)):
        missing = next(number for number in range(1, len(paths) + 2) if number not in numbers)
        raise DataFileError(f"{folder / f'shard_{missing:04d}.hdf5'}: no such file, beside shards {in_words(numbers)}")
    clips = []
    for path in paths:
        shard = _Shard.open(path)
        clips += [
            Clip(f"{path}: video {number}", frames, partial(shard.read, number), partial(shard.id, number))
            for number, frames in enumerate(shard.frames)
        ]
    if not clips:
        raise DataFileError(f"{paths[0]}: no videos, expected some")
    return _dataset(spec, top, split, clips)


@dataclass(frozen=True)
class _Shard:
    """A file of videos: how many frames each has."""

    path: Path
    stamp: Stamp
    frames: tuple[int, ...]

    @staticmethod
    def open(path: Path) -> _Shard:
        """Raises DataFileError where videos, their frames and `len` do not agree."""
        stamp = _stamp(path)
        found = indexed("cityscapes-h5-1", [(path, stamp)], lambda: {"frames": _lengths(path)})
        return _Shard(path, stamp, tuple(found["frames"].tolist()))

    def read(self, number: int, rows: np.ndarray) -> np.ndarray:
        """Frames (n, 3, h, w) of a video."""
        return np.moveaxis(self._read([f"{number}/{row}" for row in rows]), 3, 1)

    def id(self, number: int) -> np.ndarray:
        """What stands for the content of a video, (1,)."""
        return self._ids[number : number + 1]

    @cached_property
    def _ids(self) -> np.ndarray:
        return indexed("cityscapes-h5-ids-1", [(self.path, self.stamp)], lambda: {"ids": self._make_ids()})["ids"]

    def _make_ids(self) -> np.ndarray:
        ids = []
        for first in range(0, len(self.frames), _VIDEOS):
            part = self.frames[first : first + _VIDEOS]
            keys = [f"{first + n}/{row}" for n, count in enumerate(part) for row in (0, count // 2, count - 1)]
            pixels = self._read(keys).reshape(len(part), -1)
            ids += [content_id(video.tobytes(), str(count).encode()) for video, count in zip(pixels, part, strict=True)]
        return np.array(ids, np.int64)

    def _read(self, keys: list[str]) -> np.ndarray:
        """Frames (n, h, w, 3) of these names."""
        names = list(dict.fromkeys(keys))
        arrays = open_datasets(self.path, *names)
        first = arrays[0]
        if first.stamp != self.stamp:
            raise DataFileError(f"{self.path}: has changed since it was opened, expected the same file")
        for array in arrays:
            if array.dtype != np.uint8 or len(array.shape) != 3 or array.shape[2] != 3 or 0 in array.shape:
                found, expected = f"{array.dtype} {in_words(array.shape)}", "uint8 (height, width, 3)"
            elif array.shape != first.shape:
                found, expected = in_words(array.shape), f"{first.shape} as {first.key!r}"
            else:
                continue
            raise DataFileError(f"{self.path}: {array.key!r} is {found}, expected {expected}")
        size = math.prod(first.shape)
        if len(names) * size > MOST_TOGETHER:
            found = f"{len(names)} frames of {size} bytes"
            raise DataFileError(f"{self.path}: {found}, expected at most {MOST_TOGETHER} together")
        place = {name: number for number, name in enumerate(names)}
        return whole(arrays)[[place[key] for key in keys]]


def _lengths(path: Path) -> np.ndarray:
    """Number of frames of each video of a shard, int64."""
    lengths = numbers_in(path, "len")
    videos = [str(number) for number in range(len(lengths))]
    found = set(names_in(path, "")[""]) - {"len", "videos"}
    if set(lengths) != set(videos) or found != set(videos):
        wrong = sorted(found.symmetric_difference(videos) | set(lengths).symmetric_difference(videos))
        raise DataFileError(
            f"{path}: {len(found)} videos, {len(lengths)} in 'len', expected both to be numbered from 0 on "
            f"(not so: {in_words(wrong[:4])})"
        )
    held = names_in(path, *videos)
    for video in videos:
        if not held[video] or set(held[video]) != {str(frame) for frame in range(len(held[video]))}:
            raise DataFileError(f"{path}: video {video} has frames {in_words(held[video])}, expected 0, 1, 2 and so on")
        if lengths[video] != len(held[video]):
            raise DataFileError(
                f"{path}: video {video} has {len(held[video])} frames, expected {lengths[video]} as 'len' says"
            )
    return np.array([lengths[video] for video in videos], np.int64)


def _stamp(path: Path) -> Stamp:
    with open_file(path) as file:
        return stamp_of(file)


def _has_pictures(top: Path) -> bool:
    splits = [top / split for split in SPLITS if (top / split).is_dir()]
    return any(has(split / city, _FRAME) for split in splits for city in list_folder(split))


def _has_shards(top: Path) -> bool:
    return any(has(top / split, _SHARD) for split in SPLITS)


SHARDS = TreeReader(
    Tree(
        "cityscapes", ("cityscapes128_h5", "cityscapes"), _has_shards, _EXPECTED,
        inside=("Cityscapes128_h5",), distinct=False,
    ),
    _from_shards,
)  # fmt: skip
PICTURES = TreeReader(
    Tree(
        "cityscapes", ("cityscapes", "leftimg8bit_sequence"), _has_pictures, _EXPECTED,
        inside=("leftImg8bit_sequence",),
    ),
    _from_pictures,
)  # fmt: skip
