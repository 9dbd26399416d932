"""Moving MNIST: two digits that drift and bounce off the walls of their frame.

Protocol: 10 -> 10 frames of 1x64x64 (Srivastava et al., ICML 2015; motion as in OpenSTL). Digits are drawn strokes, or
real MNIST where its files are given.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from unistd.tasks.data import SequenceDataset, spread, stream_index
from unistd.tasks.files import DataFileError, FileNames
from unistd.tasks.mnist import read_idx_images, read_test_sequences
from unistd.tasks.npy import NpyArray
from unistd.tasks.raster import capsule, finish, random_stream
from unistd.tasks.spec import TaskSpec
from unistd.tasks.task import Task

SPEC = TaskSpec(
    name="moving_mnist",
    title="Moving MNIST",
    discipline="motion",
    channels=1,
    height=64,
    width=64,
    frames_in=10,
    frames_out=10,
    patch=4,
    scale=255.0,
    offset=0.0,
    unit="8-bit level",
)

_DIGITS = 2
_STEP = 0.1  # of the free canvas, a frame
_CANVAS, _DIGIT = 64, 28  # pixels; the digit keeps this share of a canvas of any other size
_TRAIN_LENGTH = 10_000  # sequences an epoch that are put together from the digits
_TRAIN_DIGITS, _TEST_DIGITS = "train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz"
_TEST_SEQUENCES = "mnist_test_seq.npy"
_FILES = FileNames(
    task="moving_mnist",
    folders=("moving_mnist", "mnist"),
    known=re.compile("|".join(f"^{re.escape(name)}$" for name in (_TRAIN_DIGITS, _TEST_DIGITS, _TEST_SEQUENCES))),
    alike=re.compile(r"images.idx3.ubyte|mnist_test_seq|moving.?mnist.*\.np[yz]$", re.IGNORECASE),
    expected=f"{_TRAIN_DIGITS}, {_TEST_DIGITS} or {_TEST_SEQUENCES}",
)


def _arc(cy: float, cx: float, ry: float, rx: float, start: float, stop: float) -> list[tuple[float, float]]:
    """Points of an elliptic arc, angles in turns, clockwise from the right."""
    angles = 2 * np.pi * np.linspace(start, stop, 13)
    return [(cy + ry * np.sin(a), cx + rx * np.cos(a)) for a in angles]


# Strokes of the ten digits as (y, x) in the unit square.
_STROKES: tuple[list[list[tuple[float, float]]], ...] = (
    [_arc(0.5, 0.5, 0.36, 0.24, 0, 1)],
    [[(0.26, 0.38), (0.14, 0.52), (0.86, 0.52)]],
    [[*_arc(0.33, 0.5, 0.19, 0.22, 0.5, 1.08), (0.86, 0.27), (0.86, 0.75)]],
    [_arc(0.31, 0.47, 0.17, 0.2, 0.58, 1.25), _arc(0.67, 0.47, 0.19, 0.24, -0.25, 0.42)],
    [[(0.14, 0.58), (0.6, 0.24), (0.6, 0.78)], [(0.36, 0.62), (0.88, 0.62)]],
    [[(0.14, 0.72), (0.14, 0.34), (0.47, 0.32), *_arc(0.63, 0.48, 0.22, 0.24, -0.22, 0.42)]],
    [[(0.13, 0.62), (0.36, 0.35), (0.62, 0.27)], _arc(0.65, 0.49, 0.2, 0.22, 0, 1)],
    [[(0.15, 0.26), (0.15, 0.74), (0.87, 0.42)]],
    [_arc(0.31, 0.5, 0.17, 0.18, 0, 1), _arc(0.67, 0.5, 0.19, 0.22, 0, 1)],
    [_arc(0.34, 0.49, 0.2, 0.21, 0, 1), [(0.34, 0.7), (0.64, 0.66), (0.87, 0.52)]],
)


def _draw_digit(rng: np.random.Generator, size: int) -> np.ndarray:
    """A digit in a hand of its own: slant, size, wobble and pen width vary; (size, size) float32 in [0, 1]."""
    slant, turn = rng.uniform(-0.25, 0.25), rng.uniform(-0.15, 0.15)
    shape = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn) - slant, np.cos(turn)]]) * rng.uniform(
        0.8, 1.0, (1, 2)
    )
    radius = rng.uniform(0.035, 0.06)
    starts, ends = [], []
    for stroke in _STROKES[rng.integers(10)]:
        points = (np.array(stroke) - 0.5) @ shape.T + 0.5 + rng.normal(0, 0.008, (len(stroke), 2))
        starts.append(points[:-1])
        ends.append(points[1:])
    return capsule(size, size, np.concatenate(starts), np.concatenate(ends), radius).max(0)


def _resize(image: np.ndarray, size: int) -> np.ndarray:
    """A square image resampled by area: (n, n) -> (size, size)."""
    n = len(image)
    edges = np.linspace(0, n, size + 1)
    # Weight of source pixel j in target pixel i: their overlap, over the size of the target pixel.
    low, high = np.maximum(edges[:-1, None], np.arange(n)), np.minimum(edges[1:, None], np.arange(1, n + 1))
    weight = (np.maximum(high - low, 0) * (size / n)).astype(np.float32)
    return weight @ image @ weight.T


def _bounce(rng: np.random.Generator, frames: int) -> np.ndarray:
    """Path of one digit, (frames, 2) in [0, 1] of the free canvas: a straight line, folded at the walls."""
    angle = rng.uniform(0, 2 * np.pi)
    step = _STEP * np.array([np.sin(angle), np.cos(angle)])
    path = (rng.uniform(0, 1, 2) + step * np.arange(frames)[:, None]) % 2
    return np.minimum(path, 2 - path)


def _animate(spec: TaskSpec, rng: np.random.Generator, digits: list[np.ndarray]) -> np.ndarray:
    """Frames (Tin + Tout, 1, H, W) of digits (size, size) that bounce; where they overlap the brighter one is seen."""
    frames = np.zeros((spec.frames_in + spec.frames_out, 1, spec.height, spec.width), np.float32)
    for digit in digits:
        size = len(digit)
        free = np.array([spec.height - size, spec.width - size])
        for frame, (top, left) in zip(frames[:, 0], (_bounce(rng, len(frames)) * free).astype(int), strict=True):
            region = frame[top : top + size, left : left + size]
            np.maximum(region, digit, out=region)
    return finish(frames)


def _digit_size(spec: TaskSpec) -> int:
    return max(1, round(_DIGIT / _CANVAS * min(spec.height, spec.width)))


def generate(spec: TaskSpec, seed: int, index: int) -> np.ndarray:
    """Two drawn digits that move by a tenth of the free canvas a frame in a random direction and bounce."""
    rng = random_stream(seed, index)
    return _animate(spec, rng, [_draw_digit(rng, _digit_size(spec)) for _ in range(_DIGITS)])


class MovingMNISTReader:
    """Real digits, set in motion as they are drawn, and the published test sequences.

    Below `<root>/moving_mnist/`, `<root>/mnist/` or `<root>/` it looks for `train-images-idx3-ubyte.gz`,
    `t10k-images-idx3-ubyte.gz` and `mnist_test_seq.npy`. Of the train digits (of the t10k digits where those are alone)
    the first 80 % serve train, the next 10 % val, the last 10 % test; for test the published sequences go first, then
    the t10k digits beside train digits.
    """

    def find(self, root: Path) -> Path | None:
        """The folder that holds the files; see `FileNames.find`."""
        return _FILES.find(root)

    def open(self, spec: TaskSpec, split: str, root: Path, length: int | None, seed: int) -> Dataset:
        """See `Task.open`. A split that is put together from digits has `length` sequences, 10,000 by default."""
        folder = self.find(root)
        names = {path.name for path in _FILES.files_in(folder)}
        if split == "test" and _TEST_SEQUENCES in names:
            return _published_test(spec, folder / _TEST_SEQUENCES, length)
        digits, path = _digits_of(split, folder, names)
        make = partial(_from_digits, spec, split, seed, digits)
        return SequenceDataset(spec, make, length or _TRAIN_LENGTH, str(path))


def _digits_of(split: str, folder: Path, names: set[str]) -> tuple[np.ndarray, Path]:
    if not names & {_TRAIN_DIGITS, _TEST_DIGITS}:
        raise DataFileError(f"{folder}: no digits for the {split} split, expected {_TRAIN_DIGITS} or {_TEST_DIGITS}")
    if split == "test" and {_TRAIN_DIGITS, _TEST_DIGITS} <= names:
        return read_idx_images(folder / _TEST_DIGITS), folder / _TEST_DIGITS
    path = folder / (_TRAIN_DIGITS if _TRAIN_DIGITS in names else _TEST_DIGITS)
    digits = read_idx_images(path)
    low, high = {"train": (0, 8), "val": (8, 9), "test": (9, 10)}[split]
    part = digits[len(digits) * low // 10 : len(digits) * high // 10]
    if not len(part):
        raise DataFileError(f"{path}: {len(digits)} images, expected at least 10 to hold some out for each split")
    return part, path


def _from_digits(spec: TaskSpec, split: str, seed: int, digits: np.ndarray, index: int) -> np.ndarray:
    rng = random_stream(seed, stream_index(split, index))
    chosen = digits[rng.integers(len(digits), size=_DIGITS)].astype(np.float32) / 255
    return _animate(spec, rng, [_resize(digit, _digit_size(spec)) for digit in chosen])


def _published_test(spec: TaskSpec, path: Path, length: int | None) -> Dataset:
    sequences = read_test_sequences(path)
    frames = spec.frames_in + spec.frames_out
    side = sequences.shape[-1]
    held, count = sequences.shape[:2]
    if held < frames or spec.height != spec.width or side % spec.height:
        raise DataFileError(
            f"{path}: {held} frames of {side}x{side}, expected at least {frames} "
            f"of {spec.height}x{spec.width} (or a whole multiple of it)"
        )
    chosen = spread(count, length)
    return SequenceDataset(spec, partial(_published_sequence, spec, sequences, chosen), len(chosen), str(path))


def _published_sequence(spec: TaskSpec, sequences: NpyArray, chosen: np.ndarray, index: int) -> np.ndarray:
    _, count, side, _ = sequences.shape
    block = side // spec.height
    frames = (np.arange(spec.frames_in + spec.frames_out) * count + chosen[index]) * side**2
    clip = sequences.blocks(frames.tolist(), (side, side)).astype(np.float32) / 255
    return clip.reshape(len(clip), 1, spec.height, block, spec.width, block).mean((3, 5))


TASK = Task(SPEC, generate, MovingMNISTReader())
