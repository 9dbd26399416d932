"""Digits and sequences that are damaged, or not as MNIST and Moving MNIST are published."""

import gzip
import os
import struct

import numpy as np
import pytest
from support.bad_files import KINDS_OF_DAMAGE, damaged, refusal, right_or_refused
from support.forms.deepst import read
from support.refusal import assert_refused, attempt

from unistd.tasks import get_task
from unistd.tasks.mnist import open_sequences, read_idx_images

DIGITS = get_task("moving_mnist").spec
TRAIN, SEQUENCES = "train-images-idx3-ubyte.gz", "mnist_test_seq.npy"


def images(count=20, side=28):
    return np.random.default_rng(1).integers(0, 256, (count, side, side), np.uint8)


def idx(shape=(20, 28, 28), content=None, magic=0x803):
    return struct.pack(">4I", magic, *shape) + (images(*shape[:2]).tobytes() if content is None else content)


def zeros_gz(gigabytes):
    """Members of 64 MiB of zeros, 65 kB each."""
    return gzip.compress(bytes(64 << 20), 9) * (16 * gigabytes)


IDX_FILES = {
    "6 GiB after few": (lambda: gzip.compress(idx()) + zeros_gz(6), "more than 15680 bytes after the header"),
    "6 GiB as declared": (
        lambda: gzip.compress(idx((6 << 20, 32, 32), b"")) + zeros_gz(6),
        "its header declares 6442450944 bytes",
    ),
    "6 GiB declared alone": (lambda: gzip.compress(idx((6 << 20, 32, 32), b"")), "declares 6442450944 bytes"),
    "2^96 declared": (lambda: gzip.compress(idx((2**32 - 1,) * 3, b"")), "its header declares"),
    "6 GiB without a header": (lambda: zeros_gz(6), "magic number 0x00000000"),
    "no images": (lambda: gzip.compress(idx((0, 28, 28))), "expected 0 square images"),
    "no pixels": (lambda: gzip.compress(idx((9, 0, 0))), "expected 9 square images of 0x0"),
    "not square": (lambda: gzip.compress(idx((20, 28, 14), bytes(20 * 28 * 14))), "square images of 28x14"),
    "labels": (lambda: gzip.compress(struct.pack(">2I", 0x801, 20) + bytes(20)), "magic number 0x00000801"),
    "little endian": (lambda: gzip.compress(struct.pack("<4I", 0x803, 20, 28, 28)), "magic number 0x03080000"),
    "floats": (lambda: gzip.compress(idx(magic=0xD03)), "magic number 0x00000d03"),
    "a byte short": (lambda: gzip.compress(idx()[:-1]), "15679 bytes after the header"),
    "a byte long": (lambda: gzip.compress(idx() + b"x"), "more than 15680 bytes"),
    "half a header": (lambda: gzip.compress(idx()[:9]), "9 bytes, expected an idx header of 16"),
    "not packed": (idx, "not a readable gzip file"),
    "another packing": (lambda: b"\x28\xb5\x2f\xfd" + bytes(99), "not a readable gzip file"),
    "cut": (lambda: gzip.compress(idx())[:-20], "not a readable gzip file"),
    "no checksum": (lambda: gzip.compress(idx())[:-8], "not a readable gzip file"),
    "a wrong checksum": (lambda: gzip.compress(idx())[:-8] + bytes(8), "not a readable gzip file"),
    "something after it": (lambda: gzip.compress(idx()) + b"something", "not a readable gzip file"),
    "empty": (lambda: b"", "0 bytes, expected an idx header"),
    "a page of HTML": (lambda: b"<!DOCTYPE html>\n<html>", "not a readable gzip file"),
}


@pytest.mark.parametrize("case", IDX_FILES)
def test_digit_files_that_are_none(tmp_path, case):
    content, found = IDX_FILES[case]
    path = tmp_path / TRAIN
    path.write_bytes(content())
    if "GiB" in case:
        assert_refused(attempt(read, tmp_path, DIGITS), str(path), found)
    else:
        assert found in refusal(path, read, tmp_path, DIGITS)


