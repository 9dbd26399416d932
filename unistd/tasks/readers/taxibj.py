"""Readers of TaxiBJ as windows that others have cut out of it: OpenSTL's archive, and PredBench's arrays.

    <root>/taxibj/dataset.npz             X_train, Y_train, X_test, Y_test: (n, 4, 2, H, W), numbers in [-1, 1]
    <root>/taxibj/{train,val,test}.npy    (n, 8, 2, H, W), counts

A sample is one of these windows, or its beginning. They begin half an hour apart and overlap: of train and val those
are left out that share a frame with a later split, found by its content. Where no val split is there, the last
twentieth of the train windows is. In the archive, -1 is a count of 0 and 1 the scale of the spec.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from unistd.tasks.files import DataFileError, in_words, open_file, stamp_of
from unistd.tasks.npy import NpyArray, open_npy
from unistd.tasks.npz import MemoryArray, open_npz
from unistd.tasks.readers.clips import Clip, ClipDataset, content_id, cut
from unistd.tasks.readers.counts import LARGEST, no_counts
from unistd.tasks.readers.fit import as_stored
from unistd.tasks.readers.index import Arrays, indexed
from unistd.tasks.readers.splits import held_out
from unistd.tasks.readers.tree import Tree, files_of, has
from unistd.tasks.spec import TaskSpec
from unistd.tasks.task import SPLITS

EXPECTED = "names like BJ16_M32x32_T30_InOut.h5, dataset.npz or {train,val,test}.npy"
_ARCHIVE = re.compile(r"^dataset\.npz$")
_ARRAYS, _ARRAYS_ALIKE = (
    re.compile(r"^(train|val|test)\.npy$"),
    re.compile(r"^(train|valid?|test).*\.npy", re.IGNORECASE),
)
_LOW, _HIGH = -1.001, 3.0  # of the archive: its scale is that of another share of the records, and rounded
_BLOCK = 32 << 20  # bytes that are read and checked at once
_LARGEST_PACKED = 256 << 20  # bytes of all that is unpacked of an archive


@dataclass(frozen=True)
class _Part:
    """An array (n, t, 2, H, W) of a file."""

    name: str
    array: NpyArray | MemoryArray


@dataclass(frozen=True)
class _Cut:
    """Windows of a split.

    Args:
        parts: the arrays of their frames, one after the other in time.
        scale: count that 1 stands for in them; None: they are counts.
        ids: of what is in each frame, (n, T) int64.
        largest: count of each window, (n,).
    """

    parts: tuple[_Part, ...]
    scale: float | None
    ids: np.ndarray
    largest: np.ndarray

    @staticmethod
    def of(spec: TaskSpec, path: Path, parts: tuple[_Part, ...], scale: float | None) -> _Cut:
        """Looks at all windows of a file once. Raises DataFileError where the arrays are not as published."""
        _check(spec, path, parts, scale)
        with open_file(path) as file:
            stamp = stamp_of(file)
        kind = f"taxibj-cut-1-{content_id(*(part.name.encode() for part in parts), str(scale).encode()):x}"
        made = indexed(kind, [(path, stamp)], partial(_look, path, parts, scale))
        return _Cut(parts, scale, made["ids"], made["largest"])

    def clips(self) -> list[Clip]:
        """Each window as a clip."""
        count, frames = self.ids.shape
        return [
            Clip(f"{self.parts[0].array.path}: window {n}", frames, partial(self._read, n), partial(self._ids, n))
            for n in range(count)
        ]

    def _read(self, number: int, rows: np.ndarray) -> np.ndarray:
        stored = np.concatenate([part.array.rows(number, number + 1)[0] for part in self.parts])[rows]
        return _counts(stored, self.scale)

    def _ids(self, number: int) -> np.ndarray:
        return self.ids[number]


def _counts(stored: np.ndarray, scale: float | None) -> np.ndarray:
    """float32 counts."""
    if scale is None:
        return stored.astype(np.float32)
    return np.maximum(0, (stored.astype(np.float32) + 1) * np.float32(scale / 2))


def _check(spec: TaskSpec, path: Path, parts: tuple[_Part, ...], scale: float | None) -> None:
    kinds, expected = ("iuf", "numbers") if scale is None else ("f", "floats")
    first = parts[0].array
    for part in parts:
        shape = part.array.shape
        what = f"{path}: {part.name} is {part.array.dtype} {in_words(shape)}"
        if (
            part.array.dtype.kind not in kinds
            or len(shape) != 5
            or 0 in shape
            or shape[2:] != (2, spec.height, spec.width)
        ):
            raise DataFileError(f"{what}, expected {expected} (n, frames, 2, {spec.height}, {spec.width})")
        if shape[0] != first.shape[0]:
            raise DataFileError(f"{what}, expected {first.shape[0]} windows as {parts[0].name} has")
    frames = sum(part.array.shape[1] for part in parts)
    if frames < spec.frames_in + spec.frames_out:
        raise DataFileError(f"{path}: windows of {frames} frames, expected at least {spec.frames_in + spec.frames_out}")


def _look(path: Path, parts: tuple[_Part, ...], scale: float | None) -> Arrays:
    """Checks all values; the ids and the largest count of each window."""
    count = parts[0].array.shape[0]
    bytes_each = sum(math.prod(part.array.shape[1:]) * part.array.dtype.itemsize for part in parts)
    ids, largest = [], []
    for first in range(0, count, max(1, _BLOCK // bytes_each)):
        last = min(count, first + max(1, _BLOCK // bytes_each))
        pieces = [part.array.rows(first, last) for part in parts]
        for part, piece in zip(parts, pieces, strict=True):
            wrong = no_counts(piece) if scale is None else ~((piece >= _LOW) & (piece <= _HIGH))
            if wrong.any():
                number = first + int(wrong.any(axis=(1, 2, 3, 4)).argmax())
                expected = f"counts >= 0 and <= {LARGEST}" if scale is None else "numbers from -1 to 1"
                raise DataFileError(
                    f"{path}: {part.name} holds {piece[wrong][0]} in window {number}, expected {expected}"
                )
        frames = _counts(np.concatenate(pieces, axis=1), scale)
        largest += frames.max(axis=(1, 2, 3, 4)).tolist()
        still = (frames == frames[..., :1, :1]).all(axis=(2, 3, 4))  # one number all over says nothing about when
        ids += [
            [content_id(str(path).encode(), b"%d %d" % (number, t)) if flat else content_id(frame.tobytes())
             for t, (frame, flat) in enumerate(zip(window, flats, strict=True))]
            for number, (window, flats) in enumerate(zip(frames, still, strict=True), first)
        ]  # fmt: skip
    return {"ids": np.array(ids, np.int64), "largest": np.array(largest)}


@dataclass(frozen=True)
class CutReader:
    """Reads one of the two forms (a `FileReader`). A count above the scale of the spec in train raises the scale.

    Args:
        tree: where the files lie.
        cut: (spec, top, split) -> its windows as published, None for val where there are none.
    """

    tree: Tree
    cut: Callable[[TaskSpec, Path, str], _Cut | None]

    def find(self, root: Path) -> Path | None:
        """The folder of the files; see `Tree.find`."""
        return self.tree.find(root)

    def open(self, spec: TaskSpec, split: str, root: Path, length: int | None, seed: int) -> ClipDataset:
        """See `Task.open`; `seed` has no effect."""
        top = self.find(root)
        cuts = {name: self.cut(spec, top, name) for name in SPLITS}
        clips = {name: held.clips() for name, held in cuts.items() if held is not None}
        learnt = range(len(clips["train"]))
        if "val" not in clips:
            clips["val"] = held_out("val", clips["train"], top)
            clips["train"], learnt = held_out("train", clips["train"], top), held_out("train", learnt, top)
        spec = spec.replace(scale=max(spec.scale, float(cuts["train"].largest[learnt].max())))
        frames = spec.frames_in + spec.frames_out
        data = {
            name: ClipDataset(spec, held, cut(held, frames, lambda room: [0]), str(top), as_stored)
            for name, held in clips.items()
        }
        return data[split].apart(*(data[name] for name in SPLITS[SPLITS.index(split) + 1 :])).limited(length)


def _from_archive(spec: TaskSpec, top: Path, split: str) -> _Cut | None:
    if split == "val":
        return None
    path = top / "dataset.npz"
    parts = tuple(_Part(name, open_npz(path, name)) for name in (f"X_{split}", f"Y_{split}"))
    unpacked = sum(part.array.values.nbytes for part in parts if isinstance(part.array, MemoryArray))
    if unpacked > _LARGEST_PACKED:
        raise DataFileError(
            f"{path}: arrays of {split} are packed and {unpacked} bytes large, expected at most {_LARGEST_PACKED}, or "
            "numpy.savez, which packs nothing"
        )
    return _Cut.of(spec, path, parts, spec.scale)


def _from_arrays(spec: TaskSpec, top: Path, split: str) -> _Cut | None:
    path = top / f"{split}.npy"
    if split == "val" and path not in files_of(top, _ARRAYS, _ARRAYS_ALIKE, "{train,val,test}.npy"):
        return None
    return _Cut.of(spec, path, (_Part("the array", open_npy(path)),), None)


def _has_archive(top: Path) -> bool:
    return has(top, _ARCHIVE)


def _has_arrays(top: Path) -> bool:
    return has(top, _ARRAYS)


ARCHIVE = CutReader(Tree("taxibj", ("taxibj",), _has_archive, EXPECTED, distinct=False), _from_archive)
ARRAYS = CutReader(Tree("taxibj", ("taxibj",), _has_arrays, EXPECTED, distinct=False), _from_arrays)
