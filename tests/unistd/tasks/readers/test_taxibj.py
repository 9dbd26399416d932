"""TaxiBJ from OpenSTL's archive and PredBench's arrays: windows, splits, scale, and files that are not as published."""

import pickle
import shutil
import zipfile

import numpy as np
import pytest
from support.forms.reading import BROKEN, counts, read_all, refused
from support.forms.taxibj import windows, write_taxibj_h5, write_taxibj_npy, write_taxibj_npz
from support.refusal import assert_refused, attempt
from support.special import special

from unistd.tasks import DataFileError, build_dataset, files_found, get_task

SPEC = get_task("taxibj").spec
SIZE = (4, 6)
SMALL = SPEC.replace(height=4, width=6)
FORMS = {"npz": write_taxibj_npz, "npy": write_taxibj_npy}
PATHS = {"npz": "taxibj/dataset.npz", "npy": "taxibj/train.npy"}
RIGHT = windows({"train": 40, "test": 8}, SIZE)


def archive_of(root, **arrays):
    """The archive with some arrays replaced (None: left out)."""
    with np.load(root / PATHS["npz"]) as archive:
        held = dict(archive) | arrays
    np.savez(root / PATHS["npz"], **{name: array for name, array in held.items() if array is not None})


@pytest.mark.parametrize("packed", [False, True], ids=["stored", "packed"])
def test_windows_of_the_archive(tmp_path, packed):
    write_taxibj_npz(tmp_path, packed=packed)
    with np.load(tmp_path / PATHS["npz"]) as archive:
        scaled = {
            split: np.concatenate([archive[f"{part}_{split}"] for part in "XY"], 1) for split in ("train", "test")
        }
    found = read_all(SPEC, tmp_path)
    assert {split: len(samples) for split, samples in found.items()} == {"train": 31, "val": 2, "test": 8}
    for split, right in (("train", scaled["train"][:31]), ("val", scaled["train"][38:]), ("test", scaled["test"])):
        np.testing.assert_allclose(found[split], (right + 1) / 2, atol=1e-6)
    held = windows({"train": 40, "test": 8}, (32, 32))
    np.testing.assert_allclose(found["test"] * 1250, held["test"], atol=1e-3)
    data = build_dataset(SPEC, "train", root=tmp_path)
    assert data.spec == SPEC
    assert data.notes == ("7 of 38 windows left out: they share frames with another split",)
    assert data.source == files_found("taxibj", tmp_path) == str(tmp_path / "taxibj")


def test_windows_of_the_arrays(tmp_path):
    clips = {"train": 20, "val": 5, "test": 6}
    write_taxibj_npy(tmp_path, clips=clips)
    right = windows(clips, (32, 32))
    for split, samples in read_all(SPEC, tmp_path).items():
        np.testing.assert_array_equal(samples, right[split] / np.float32(1250))
    data = pickle.loads(pickle.dumps(build_dataset(SPEC, "train", root=tmp_path, length=4)))
    np.testing.assert_array_equal(data[1][1], right["train"][5, 4:] / np.float32(1250))


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_windows_that_overlap_with_a_later_split_are_left_out(tmp_path, dtype):
    clips = {"train": 20, "val": 10, "test": 6}
    write_taxibj_npy(tmp_path, clips=clips, size=SIZE)
    for split, cut in windows(clips, SIZE, gap=0).items():
        np.save(tmp_path / f"taxibj/{split}.npy", cut.astype(dtype if split == "train" else np.float32))
    assert counts(SMALL, tmp_path) == (13, 3, 6)
    assert build_dataset(SMALL, "val", root=tmp_path).notes == (
        "7 of 10 windows left out: they share frames with another split",
    )
    shutil.copy(tmp_path / "taxibj/test.npy", tmp_path / PATHS["npy"])
    with pytest.raises(DataFileError, match="every window of a split is in another split too"):
        build_dataset(SMALL, "train", root=tmp_path)


def test_frames_without_anything_are_not_taken_for_the_same(tmp_path):
    clips = {"train": 9, "val": 3, "test": 3}
    write_taxibj_npy(tmp_path, clips=clips, size=SIZE)
    for split, cut in windows(clips, SIZE).items():
        cut[:, 2] = 0
        np.save(tmp_path / f"taxibj/{split}.npy", cut)
    assert counts(SMALL, tmp_path) == (9, 3, 3)


