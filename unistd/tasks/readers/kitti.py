"""Readers of KITTI: raw drives as they are published, or with renumbered frames, and PredNet's hkl files.

    <root>/kitti[/DATE]/DATE_drive_NNNN_sync/image_02/data/0000000000.png    as published: the left colour camera
    <root>/kitti/DATE_drive_NNNN_sync/0.png                                  renumbered
    <root>/kitti/{train,val,test}.json                                       PredBench's lists {drive: frames}
    <root>/kitti_hkl/X_{train,val,test}.hkl, sources_{train,val,test}.hkl    PredNet's

Without lists the drives are split in the order of their names: the last tenth is test, the tenth before it val. A
drive is in one split alone, whatever folders hold it. Samples begin at every fourth frame in train and at every frame
in val and test, and contain no missing frame; frames are scaled to cover the spec's, and cropped in the middle.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from unistd.files import read_text
from unistd.tasks.files import DataFileError, in_words, list_folder, open_file
from unistd.tasks.hdf5 import Hdf5Array, open_datasets
from unistd.tasks.readers.clips import Clip, ClipDataset, cut, every
from unistd.tasks.readers.fit import cover
from unistd.tasks.readers.frames import picture_clip, unbroken
from unistd.tasks.readers.splits import TreeReader, held_out, tenths
from unistd.tasks.readers.tree import Tree, has
from unistd.tasks.spec import TaskSpec
from unistd.tasks.task import SPLITS

_EXPECTED = "DATE_drive_NNNN_sync/image_02/data/*.png, DATE_drive_NNNN_sync/0.png or kitti_hkl/X_train.hkl"
_DATE = re.compile(r"^\d{4}_\d\d_\d\d$")
_DRIVE = re.compile(r"^(\d{4}_\d\d_\d\d_)?drive_\d{4}")
_FRAME = re.compile(r"^(\d{1,10})\.(png|jpg)$")
_CAMERA = "image_02"
_STRIDES = {"train": 4, "val": 1, "test": 1}
_HKL = re.compile(r"^X_(train|val|test)\.hkl$")


def _dataset(spec: TaskSpec, split: str, top: Path, clips: list[Clip]) -> ClipDataset:
    frames = spec.frames_in + spec.frames_out
    windows = cut(clips, frames, every(_STRIDES[split]))
    if clips and not len(windows):
        longest = max(clips, key=lambda clip: clip.frames)
        raise DataFileError(f"{longest.name}: {longest.frames} frames in a row, expected at least {frames}")
    return ClipDataset(spec, clips, windows, str(top), cover)


def _raw(spec: TaskSpec, top: Path, split: str) -> ClipDataset:
    drives = _drives(top)
    lists = [name for name in SPLITS if (top / f"{name}.json").exists()]
    chosen = _listed(top / f"{split}.json", drives) if lists else tenths(split, sorted(drives))
    folders = [folder for drive in chosen for folder in drives[drive]]
    return _dataset(spec, split, top, [clip for folder in folders for clip in _drive_clips(folder)])


def _drives(top: Path) -> dict[str, list[Path]]:
    """Drive (date and number) -> the folders that hold it."""
    found = defaultdict(list)
    dates = [name for name in list_folder(top) if _DATE.search(name) and (top / name).is_dir()]
    for folder in [top, *(top / date for date in dates)]:
        for name in list_folder(folder):
            if (match := _DRIVE.search(name)) and (folder / name).is_dir():
                found[match[0]].append(folder / name)
    return found


def _drive_clips(folder: Path) -> list[Clip]:
    """The frames of a drive, cut where one is missing."""
    home = folder
    if (folder / _CAMERA).exists():
        home = folder / _CAMERA / "data"
    elif cameras := [name for name in list_folder(folder) if name.startswith("image_")]:
        raise DataFileError(f"{folder}: found cameras {in_words(cameras)}, expected {_CAMERA}, the left one in colour")
    found = [(int(match[1]), home / name) for name in list_folder(home) if (match := _FRAME.search(name))]
    if not found:
        raise DataFileError(f"{home}: no frames (but {in_words(list_folder(home)[:3])}), expected {_EXPECTED}")
    return [picture_clip(paths, 3) for paths in unbroken(found)]


def _listed(path: Path, drives: dict[str, list[Path]]) -> list[str]:
    """The drives that a list of PredBench's names."""
    open_file(path).close()
    try:
        listed = json.loads(read_text(path))
        if not isinstance(listed, dict) or not listed:
            raise ValueError(f"found {in_words(listed)}, expected {{drive: frames}}")
    except (ValueError, OSError, RecursionError) as error:
        raise DataFileError(f"{path}: no list of drives ({in_words(str(error), 120)})") from None
    chosen = []
    for name in listed:
        match = _DRIVE.search(name)
        if match is None or match[0] not in drives:
            raise DataFileError(f"{path}: names drive {in_words(name)}, which is not in {path.parent}")
        chosen.append(match[0])
    return sorted(set(chosen))


