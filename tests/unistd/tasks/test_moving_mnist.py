"""Moving MNIST from real digits and from the published test sequences."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from unistd.tasks import DataFileError, build_dataset, files_found, get_task
from unistd.tasks.mnist import read_idx_images

SPEC = get_task("moving_mnist").spec
TRAIN, TEST, SEQUENCES = "train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz", "mnist_test_seq.npy"
REAL = [path for path in [Path(__file__).parents[4] / "shared/data/mnist" / TEST] if path.is_file()]


def idx(images, magic=0x803):
    """Images as idx3 bytes, gzipped."""
    return gzip.compress(struct.pack(">4I", magic, *images.shape) + images.tobytes())


def blank(count, level):
    """Digits that are all one grey square of 20x20 in 28x28."""
    images = np.zeros((count, 28, 28), np.uint8)
    images[:, 4:24, 4:24] = level
    return images


def brightest(data):
    """The grey levels (0..255) of the digits in a few sequences."""
    return {round(float(data[i][0].max()) * 255) for i in range(4)}


def test_each_split_has_digits_of_its_own(tmp_path):
    (tmp_path / TRAIN).write_bytes(idx(np.concatenate([blank(8, 100), blank(1, 150), blank(1, 200)])))
    assert [brightest(build_dataset(SPEC, split, root=tmp_path)) for split in ("train", "val", "test")] == [
        {100},
        {150},
        {200},
    ]
    (tmp_path / TEST).write_bytes(idx(blank(5, 250)))
    assert [brightest(build_dataset(SPEC, split, root=tmp_path)) for split in ("train", "val", "test")] == [
        {100},
        {150},
        {250},
    ]


def test_real_digits_move_like_the_drawn_ones(tmp_path):
    (tmp_path / TRAIN).write_bytes(idx(blank(10, 255)))
    data = build_dataset(SPEC, "train", root=tmp_path, length=50, seed=3)
    assert len(data) == 50
    frames = np.concatenate(data[7])
    assert frames.shape == (20, 1, 64, 64)
    for frame in frames[:, 0]:
        rows = np.flatnonzero(frame.max(1))
        assert 20 <= len(rows) <= 40  # one square of 20, or two side by side
        assert set(np.unique(frame)) == {0.0, 1.0}
    centres = [np.argwhere(frame[0]).mean(0) for frame in frames]
    assert 0 < np.abs(np.diff(centres, axis=0)).max() <= 0.1 * 36 + 1
    assert np.array_equal(data[7][0], build_dataset(SPEC, "train", root=tmp_path, seed=3)[7][0])
    assert not np.array_equal(data[7][0], build_dataset(SPEC, "train", root=tmp_path, seed=4)[7][0])


def test_smaller_canvases_get_smaller_digits(tmp_path):
    (tmp_path / TRAIN).write_bytes(idx(np.full((10, 28, 28), 255, np.uint8)))
    data = build_dataset(SPEC.replace(height=32, width=32), "train", root=tmp_path)
    covered = float((data[0][0][0] > 0).sum())
    assert 14 * 14 <= covered <= 2 * 14 * 14


def test_published_test_sequences_come_first(tmp_path):
    folder = tmp_path / "moving_mnist"
    folder.mkdir()
    sequences = np.random.default_rng(0).integers(0, 256, (20, 6, 64, 64), np.uint8)
    np.save(folder / SEQUENCES, sequences)
    (folder / TRAIN).write_bytes(idx(blank(10, 9)))
    assert files_found("moving_mnist", tmp_path) == str(folder)
    data = build_dataset(SPEC, "test", root=tmp_path)
    assert len(data) == 6
    assert np.array_equal(np.concatenate(data[4]), sequences[:, 4, None] / np.float32(255))
    assert brightest(build_dataset(SPEC, "val", root=tmp_path)) == {9}
    half = build_dataset(SPEC.replace(height=32, width=32), "test", root=tmp_path, length=3)
    means = sequences[:, 4].reshape(20, 32, 2, 32, 2).mean((2, 4)) / 255
    assert np.allclose(np.concatenate(half[2])[:, 0], means, atol=1e-6)


def test_sequences_without_digits_serve_the_test_split_alone(tmp_path):
    np.save(tmp_path / SEQUENCES, np.zeros((20, 2, 64, 64), np.uint8))
    assert len(build_dataset(SPEC, "test", root=tmp_path)) == 2
    with pytest.raises(DataFileError, match=f"{tmp_path}: no digits for the train split, expected {TRAIN}"):
        build_dataset(SPEC, "train", root=tmp_path)


GOOD = idx(blank(10, 200))
BROKEN = {
    "half a gzip": (GOOD[: len(GOOD) // 2], "not a readable gzip file"),
    "no gzip": (b"digits", "not a readable gzip file"),
    "empty": (b"", "0 bytes, expected an idx header of 16"),
    "labels": (idx(blank(10, 200), magic=0x801), "magic number 0x00000801, expected 0x00000803"),
    "short": (
        gzip.compress(gzip.decompress(GOOD)[:-1]),
        "7839 bytes after the header, expected 10 square images of 28x28",
    ),
    "few": (idx(blank(2, 200)), "2 images, expected at least 10"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_digit_files_are_named(tmp_path, case):
    content, message = BROKEN[case]
    (tmp_path / TRAIN).write_bytes(content)
    with pytest.raises(DataFileError, match=f"{tmp_path / TRAIN}: .*{message}") as error:
        build_dataset(SPEC, "val", root=tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((20, 3, 64, 64), np.float32), r"float32 \(20, 3, 64, 64\), expected uint8 \(frames, n, side, side\)"),
        (np.zeros((20, 3, 64), np.uint8), r"uint8 \(20, 3, 64\), expected uint8"),
        (np.zeros((12, 3, 64, 64), np.uint8), "12 frames of 64x64, expected at least 20 of 64x64"),
        (np.zeros((20, 3, 48, 48), np.uint8), "20 frames of 48x48, expected at least 20 of 64x64"),
    ],
)
def test_other_arrays_than_the_published_are_refused(tmp_path, array, message):
    np.save(tmp_path / SEQUENCES, array)
    with pytest.raises(DataFileError, match=message):
        build_dataset(SPEC, "test", root=tmp_path)


def test_a_truncated_array_is_named(tmp_path):
    path = tmp_path / SEQUENCES
    np.save(path, np.zeros((20, 3, 64, 64), np.uint8))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataFileError, match=f"{path}: not a .npy file of numbers") as error:
        build_dataset(SPEC, "test", root=tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("source", [None, *REAL], ids=lambda path: "mnist" if path else "made")
def test_digits_of_a_whole_file(tmp_path, source):
    path = source or tmp_path / TEST
    if not source:
        path.write_bytes(idx(np.random.default_rng(0).integers(0, 256, (100, 28, 28), np.uint8)))
    images = read_idx_images(path)
    assert images.shape == (10_000 if source else 100, 28, 28)
    for split in ("train", "val", "test"):
        inputs, targets = build_dataset(SPEC, split, root=path.parent, length=2)[1]
        assert inputs.shape == targets.shape == (10, 1, 64, 64)
        assert 0.02 < float(targets.mean()) < 0.5