RAW_FILES = {
    "2^96 declared": (idx((2**32 - 1,) * 3, b""), "its header declares"),
    "more than there is": (
        idx((21, 28, 28), images().tobytes()),
        "15680 bytes after the header, expected 21 square images",
    ),
    "a GiB declared": (idx((1 << 20, 32, 32), b""), "its header declares 1073741824 bytes of images, expected at most"),
    "no images": (idx((0, 28, 28)), "expected 0 square images"),
    "not square": (idx((20, 28, 14), bytes(20 * 28 * 14)), "square images of 28x14"),
    "labels": (struct.pack(">2I", 0x801, 20) + bytes(20), "magic number 0x00000801"),
    "a byte short": (idx()[:-1], "15679 bytes after the header"),
    "a byte long": (idx() + b"x", "more than 15680 bytes"),
    "half a header": (idx()[:9], "9 bytes, expected an idx header of 16"),
    "packed": (gzip.compress(idx()), "magic number 0x1f8b08"),
    "empty": (b"", "0 bytes, expected an idx header"),
    "a page of HTML": (b"<!DOCTYPE html>\n<html>", "magic number 0x3c21444f"),
}


@pytest.mark.parametrize("case", RAW_FILES)
def test_unpacked_digit_files_that_are_none(tmp_path, case):
    content, found = RAW_FILES[case]
    path = tmp_path / TRAIN.removesuffix(".gz")
    path.write_bytes(content)
    assert found in refusal(path, read, tmp_path, DIGITS)


def sparse(path, header, size):
    """A file of `size` bytes after its header, next to nothing of which is on the disk."""
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + size)


def test_unpacked_digits_of_20_gib_of_nothing(tmp_path):
    path = tmp_path / TRAIN.removesuffix(".gz")
    sparse(path, idx((20 << 20, 32, 32), b""), 20 << 30)
    assert_refused(attempt(read, tmp_path, DIGITS), str(path), "its header declares 21474836480 bytes")


def npy_header(shape, dtype="|u1"):
    text = str({"descr": dtype, "fortran_order": False, "shape": shape}).ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


@pytest.mark.parametrize("shape", [(20, 1 << 16, 128, 128), (1 << 16, 20, 128, 128)], ids=str)
def test_sequences_of_20_gib_take_no_memory(tmp_path, shape):
    sparse(tmp_path / SEQUENCES, npy_header(shape), 20 << 30)
    outcome = attempt(last_sample, tmp_path)
    assert outcome.status == 0, outcome
    assert outcome.memory < 1 << 30


def last_sample(root):
    data = read(root, DIGITS, "test")
    assert len(data) == 1 << 16
    assert float(data[len(data) - 1][1].max()) == 0


def test_frames_that_are_huge_by_their_header(tmp_path):
    path = tmp_path / SEQUENCES
    sparse(path, npy_header((20, 1, 32768, 32768)), 20 << 30)
    assert_refused(attempt(read, tmp_path, DIGITS, "test"), str(path), "20 frames of 32768x32768, expected at least")


FLOATS = {
    "NaN": (np.full((1, 20, 64, 64), np.nan, np.float32), "sequence 0: holds nan to nan, expected numbers in [0, 1]"),
    "levels": (np.full((1, 20, 64, 64), 255, np.float32), "sequence 0: holds 255.0 to 255.0, expected numbers in"),
    "negative": (np.full((1, 20, 64, 64), -0.1, np.float32), "expected numbers in [0, 1]"),
    "bytes": (np.zeros((1, 20, 64, 64), np.uint8), "uint8 (1, 20, 64, 64), expected float32 (20, n, side, side) or"),
    "doubles": (np.zeros((1, 20, 64, 64)), "float64 (1, 20, 64, 64), expected float32"),
    "no sequences": (np.zeros((0, 20, 64, 64), np.float32), "float32 (0, 20, 64, 64), expected"),
}


@pytest.mark.parametrize("case", FLOATS)
def test_float_sequences_that_are_none(tmp_path, case):
    array, found = FLOATS[case]
    path = sequences(tmp_path / "mm_dis01_seq0.npy", array)
    assert found in refusal(path, lambda: read(tmp_path, DIGITS, "test")[0])