def _hkl(spec: TaskSpec, top: Path, split: str) -> ClipDataset:
    is_val = (top / "X_val.hkl").exists()
    published = split if split != "val" or is_val else "train"
    clips = _hkl_clips(top, published)
    if published == "train" and not is_val:
        clips = held_out(split, clips, top / "X_train.hkl")
    return _dataset(spec, split, top, clips)


def _hkl_clips(top: Path, split: str) -> list[Clip]:
    frames = _hickled(top / f"X_{split}.hkl")
    path = frames.path
    if frames.dtype != np.uint8 or len(frames.shape) != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise DataFileError(f"{path}: {frames.dtype} {in_words(frames.shape)}, expected uint8 (n, height, width, 3)")
    sources = _hickled(top / f"sources_{split}.hkl")
    if sources.shape != frames.shape[:1] or sources.dtype.kind not in "SO":
        raise DataFileError(
            f"{sources.path}: {sources.dtype} {in_words(sources.shape)}, expected texts ({frames.shape[0]},), one for"
            f" each frame of {path.name}"
        )
    texts = sources.rows(0, sources.shape[0])
    borders = [0, *(np.flatnonzero(texts[1:] != texts[:-1]) + 1).tolist(), len(texts)]
    return [
        Clip(f"{path}: frames {begin} to {end - 1}", end - begin, partial(_hkl_rows, frames, begin))
        for begin, end in pairwise(borders)
    ]


def _hkl_rows(frames: Hdf5Array, begin: int, rows: np.ndarray) -> np.ndarray:
    """Frames (n, 3, h, w); what lies between them is read along, where they are neighbours."""
    parts = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
    read = [frames.rows(begin + int(part[0]), begin + int(part[-1]) + 1) for part in parts]
    return np.moveaxis(np.concatenate(read), 3, 1)


def _hickled(path: Path) -> Hdf5Array:
    """The array of a hickle file: `data_0` until hickle 3, `data` since. Nothing in it is unpickled."""
    try:
        return open_datasets(path, "data_0")[0]
    except DataFileError as error:
        if "found keys" not in str(error) or "'data'" not in str(error):
            raise
    return open_datasets(path, "data")[0]


def _has_drives(top: Path) -> bool:
    names = list_folder(top)
    return any(
        (_DRIVE.search(name) or (_DATE.search(name) and has(top / name, _DRIVE))) and (top / name).is_dir()
        for name in names
    )


def _has_hkl(top: Path) -> bool:
    return has(top, _HKL)


HKL = TreeReader(Tree("kitti", ("kitti_hkl", "kitti"), _has_hkl, _EXPECTED, inside=("kitti_hkl",)), _hkl)
RAW = TreeReader(Tree("kitti", ("kitti", "kitti_raw"), _has_drives, _EXPECTED), _raw)
