"""Moving MNIST from real digits and from the published test sequences."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from support.forms import moving_mnist as forms
from support.forms.reading import refused

from unistd.tasks import DataFileError, build_dataset, files_found, get_task
from unistd.tasks.mnist import read_idx_images

SPEC = get_task("moving_mnist").spec
TRAIN, TEST, SEQUENCES = "train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz", "mnist_test_seq.npy"
REAL = [path for path in [Path(__file__).parents[4] / "shared/data/mnist" / TEST] if path.is_file()]


def idx(images, magic=0x803):
    """Images as idx3 bytes, gzipped."""
    return gzip.compress(forms.idx(images, magic))


def blank(count, level):
    """Digits that are all one grey square of 20x20 in 28x28, but for a corner that lies elsewhere in each."""
    images = np.zeros((count, 28, 28), np.uint8)
    images[:, 4:24, 4:24] = level
    images[np.arange(count), 10, 5 + np.arange(count)] = 0
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
    images = np.full((10, 28, 28), 255, np.uint8)
    images[:, 9, 9] -= np.arange(10, dtype=np.uint8)
    (tmp_path / TRAIN).write_bytes(idx(images))
    data = build_dataset(SPEC.replace(height=32, width=32), "train", root=tmp_path)
    covered = float((data[0][0][0] > 0).sum())
    assert 14 * 14 <= covered <= 2 * 14 * 14


LAYOUTS = {
    "a folder of the task's": "moving_mnist",
    "MNIST's": "mnist",
    "the root": ".",
    "torchvision's root": "MNIST/raw",
    "the task's folder as torchvision's root": "moving_mnist/MNIST/raw",
    "torchvision's MovingMNIST": "MovingMNIST",
}


@pytest.mark.parametrize("packed", [True, False], ids=["gz", "raw"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_where_digits_may_lie(tmp_path, layout, packed):
    folder = tmp_path / LAYOUTS[layout]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (TRAIN if packed else TRAIN.removesuffix(".gz"))
    path.write_bytes((gzip.compress if packed else bytes)(forms.idx(blank(10, 200))))
    assert files_found("moving_mnist", tmp_path) == str(folder)
    data = build_dataset(SPEC, "train", root=tmp_path, length=4)
    assert data.source == str(path)
    assert brightest(data) == {200}


def test_the_root_can_be_torchvisions_folder_itself(tmp_path):
    forms.write_mnist_raw(tmp_path)
    for root in (tmp_path, tmp_path / "MNIST"):
        assert build_dataset(SPEC, "test", root=root).source == str(
            tmp_path / "MNIST/raw" / TEST.removesuffix(".gz")
        ), "the unpacked file is taken"


def test_files_of_several_folders_are_read_together(tmp_path):
    forms.write_mnist_raw(tmp_path)
    forms.write_moving_mnist_npy(tmp_path / "made")
    (tmp_path / "MovingMNIST").mkdir()
    (tmp_path / "made/moving_mnist" / SEQUENCES).rename(tmp_path / "MovingMNIST" / SEQUENCES)
    assert len(build_dataset(SPEC, "test", root=tmp_path)) == 6
    assert build_dataset(SPEC, "train", root=tmp_path).source.endswith("MNIST/raw/train-images-idx3-ubyte")
    assert files_found("moving_mnist", tmp_path) == str(tmp_path / "MNIST/raw")


@pytest.mark.parametrize("time_first", [True, False], ids=["time first", "sample first"])
def test_published_test_sequences_come_first(tmp_path, time_first):
    forms.write_moving_mnist_npy(tmp_path, time_first=time_first)
    held = forms.sequences(6, 64, 0)
    data = build_dataset(SPEC, "test", root=tmp_path)
    assert len(data) == 6
    for number in (0, 4):
        assert np.array_equal(np.concatenate(data[number]), held[number, :, None] / np.float32(255))
    half = build_dataset(SPEC.replace(height=32, width=32), "test", root=tmp_path, length=3)
    means = held[4].reshape(20, 32, 2, 32, 2).mean((2, 4)) / 255
    assert np.allclose(np.concatenate(half[2])[:, 0], means, atol=1e-6)
    assert len(build_dataset(SPEC, "val", root=tmp_path, length=9)) == (9 if time_first else 6)
    assert build_dataset(SPEC, "train", root=tmp_path).source.endswith(TRAIN)


def test_predbenchs_val_sequences_are_apart_from_test(tmp_path):
    forms.write_moving_mnist_npy(tmp_path, time_first=False)
    path = tmp_path / "moving_mnist/mnist_val_seq_1.npy"
    val = np.load(path)
    val[2] = forms.sequences(6, 64, 0)[5]
    np.save(path, val)
    data = build_dataset(SPEC, "val", root=tmp_path)
    assert data.notes == ("1 of 6 windows left out: they share frames with another split",)
    assert np.array_equal(np.concatenate(data[2]), val[3, :, None] / np.float32(255))


@pytest.mark.parametrize("size", [64, 128])
def test_sequences_of_earthformers_form_are_the_test_split_without_digits(tmp_path, size):
    forms.write_moving_mnist_floats(tmp_path, size=size)
    data = build_dataset(SPEC, "test", root=tmp_path)
    assert len(data) == 2
    means = forms.sequences(2, size, 0)[1].reshape(20, 64, size // 64, 64, size // 64).mean((2, 4)) / 255
    assert np.allclose(np.concatenate(data[1])[:, 0], means, atol=1e-6)
    message = refused(tmp_path / "moving_mnist", SPEC, tmp_path)
    assert "no digits for the train split, expected train-images-idx3-ubyte(.gz)" in message


def test_other_sequences_beside_digits_are_said_to_be_left_out(tmp_path):
    forms.write_moving_mnist_floats(tmp_path)
    forms.write_mnist_raw(tmp_path)
    data = build_dataset(SPEC, "test", root=tmp_path, length=3)
    assert data.source.endswith("t10k-images-idx3-ubyte")
    held = tmp_path / "moving_mnist/mm_dis01_seq0.npy"
    assert data.notes == (f"2 files as {held} left out: these samples are put together from digits",)


def test_test_digits_are_never_train_digits(tmp_path):
    forms.write_mnist_gz(tmp_path)
    folder = tmp_path / "moving_mnist"
    train, test = read_idx_images(folder / TRAIN), read_idx_images(folder / TEST)
    train[[3, 8]], train[26], train[5] = test[[1, 2]], test[4], train[27]  # 27 is of the val split
    (folder / TRAIN).write_bytes(idx(train))
    data = build_dataset(SPEC, "train", root=tmp_path)
    assert data.notes == ("3 of 25 digits left out: they are in another split too",)
    assert build_dataset(SPEC, "val", root=tmp_path).notes == ("1 of 3 digits left out: they are in another split too",)
    assert build_dataset(SPEC, "test", root=tmp_path).notes == ()
    (folder / TRAIN).write_bytes(idx(test))
    assert "every image of the train split is in another one too" in refused(folder / TRAIN, SPEC, tmp_path)


def test_t10k_alone_is_split_by_digit(tmp_path):
    forms.write_mnist_gz(tmp_path)
    (tmp_path / "moving_mnist" / TRAIN).unlink()
    held = read_idx_images(tmp_path / "moving_mnist" / TEST)
    seen = {}
    for split in ("train", "val", "test"):
        digits = build_dataset(SPEC, split, root=tmp_path)._make.args[-1]
        seen[split] = {digit.tobytes() for digit in digits}
    assert sum(map(len, seen.values())) == len(set.union(*seen.values())) == len(held)


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