@pytest.mark.parametrize("unpacked", [False, True], ids=["gz", "raw"])
@pytest.mark.parametrize("kind", KINDS_OF_DAMAGE)
def test_damaged_digits_are_read_right_or_refused(tmp_path, kind, unpacked):
    path = tmp_path / (TRAIN.removesuffix(".gz") if unpacked else TRAIN)
    content = idx() if unpacked else gzip.compress(idx(), mtime=0)
    for step, place in enumerate([*range(40), *range(40, len(content), len(content) // 150)]):
        path.write_bytes(damaged(content, kind, place, step))
        found = right_or_refused(read_idx_images, path)
        if found is not None and (not unpacked or len(found) != 20 or place < 16):
            np.testing.assert_array_equal(found, images())  # pixels of an unpacked file have no checksum


def sequences(path, array):
    with path.open("wb") as file:  # whatever the name
        np.save(file, array, allow_pickle=True)
    return path


NPY_FILES = {
    "floats": (np.zeros((20, 3, 64, 64), np.float32), "float32 (20, 3, 64, 64), expected uint8"),
    "signed": (np.zeros((20, 3, 64, 64), np.int8), "int8 (20"),
    "booleans": (np.zeros((20, 3, 64, 64), bool), "bool (20"),
    "objects": (np.array([None, 1], object), "it holds Python objects"),
    "records": (np.zeros((20, 3, 64, 64), [("a", "u1")]), "elements of type"),
    "Fortran order": (np.asfortranarray(np.zeros((20, 3, 64, 64), np.uint8)), "in Fortran order, expected"),
    "no sequences": (np.zeros((20, 0, 64, 64), np.uint8), "uint8 (20, 0, 64, 64)"),
    "a number": (np.uint8(3), "uint8 ()"),
    "not square": (np.zeros((20, 3, 64, 32), np.uint8), "uint8 (20, 3, 64, 32)"),
    "two axes of 20": (np.zeros((20, 20, 64, 64), np.uint8), "another number of sequences than 20: time or sample"),
    "no axis of 20": (np.zeros((12, 3, 64, 64), np.uint8), "expected 20 frames, on the first or the second axis"),
    "one axis less": (np.zeros((20, 3, 64), np.uint8), "uint8 (20, 3, 64), expected uint8 (20, n, side, side) or (n,"),
    "no whole multiple": (np.zeros((3, 20, 96, 96), np.uint8), "20 frames of 96x96, expected at least 20 of 64x64"),
    "of 20 frames on a later axis": (np.zeros((3, 5, 20, 20), np.uint8), "expected 20 frames, on the first or"),
    "smaller": (np.zeros((20, 3, 32, 32), np.uint8), "20 frames of 32x32"),
    "channels": (np.zeros((20, 3, 1, 64, 64), np.uint8), "uint8 (20, 3, 1, 64, 64)"),
}


@pytest.mark.parametrize("case", NPY_FILES)
def test_sequences_that_are_not_the_published(tmp_path, case):
    array, found = NPY_FILES[case]
    path = sequences(tmp_path / SEQUENCES, array)
    assert found in refusal(path, read, tmp_path, DIGITS, "test")


def whole(path):
    array, _ = open_sequences(path, np.uint8)
    return array.rows(0, array.shape[0])


@pytest.mark.parametrize("kind", KINDS_OF_DAMAGE)
def test_damaged_sequences_are_read_right_or_refused(tmp_path, kind):
    array = images(40, 16).reshape(20, 2, 16, 16)
    path = sequences(tmp_path / SEQUENCES, array)
    content = path.read_bytes()
    start = content.index(b"\n") + 1
    for step, place in enumerate(range(0, start + 100)):
        path.write_bytes(damaged(content, kind, place, step))
        values = right_or_refused(
            lambda path: (found := open_sequences(path, np.uint8)[0]).rows(0, found.shape[0]), path
        )
        if values is not None:
            # the sides of an array are text: where the product is the same, other ones cannot be told from these
            assert values.size == array.size
            if place < start - 8:
                assert values.tobytes() == array.tobytes()


def cut(path):
    os.truncate(path, 5000)


def another(path):
    sequences(path, np.ones((20, 3, 64, 64), np.uint8))
    os.utime(path, ns=(1, 1))


def pipe(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("change", [cut, another, pipe, os.unlink])
def test_sequences_that_change_meanwhile_are_named(tmp_path, change):
    path = sequences(tmp_path / SEQUENCES, np.zeros((20, 3, 64, 64), np.uint8))
    data = read(tmp_path, DIGITS, "test")
    assert float(data[2][1].max()) == 0
    change(path)
    refusal(path, data.__getitem__, 1)
