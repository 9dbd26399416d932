"""BAIR from its tfrecords and from PredBench's arrays: the same windows of the same sequences."""

import os
import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from support.bad_files import KINDS_OF_DAMAGE, damaged, refusal
from support.forms import bair
from support.forms.reading import BROKEN, read_all, refused
from support.refusal import assert_refused, attempt
from support.special import NO_FILES, special

from unistd.tasks import DataFileError, build_dataset, files_found, get_task
from unistd.tasks.readers.tfrecord import open_records

SPEC = get_task("bair").spec
SMALL = SPEC.replace(height=8, width=8)
FORMS = {"tfrecord": bair.write_bair_tfrecord, "npy": bair.write_bair_npy}
RECORD = "bair/softmotion30_44k/train/traj_0_to_2.tfrecords"


@pytest.mark.parametrize("form", FORMS)
def test_every_start_in_train_and_the_middle_in_val_and_test(tmp_path, form):
    FORMS[form](tmp_path)
    found = read_all(SPEC, tmp_path)
    train = bair.sequences(4, 64, 0).transpose(0, 1, 4, 2, 3) / np.float32(255)
    test = bair.sequences(2, 64, 2).transpose(0, 1, 4, 2, 3) / np.float32(255)
    assert found["train"].shape == (3 * 19, 12, 3, 64, 64)
    np.testing.assert_array_equal(found["train"][19 + 5], train[1, 5:17])
    np.testing.assert_array_equal(found["val"], train[3:, 9:21])
    np.testing.assert_array_equal(found["test"], test[:, 9:21])
    data = pickle.loads(pickle.dumps(build_dataset(SPEC, "train", root=tmp_path, length=10)))
    assert len(data) == 10
    np.testing.assert_array_equal(data[9][0], found["train"][9 * 57 // 10][:2])


@pytest.mark.parametrize("form", FORMS)
def test_a_val_split_that_is_there_is_taken(tmp_path, form):
    FORMS[form](tmp_path, clips={"train": 2, "val": 1, "test": 1}, size=8)
    found = read_all(SMALL, tmp_path)
    assert {split: len(samples) for split, samples in found.items()} == {"train": 38, "val": 1, "test": 1}
    np.testing.assert_array_equal(found["val"][0, 0].transpose(1, 2, 0) * 255, bair.sequences(1, 8, 1)[0, 9])


@pytest.mark.parametrize("form", FORMS)
def test_sequences_of_test_are_left_out_of_train(tmp_path, form):
    FORMS[form](tmp_path, clips={"train": 4, "val": 2, "test": 0}, size=8)
    if form == "npy":
        held = np.load(tmp_path / "bair/train.npy")
        np.save(tmp_path / "bair/test.npy", held[1:2])
    else:
        train = tmp_path / RECORD
        size = len(train.read_bytes()) // 3
        (train.parents[1] / "test").mkdir()
        (train.parents[1] / "test/again.tfrecords").write_bytes(train.read_bytes()[2 * size :])
    data = build_dataset(SMALL, "train", root=tmp_path)
    assert len(data) == 3 * 19
    assert data.notes == ("19 of 76 windows left out: they share frames with another split",)


@pytest.mark.parametrize("form", FORMS)
def test_a_published_test_set_in_train_leaves_nothing(tmp_path, form):
    FORMS[form](tmp_path, clips={"train": 2, "val": 1, "test": 2}, size=8)
    top = Path(files_found("bair", tmp_path))
    for name in ("train", "test"):
        place = top / name if form == "tfrecord" else top / f"{name}.npy"
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    source, target = ("val", "train") if form == "tfrecord" else ("val.npy", "train.npy")
    for copy in (target, target.replace("train", "test")):
        (shutil.copytree if form == "tfrecord" else shutil.copy)(top / source, top / copy)
    assert "every window of a split is in another split too" in refused(top, SMALL, tmp_path)


def test_other_sizes_are_resized_and_other_lengths_found(tmp_path):
    bair.write_bair_npy(tmp_path, size=16)
    assert read_all(SMALL, tmp_path)["test"].shape == (2, 12, 3, 8, 8)
    long = SMALL.replace(frames_in=20, frames_out=10)
    assert len(build_dataset(long, "train", root=tmp_path)) == 3
    assert "30 frames, expected at least 31" in refused(tmp_path, SMALL.replace(frames_out=29), tmp_path)


@pytest.mark.parametrize("place", ["softmotion30_44k", "bair/train", "BAIR/softmotion30_44k", "."])
def test_where_records_may_lie(tmp_path, place):
    bair.write_bair_tfrecord(tmp_path / "made", size=8)
    made = tmp_path / "made/bair/softmotion30_44k"
    target = tmp_path / "root" / (place.removesuffix("/train"))
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(made, target)
    assert len(build_dataset(SMALL, "test", root=tmp_path / "root")) == 2


def test_near_layouts_are_named(tmp_path):
    bair.write_bair_tfrecord(tmp_path / "downloads", size=8)
    shutil.move(tmp_path / "downloads/bair/softmotion30_44k", tmp_path / "downloads/softmotion30_44k")
    shutil.rmtree(tmp_path / "downloads/bair")
    message = refused(tmp_path / "downloads/softmotion30_44k", SMALL, tmp_path)
    assert "looks like the files of task 'bair'" in message
    (tmp_path / "bair").mkdir()
    (tmp_path / "bair/processed_data").mkdir()
    message = refused(tmp_path / "bair", SMALL, tmp_path)
    assert "(but ['processed_data']), expected softmotion30_44k/{train,test}/*.tfrecords or" in message


def test_arrays_in_a_root_of_another_name_are_nobodys(tmp_path):
    bair.write_bair_npy(tmp_path, size=8)
    shutil.move(tmp_path / "bair", tmp_path / "others")
    assert files_found("bair", tmp_path / "others") is None
    shutil.move(tmp_path / "others", tmp_path / "bair")
    assert files_found("bair", tmp_path / "bair") == str(tmp_path / "bair")


def test_records_are_indexed_once(tmp_path, monkeypatch):
    bair.write_bair_tfrecord(tmp_path, size=8)
    read_all(SMALL, tmp_path)
    monkeypatch.setattr("unistd.tasks.readers.tfrecord._scan_file", None)
    assert len(read_all(SMALL, tmp_path)["test"]) == 2


BAD_RECORDS = {
    "a length beyond the end": (
        lambda content: (head := struct.pack("<Q", 1 << 20)) + bair.masked_crc(head) + content[12:],
        "1048576 bytes, but the file ends after",
    ),
    "a length of 2^60": (
        lambda content: (head := struct.pack("<Q", 1 << 60)) + bair.masked_crc(head) + content[12:],
        "record 0 at byte 0: 1152921504606846976 bytes, expected 1 to 67108864",
    ),
    "no bytes": (lambda content: bair.framed(b"") + content, "record 0 at byte 0: 0 bytes, expected 1"),
    "a flipped byte": (
        lambda content: content[:900] + bytes([content[900] ^ 1]) + content[901:],
        "record 0: has another CRC-32C than was written",
    ),
    "another length": (lambda content: b"\x07" + content[1:], "its length has not the CRC-32C"),
    "no message": (lambda content: bair.framed(b"\xff" * 50) + content, "record 0: not a tf.train.Example"),
    "a cut message": (lambda content: bair.framed(content[12:500]) + content, "record 0: not a tf.train.Example"),
    "a text": (lambda content: bair.framed(b"hello, world") + content, "record 0: not a tf.train.Example"),
    "other keys": (
        lambda content: bair.framed(bair.field(1, bair.field(1, bair.field(1, b"0/png")))) + content,
        "record 0: found keys ['0/png'], expected 0/image_aux1/encoded",
    ),
    "keys of no text": (
        lambda content: bair.framed(bair.field(1, bair.field(1, bair.field(1, b"\xff")))) + content,
        "record 0: not a tf.train.Example",
    ),
    "fewer frames than before": (
        lambda content: content + bair.framed(bair.example(bair.sequences(1, 8, 7)[0, :20])),
        "record 3: 0 values of 20/image_aux1/encoded, expected one",
    ),
    "a frame that is not square": (
        lambda content: content + bair.framed(bair.example(bair.sequences(1, 8, 7)[0, :, :4])),
        "record 3: 0/image_aux1/encoded has 96 bytes, expected 3 * side * side",
    ),
    "frames without bytes": (
        lambda content: content + bair.framed(bair.example(np.zeros((30, 0, 0, 3), np.uint8))),
        "record 3: 0/image_aux1/encoded has 0 bytes",
    ),
    "a frame of another size": (
        lambda content: (
            content + bair.framed(bair.example([*bair.sequences(1, 8, 7)[0, :9], *bair.sequences(1, 6, 7)[0, 9:]]))
        ),
        "record 3: 9/image_aux1/encoded has 108 bytes, expected 192",
    ),
}


@pytest.mark.parametrize("case", BAD_RECORDS)
def test_records_that_are_damaged(tmp_path, case):
    change, found = BAD_RECORDS[case]
    bair.write_bair_tfrecord(tmp_path, size=8)
    path = tmp_path / RECORD
    path.write_bytes(change(path.read_bytes()))
    assert found in refused(path, SMALL, tmp_path)


@pytest.mark.parametrize("kind", KINDS_OF_DAMAGE)
def test_damage_anywhere_is_found(tmp_path, kind):
    bair.write_bair_tfrecord(tmp_path, size=2)
    path, spec = tmp_path / RECORD, SPEC.replace(height=4, width=4)
    content = path.read_bytes()
    for step, place in enumerate(range(0, len(content), len(content) // 40)):
        path.write_bytes(damaged(content, kind, place, step))
        if path.read_bytes() != content:
            refusal(path, lambda: [record.read() for record in open_records([path])])
    path.write_bytes(content)
    assert len(read_all(spec, tmp_path)["train"]) == 3 * 19


@pytest.mark.parametrize("damage", BROKEN)
@pytest.mark.parametrize("name", ["train.npy", "test.npy", RECORD])
def test_broken_files_are_named(tmp_path, name, damage):
    (bair.write_bair_npy if name.endswith("npy") else bair.write_bair_tfrecord)(tmp_path, size=8)
    path = tmp_path / "bair" / name if name.endswith("npy") else tmp_path / name
    path.write_bytes(BROKEN[damage](path.read_bytes()))
    refused(path, SMALL, tmp_path)


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("name", ["bair/test.npy", RECORD])
def test_what_is_no_file_is_named_at_once(tmp_path, name, kind):
    (bair.write_bair_npy if name.endswith("npy") else bair.write_bair_tfrecord)(tmp_path, size=8)
    (tmp_path / name).unlink()
    special(kind, tmp_path / name)
    assert_refused(attempt(read_all, SMALL, tmp_path), str(tmp_path / name))


def huge(path: Path, header: bytes) -> None:
    """20 GiB by length, of which next to nothing is on the disk."""
    with path.open("wb") as file:
        file.write(header)
        file.truncate(20 << 30)


def npy_header(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    text = str({"descr": descr, "fortran_order": False, "shape": shape}).ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def test_arrays_of_another_kind_are_named(tmp_path):
    bair.write_bair_npy(tmp_path, size=8)
    path = tmp_path / "bair/train.npy"
    whole = np.load(path)
    for array, found in (
        (whole.astype(np.float32), "float32 (4, 30, 8, 8, 3), expected uint8 (n, frames, side, side, 3)"),
        (np.full_like(whole, np.nan, np.float64), "float64"),
        (whole.transpose(0, 1, 4, 2, 3), "uint8 (4, 30, 3, 8, 8)"),
        (whole[..., 0], "uint8 (4, 30, 8, 8)"),
        (whole[:0], "uint8 (0, 30, 8, 8, 3), expected (n, t, h, w, c), none of them 0"),
        (np.asfortranarray(whole), "in Fortran order"),
        (whole[:1], "1 recordings to train on, expected at least 2"),
    ):
        np.save(path, array)
        assert found in refused(path.parent, SMALL, tmp_path)


def test_a_header_that_declares_what_is_not_there(tmp_path):
    bair.write_bair_npy(tmp_path, size=8)
    path = tmp_path / "bair/train.npy"
    path.write_bytes(npy_header((10**9, 30, 64, 64, 3)) + bytes(1000))
    assert_refused(attempt(read_all, SMALL, tmp_path), str(path), "expected 368640000000000 for uint8")


def test_records_of_20_gib_of_nothing(tmp_path):
    bair.write_bair_tfrecord(tmp_path, size=8)
    huge(tmp_path / RECORD, b"")
    assert_refused(attempt(read_all, SMALL, tmp_path), str(tmp_path / RECORD), "record 0 at byte 0: its length")


def _first_of(root: Path) -> None:
    assert build_dataset(SPEC, "test", root=root)[5][0].shape == (2, 3, 64, 64)


def test_an_array_of_20_gib_is_opened_in_little_memory(tmp_path):
    bair.write_bair_npy(tmp_path, clips={"train": 2, "val": 1, "test": 0}, size=64)
    path = tmp_path / "bair/test.npy"
    count = 50_000
    header = npy_header((count, 30, 64, 64, 3))
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + count * 30 * 64 * 64 * 3)
    outcome = attempt(_first_of, tmp_path)
    assert outcome.status == 0, outcome
    assert outcome.memory < 1 << 30


def test_files_beside_them_are_not_left_out_in_silence(tmp_path):
    bair.write_bair_tfrecord(tmp_path, size=8)
    stray = tmp_path / f"{RECORD}.part"
    stray.write_bytes(b"")
    assert "would be left out" in refused(stray, SMALL, tmp_path)
    stray.unlink()
    for path in (tmp_path / RECORD).parent.iterdir():
        path.unlink()
    assert "no tfrecords" in refused((tmp_path / RECORD).parent, SMALL, tmp_path)


def test_a_file_that_changes_meanwhile_is_named(tmp_path):
    bair.write_bair_tfrecord(tmp_path, size=8)
    data = build_dataset(SMALL, "train", root=tmp_path)
    os.truncate(tmp_path / RECORD, 500)
    with pytest.raises(DataFileError, match="has changed since it was opened"):
        data[0]