def test_the_scale_is_that_of_the_train_windows(tmp_path):
    write_taxibj_npy(tmp_path, clips={"train": 40, "test": 8}, size=SIZE)
    test, train = np.full((3, 8, *(2, *SIZE)), 7000.0), RIGHT["train"].copy()
    test[..., 0] = np.arange(3 * 8 * 2 * 4).reshape(3, 8, 2, 4)
    np.save(tmp_path / "taxibj/test.npy", test)
    train[39], train[4, 0, 0, 0, 0] = 5000, 1300.5
    train[39, ..., 0] = 1
    np.save(tmp_path / "taxibj/train.npy", train)
    data = {split: build_dataset(SMALL, split, root=tmp_path) for split in ("train", "val", "test")}
    assert {float(part.spec.scale) for part in data.values()} == {1300.5}, "of the train windows alone"
    assert float(data["test"][0][0].max()) == np.float32(7000) / np.float32(1300.5)


def test_fewer_frames_and_more(tmp_path):
    write_taxibj_npy(tmp_path, clips={"train": 40, "test": 8}, size=SIZE)
    data = build_dataset(SMALL.replace(frames_in=2, frames_out=1), "test", root=tmp_path)
    np.testing.assert_array_equal(np.concatenate(data[3]), RIGHT["test"][3, :3] / np.float32(1250))
    assert "windows of 8 frames, expected at least 9" in refused(
        tmp_path / PATHS["npy"], SMALL.replace(frames_out=5), tmp_path
    )


def test_records_go_before_windows_and_near_names_are_told_what_is_read(tmp_path):
    write_taxibj_npy(tmp_path, clips={"train": 40, "test": 8})
    write_taxibj_h5(tmp_path)
    assert len(build_dataset(SPEC, "test", root=tmp_path)) == 11
    shutil.rmtree(tmp_path / "taxibj")
    (tmp_path / "taxibj").mkdir()
    (tmp_path / "taxibj/dataset_taxi.npz").write_bytes(b"")
    expected = "expected names like BJ16_M32x32_T30_InOut.h5, dataset.npz or {train,val,test}.npy"
    assert expected in refused(tmp_path / "taxibj", SPEC, tmp_path)


@pytest.mark.parametrize("name", ["valid.npy", "train.npy.part", "test_data.npy"])
def test_arrays_of_other_names(tmp_path, name):
    write_taxibj_npy(tmp_path, size=SIZE)
    shutil.copy(tmp_path / PATHS["npy"], tmp_path / "taxibj" / name)
    assert "would be left out, expected {train,val,test}.npy" in refused(tmp_path / "taxibj" / name, SMALL, tmp_path)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("damage", BROKEN)
def test_damaged_files_are_named(tmp_path, form, damage):
    FORMS[form](tmp_path, size=SIZE)
    path = tmp_path / PATHS[form]
    path.write_bytes(BROKEN[damage](path.read_bytes()))
    refused(path, SMALL, tmp_path)


@pytest.mark.parametrize("kind", ["a named pipe", "a link to nothing"])
@pytest.mark.parametrize("form", FORMS)
def test_what_is_no_file_is_named(tmp_path, form, kind):
    FORMS[form](tmp_path, size=SIZE)
    (tmp_path / PATHS[form]).unlink()
    special(kind, tmp_path / PATHS[form])
    assert_refused(attempt(read_all, SMALL, tmp_path), str(tmp_path / PATHS[form]))


def put(array, value):
    array = array.copy()
    array[7, 1, 0, 2, 3] = value
    return array


