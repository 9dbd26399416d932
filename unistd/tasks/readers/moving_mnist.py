"""Reader of Moving MNIST: MNIST's digits, set in motion as they are drawn, and finished sequences.

Of the train digits (of the t10k digits where those are alone) the first 80 % serve train, the next 10 % val, the last
10 % test. Before those go, for test, the published sequences, then the t10k digits beside train digits; for val,
PredBench's sequences. Digits that another split shows too, as copies of a file hold them, are left to the later split.
Sequences of Earthformer's form serve the test split where there are no digits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from unistd.tasks.bounce import animate, digit_size
from unistd.tasks.data import SequenceDataset, stream_index
from unistd.tasks.files import DataFileError, FileNames
from unistd.tasks.mnist import open_sequences, read_idx_images
from unistd.tasks.raster import random_stream
from unistd.tasks.readers.clips import Clip, ClipDataset, cut
from unistd.tasks.readers.sequences import array_clips
from unistd.tasks.spec import TaskSpec
from unistd.tasks.task import SPLITS

DIGITS = 2  # in a sequence
_TRAIN_LENGTH = 10_000  # sequences an epoch that are put together from the digits
_LARGEST_SIDE = 1024  # pixels of a finished sequence, which is read as a whole
_TRAIN, _TEST = "train-images-idx3-ubyte", "t10k-images-idx3-ubyte"
_PUBLISHED = {"mnist_val_seq_1.npy": "val", "mnist_test_seq.npy": "test"}
_FINISHED = re.compile(r"^mm_\w*seq\d+\.npy$")
_TENTHS = {"train": (0, 8), "val": (8, 9), "test": (9, 10)}
_FILES = FileNames(
    task="moving_mnist",
    folders=("moving_mnist", "moving-mnist", "movingmnist", "mnist"),
    known=re.compile(rf"^({_TRAIN}|{_TEST})(\.gz)?$|^({'|'.join(map(re.escape, _PUBLISHED))})$|{_FINISHED.pattern}"),
    alike=re.compile(
        r"images.idx3.ubyte|mnist_(test|val)_seq|moving.?mnist.*\.np[yz]$|^mm_.*seq.*\.np[yz]", re.IGNORECASE
    ),
    expected=f"{_TRAIN}(.gz), {_TEST}(.gz), {', '.join(reversed(_PUBLISHED))} or mm_*seq0.npy",
    inside=("raw", "MNIST/raw", "mnist", "MovingMNIST"),
)


@dataclass
class _Found:
    """What lies below a root, of whatever folder: files of digits by name, sequences by split, other sequences."""

    digits: dict[str, Path] = field(default_factory=dict)
    published: dict[str, Path] = field(default_factory=dict)
    finished: list[Path] = field(default_factory=list)


def _look(root: Path) -> _Found:
    found = _Found()
    for folder in _FILES.find_all(root):
        for path in _FILES.files_in(folder):  # an unpacked file comes before the gzipped one
            if path.name in _PUBLISHED:
                found.published.setdefault(_PUBLISHED[path.name], path)
            elif _FINISHED.search(path.name):
                found.finished.append(path)
            else:
                found.digits.setdefault(path.name.removesuffix(".gz"), path)
    return found


class MovingMNISTReader:
    """Files of `<root>/moving_mnist/`, `<root>/MovingMNIST/`, `<root>/mnist/` or `<root>/`, together; or of `raw/` and
    `MNIST/raw/` in there, as torchvision lays them down."""

    def find(self, root: Path) -> Path | None:
        """The folder of the digits, or else of the sequences; see `FileNames.find`."""
        found = _look(root)
        paths = [*found.digits.values(), *found.published.values(), *found.finished]
        return paths[0].parent if paths else None

    def open(self, spec: TaskSpec, split: str, root: Path, length: int | None, seed: int) -> Dataset:
        """See `Task.open`. A split that is put together from digits has `length` sequences, 10,000 by default."""
        found = _look(root)
        if split in found.published:
            data = _sequences(spec, [found.published[split]])
            if split == "val" and "test" in found.published:
                data = data.apart(_sequences(spec, [found.published["test"]]))
            return data.limited(length)
        if split == "test" and found.finished and not found.digits:
            return _sequences(spec, found.finished).limited(length)
        images, path, notes = _digits_of(split, found)
        if split == "test" and found.finished:
            count = len(found.finished)
            notes += (f"{count} files as {found.finished[0]} left out: these samples are put together from digits",)
        make = partial(_from_digits, spec, split, seed, images)
        return SequenceDataset(spec, make, length or _TRAIN_LENGTH, str(path), notes)


def _digits_of(split: str, found: _Found) -> tuple[np.ndarray, Path, tuple[str, ...]]:
    """Images of a split that no later one has, (n, side, side) uint8, the file that they are from, and notes."""
    if not found.digits:
        folder = next(iter([*found.published.values(), *found.finished])).parent
        raise DataFileError(f"{folder}: no digits for the {split} split, expected {_TRAIN}(.gz) or {_TEST}(.gz)")
    load = cache(read_idx_images)
    later = [other for other in SPLITS[SPLITS.index(split) + 1 :] if other not in found.published]
    images, path = _part(split, found, load)
    kept = _apart(images, (_part(other, found, load)[0] for other in later))
    if not len(kept):
        raise DataFileError(f"{path}: every image of the {split} split is in another one too, expected others")
    left_out = len(images) - len(kept)
    note = f"{left_out} of {len(images)} digits left out: they are in another split too"
    return kept, path, (note,) if left_out else ()


def _part(split: str, found: _Found, load: Callable[[Path], np.ndarray]) -> tuple[np.ndarray, Path]:
    """The images of a split as they lie in a file, and that file."""
    if split == "test" and len(found.digits) == 2:
        return load(found.digits[_TEST]), found.digits[_TEST]
    path = found.digits.get(_TRAIN) or found.digits[_TEST]
    images, (low, high) = load(path), _TENTHS[split]
    part = images[len(images) * low // 10 : len(images) * high // 10]
    if not len(part):
        raise DataFileError(f"{path}: {len(images)} images, expected at least 10 to hold some out for each split")
    return part, path


def _apart(images: np.ndarray, others: Iterable[np.ndarray]) -> np.ndarray:
    held = {image.tobytes() for other in others for image in other}
    return images[[image.tobytes() not in held for image in images]]


def _from_digits(spec: TaskSpec, split: str, seed: int, digits: np.ndarray, index: int) -> np.ndarray:
    rng = random_stream(seed, stream_index(split, index))
    chosen = digits[rng.integers(len(digits), size=DIGITS)].astype(np.float32) / 255
    return animate(spec, rng, [_resize(digit, digit_size(spec)) for digit in chosen])


def _resize(image: np.ndarray, size: int) -> np.ndarray:
    """A square image resampled by area: (n, n) -> (size, size)."""
    n = len(image)
    edges = np.linspace(0, n, size + 1)
    # Weight of source pixel j in target pixel i: their overlap, over the size of the target pixel.
    low, high = np.maximum(edges[:-1, None], np.arange(n)), np.minimum(edges[1:, None], np.arange(1, n + 1))
    weight = (np.maximum(high - low, 0) * (size / n)).astype(np.float32)
    return weight @ image @ weight.T


def _sequences(spec: TaskSpec, paths: list[Path]) -> ClipDataset:
    """All finished sequences of some files, each from its first frame on."""
    clips = [clip for path in paths for clip in _clips(spec, path)]
    frames = spec.frames_in + spec.frames_out
    source = paths[0] if len(paths) == 1 else paths[0].parent
    return ClipDataset(spec, clips, cut(clips, frames, lambda room: [0]), str(source), _pooled)


def _clips(spec: TaskSpec, path: Path) -> list[Clip]:
    floats = _FINISHED.search(path.name) is not None
    array, axes = open_sequences(path, np.float32 if floats else np.uint8)
    held, side, frames = array.shape[axes.index("t")], array.shape[-1], spec.frames_in + spec.frames_out
    if held < frames or spec.height != spec.width or side % spec.height or side > _LARGEST_SIDE:
        raise DataFileError(
            f"{path}: {held} frames of {side}x{side}, expected at least {frames} of {spec.height}x{spec.width} "
            f"(or a whole multiple of it, at most {_LARGEST_SIDE})"
        )
    clips = array_clips(array, axes)
    return [Clip(c.name, c.frames, partial(_levels, c), c.frame_ids) for c in clips] if floats else clips


def _levels(clip: Clip, rows: np.ndarray) -> np.ndarray:
    """Frames in [0, 1] as levels of 8 bits, not rounded."""
    frames = clip.read(rows)
    if not ((frames >= 0) & (frames <= 1)).all():  # NaN is not
        raise DataFileError(f"{clip.name}: holds {frames.min()} to {frames.max()}, expected numbers in [0, 1]")
    return frames * np.float32(255)


def _pooled(frames: np.ndarray, spec: TaskSpec) -> np.ndarray:
    """Frames averaged over the blocks of pixels that make up a pixel of the spec."""
    block = frames.shape[-1] // spec.height
    if block == 1:
        return frames
    return frames.astype(np.float32).reshape(len(frames), 1, spec.height, block, spec.width, block).mean((3, 5))