CUT = RIGHT["train"]
ARRAYS = {
    "texts": (CUT.astype("S4"), "elements of type dtype('S4')"),
    "one flow": (CUT[:, :, :1], "is float32 (40, 8, 1, 4, 6), expected numbers (n, frames, 2, 4, 6)"),
    "channels last": (np.moveaxis(CUT, 2, 4), "expected numbers (n, frames, 2, 4, 6)"),
    "another grid": (CUT[..., :5], "expected numbers (n, frames, 2, 4, 6)"),
    "four axes": (CUT[0], "expected numbers (n, frames, 2, 4, 6)"),
    "complex": (CUT.astype(complex), "expected numbers (n, frames, 2, 4, 6)"),
    "nothing": (CUT[:0], "expected numbers (n, frames, 2, 4, 6)"),
    "few frames": (CUT[:, :7], "windows of 7 frames, expected at least 8"),
    "one window": (CUT[:1], None),
    "nan": (put(CUT, np.nan), "the array holds nan in window 7, expected counts >= 0 and <= 16777216"),
    "negative": (put(CUT, -1), "holds -1.0 in window 7"),
    "infinite": (put(CUT, np.inf), "holds inf in window 7"),
    "huge": (put(CUT, 1e9), "holds 1000000000.0 in window 7"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays_that_are_not_as_published(tmp_path, case):
    array, found = ARRAYS[case]
    write_taxibj_npy(tmp_path, size=SIZE)
    np.save(tmp_path / PATHS["npy"], array)
    path = tmp_path / PATHS["npy"] if found else tmp_path / "taxibj"
    assert (found or "1 recordings to train on, expected at least 2") in refused(path, SMALL, tmp_path)


def test_arrays_in_other_orders_and_types_are_read_the_same(tmp_path):
    write_taxibj_npy(tmp_path, size=SIZE)
    right = read_all(SMALL.replace(frames_in=1, frames_out=1), tmp_path)
    for array in (np.asfortranarray(CUT), CUT.astype(">f8"), CUT.astype(np.int16), CUT.astype(np.uint32)):
        np.save(tmp_path / PATHS["npy"], array)
        found = read_all(SMALL.replace(frames_in=1, frames_out=1), tmp_path)
        for split, samples in right.items():
            np.testing.assert_array_equal(found[split], samples)


X, Y = CUT[:, :4] / 625 - 1, CUT[:, 4:] / 625 - 1
ARCHIVES = {
    "no targets": ({"Y_train": None}, "variable is 'Y_train', expected one of"),
    "no test": ({"X_test": None}, "variable is 'X_test'"),
    "whole numbers": ({"X_train": X.astype(int)}, "X_train is int64 (40, 4, 2, 4, 6), expected floats"),
    "other numbers of windows": ({"Y_train": Y[:39]}, "Y_train is float32 (39, 4, 2, 4, 6), expected 40 windows as X_"),
    "another grid": ({"Y_train": Y[..., :5]}, "Y_train is float32 (40, 4, 2, 4, 5), expected floats (n, frames, 2, 4,"),
    "channels last": ({"X_train": np.moveaxis(X, 2, 4)}, "expected floats (n, frames, 2, 4, 6)"),
    "texts": ({"X_train": X.astype("S4")}, "elements of type dtype('S4'), expected numbers"),
    "counts": ({"X_train": CUT[:, :4]}, "in window 0, expected numbers from -1 to 1"),
    "nan": ({"Y_train": put(Y, np.nan)}, "Y_train holds nan in window 7, expected numbers from -1 to 1"),
    "below": ({"X_test": put(X, -1.5), "Y_test": Y}, "X_test holds -1.5 in window 7"),
    "few frames": ({"Y_train": Y[:, :3]}, "windows of 7 frames, expected at least 8"),
    "objects": ({"X_train": np.array([[1], None], object)}, "elements of type dtype('O'), expected numbers"),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_archives_that_are_not_as_published(tmp_path, case):
    arrays, found = ARCHIVES[case]
    write_taxibj_npz(tmp_path, size=SIZE)
    archive_of(tmp_path, **arrays)
    assert found in refused(tmp_path / PATHS["npz"], SMALL, tmp_path)


HEADER = b"\x93NUMPY\x01\x00\x76\x00" + str(
    {"descr": "<f4", "fortran_order": False, "shape": (10**9, 4, 2, 4, 6)}
).encode().ljust(117) + b"\n"  # fmt: skip


@pytest.mark.parametrize("form", ["npy", "stored", "packed", "zeros"])
def test_enormous_by_their_headers(tmp_path, form):
    FORMS["npy" if form == "npy" else "npz"](tmp_path, size=SIZE)
    path = tmp_path / PATHS["npy" if form == "npy" else "npz"]
    if form == "npy":
        path.write_bytes(HEADER)
    else:
        packing = zipfile.ZIP_STORED if form == "stored" else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(path, "w", packing) as archive, archive.open("X_train.npy", "w") as member:
            member.write(HEADER)
            for _ in range(300 if form == "zeros" else 0):
                member.write(bytes(1 << 20))
    assert_refused(attempt(read_all, SMALL, tmp_path), str(path))


def test_files_of_any_size_are_read_window_by_window(tmp_path):
    write_taxibj_npy(tmp_path)
    np.lib.format.open_memmap(tmp_path / PATHS["npy"], "w+", np.float32, (18_000, 8, 2, 32, 32)).flush()
    outcome = attempt(read_one, tmp_path)
    assert outcome.status == 0, outcome
    assert outcome.memory < 1 << 30, "of 1.2 GB of counts"


def read_one(root):
    build_dataset(SPEC, "train", root=root)[17_000]
