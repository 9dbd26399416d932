"""KITTI from raw drives, renumbered ones and PredNet's hkl files."""

import json
import shutil

import h5py
import numpy as np
import pytest
from support.forms import kitti
from support.forms.pictures import moving, save
from support.forms.reading import BROKEN, counts, read_all, refused
from support.refusal import assert_refused, attempt
from support.special import NO_FILES, special

from unistd.tasks import build_dataset, get_task

SPEC = get_task("kitti").spec
SMALL = SPEC.replace(height=16, width=24)
SIZE = (16, 40)
FORMS = {"raw": kitti.write_kitti_raw, "png": kitti.write_kitti_png}
RAW = "kitti/2011_09_26/2011_09_26_drive_0000_sync/image_02/data/0000000003.png"
FRAMES = {"raw": RAW, "png": "kitti/2011_09_26_drive_0000_sync/3.png"}


@pytest.mark.parametrize("form", FORMS)
def test_drives_are_split_in_order(tmp_path, form):
    FORMS[form](tmp_path)
    for place, (split, starts) in enumerate({"train": [0, 4], "val": range(5), "test": range(5)}.items()):
        data = build_dataset(SPEC, split, root=tmp_path)
        assert len(data) == len(starts)
        right = moving(24, 128, 424, 3, place).transpose(0, 3, 1, 2)[..., 132:292] / np.float32(255)
        for index, start in enumerate(starts):
            np.testing.assert_array_equal(np.concatenate(data[index]), right[start : start + 20])


@pytest.mark.parametrize("form", FORMS)
def test_frames_are_scaled_to_cover_and_ordered_by_number(tmp_path, form):
    FORMS[form](tmp_path, size=(37, 124))
    found = read_all(SMALL, tmp_path)
    assert {split: samples.shape for split, samples in found.items()} == {
        "train": (2, 20, 3, 16, 24),
        "val": (5, 20, 3, 16, 24),
        "test": (5, 20, 3, 16, 24),
    }


def test_a_missing_frame_ends_a_clip(tmp_path):
    kitti.write_kitti_raw(tmp_path, size=SIZE)
    folder = tmp_path / "kitti/2011_09_26/2011_09_26_drive_0002_sync/image_02/data"
    (folder / "0000000002.png").unlink()
    data = build_dataset(SMALL, "test", root=tmp_path)
    right = moving(24, *SIZE, 3, 2).transpose(0, 3, 1, 2)[..., 8:32] / np.float32(255)
    assert len(data) == 2
    np.testing.assert_array_equal(np.concatenate(data[0]), right[3:23])
    (folder / "0000000012.png").unlink()
    assert "11 frames in a row, expected at least 20" in refused(folder, SMALL, tmp_path)


def test_two_pictures_of_a_frame_are_refused(tmp_path):
    kitti.write_kitti_png(tmp_path, size=SIZE)  # half of them renumbered, say
    third = tmp_path / FRAMES["png"]
    shutil.copy(third.with_name("9.png"), third.with_name("0000000003.png"))
    assert "3.png: the same frame as 0000000003.png by its number" in refused(third, SMALL, tmp_path)


def test_a_drive_under_two_names_is_in_one_split(tmp_path):
    kitti.write_kitti_raw(tmp_path, size=SIZE)
    kitti.write_kitti_png(tmp_path, size=SIZE)  # in the folder of the drives and in those of their dates
    assert len(build_dataset(SMALL, "train", root=tmp_path)) == 4
    shutil.rmtree(tmp_path / "kitti/2011_09_26_drive_0000_sync")
    shutil.move(tmp_path / "kitti/2011_09_26_drive_0002_sync", tmp_path / "kitti/2011_09_25_drive_0099_sync")
    data = build_dataset(SMALL, "train", root=tmp_path)
    assert data.notes == ("2 of 4 windows left out: they share frames with another split",)


def test_lists_of_drives(tmp_path):
    kitti.write_kitti_png(tmp_path, clips=4, size=SIZE)
    for split, drives in (("train", (2, 3)), ("val", (0,)), ("test", (1,))):
        (tmp_path / f"kitti/{split}.json").write_text(json.dumps({kitti.drive(number): 24 for number in drives}))
    assert counts(SMALL, tmp_path) == (4, 5, 5)
    path = tmp_path / "kitti/train.json"
    for text, found in (
        ('{"2011_09_26_drive_0077_sync": 3}', "names drive '2011_09_26_drive_0077_sync', which is not in"),
        ('{"../x": 3}', "names drive '../x'"),
        ("[1]", "expected {drive: frames}"),
        ("{", "no list of drives"),
        ("[" * 100_000, "no list of drives"),
        ("", "no list of drives"),
    ):
        path.write_text(text)
        assert found in refused(path, SMALL, tmp_path)
    path.unlink()
    assert "no such file" in refused(path, SMALL, tmp_path)


@pytest.mark.parametrize("clips", [1, 2])
def test_too_few_drives(tmp_path, clips):
    kitti.write_kitti_png(tmp_path, clips=clips, size=SIZE)
    assert len(build_dataset(SMALL, "train", root=tmp_path)) == 2
    assert "too few recordings for a val split" in refused(tmp_path / "kitti", SMALL, tmp_path)


def test_grey_drives_are_refused(tmp_path):
    kitti.write_kitti_raw(tmp_path, size=SIZE)
    drive = (tmp_path / RAW).parents[2]
    shutil.rmtree(drive / "image_02")
    message = refused(drive, SMALL, tmp_path)
    assert "found cameras ['image_00'], expected image_02, the left one in colour" in message
    save(tmp_path / RAW, moving(1, *SIZE, 1, 0)[0])
    for number in range(24):
        save((tmp_path / RAW).with_name(f"{number:010d}.png"), moving(1, *SIZE, 1, 0)[0])
    assert "1 channels, expected 3" in refused(drive, SMALL, tmp_path)


@pytest.mark.parametrize("damage", BROKEN)
@pytest.mark.parametrize("form", FORMS)
def test_damaged_frames_are_named(tmp_path, form, damage):
    FORMS[form](tmp_path, size=SIZE)
    path = tmp_path / FRAMES[form]
    path.write_bytes(BROKEN[damage](path.read_bytes()))
    refused(path, SMALL, tmp_path)


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("name", [RAW, "kitti_hkl/X_train.hkl", "kitti_hkl/sources_test.hkl"])
def test_what_is_no_file_is_named(tmp_path, name, kind):
    (kitti.write_kitti_raw if name == RAW else kitti.write_kitti_hkl)(tmp_path, size=SIZE)
    (tmp_path / name).unlink()
    special(kind, tmp_path / name)
    assert_refused(attempt(read_all, SMALL, tmp_path), str(tmp_path / name))


def test_near_layouts(tmp_path):
    kitti.write_kitti_png(tmp_path / "downloads", size=SIZE)
    shutil.move(tmp_path / "downloads/kitti", tmp_path / "others")
    assert "looks like the files of task 'kitti'" in refused(tmp_path / "others", SMALL, tmp_path)
    assert len(build_dataset(SMALL, "test", root=tmp_path / "others")) == 5
    (tmp_path / "kitti").mkdir()
    (tmp_path / "kitti/sequence_1").mkdir()
    assert "(but ['sequence_1']), expected" in refused(tmp_path / "kitti", SMALL, tmp_path)
    drive = tmp_path / "kitti/2011_09_26_drive_0001_sync"
    drive.mkdir()
    assert "no frames (but []), expected" in refused(drive, SMALL, tmp_path)


@pytest.mark.parametrize("val", [True, False])
def test_hkl_windows_keep_to_one_drive(tmp_path, val):
    kitti.write_kitti_hkl(tmp_path, size=(16, 24))
    if not val:
        (tmp_path / "kitti_hkl/X_val.hkl").unlink()
    found = read_all(SMALL, tmp_path)
    assert counts(SMALL, tmp_path) == ((6, 15, 15) if val else (4, 5, 15))
    right = moving(24, 16, 24, 3, 1).transpose(0, 3, 1, 2) / np.float32(255)
    np.testing.assert_array_equal(found["train"][3], right[4:])


def test_hkl_of_later_versions(tmp_path):
    kitti.write_kitti_hkl(tmp_path, size=(16, 24))
    for path in (tmp_path / "kitti_hkl").iterdir():
        with h5py.File(path, "r+") as file:
            file.move("data_0", "data")
    assert len(read_all(SMALL, tmp_path)["train"]) == 6


def put(name, content):
    def edit(folder):
        with h5py.File(folder / f"{name}.hkl", "r+") as file:
            del file["data_0"]
            if content is not None:
                file["data_0"] = content

    return edit


HKL = {
    "no array": ("X_train", put("X_train", None), "found keys []"),
    "floats": ("X_test", put("X_test", np.zeros((72, 16, 24, 3))), "float64 (72, 16, 24, 3), expected uint8"),
    "nan": ("X_test", put("X_test", np.full((72, 16, 24, 3), np.nan, np.float32)), "expected uint8"),
    "channels first": ("X_val", put("X_val", np.zeros((72, 3, 16, 24), np.uint8)), "expected uint8 (n, height,"),
    "grey": ("X_val", put("X_val", np.zeros((72, 16, 24), np.uint8)), "uint8 (72, 16, 24), expected"),
    "fewer sources": ("sources_val", put("sources_val", [b"a"] * 71), "expected texts (72,)"),
    "numbers for sources": ("sources_val", put("sources_val", np.arange(72)), "int64 (72,), expected texts"),
    "a source a frame": ("X_val", put("sources_val", [b"%d" % n for n in range(72)]), "1 frames in a row"),
    "pickled": ("X_train", lambda folder: (folder / "X_train.hkl").write_bytes(b"\x80\x04N."), "not a readable HDF5"),
}


@pytest.mark.parametrize("case", HKL)
def test_hkl_files_that_are_not_prednets(tmp_path, case):
    name, edit, found = HKL[case]
    kitti.write_kitti_hkl(tmp_path, size=(16, 24))
    edit(tmp_path / "kitti_hkl")
    assert found in refused(tmp_path / f"kitti_hkl/{name}.hkl", SMALL, tmp_path)


def declare_huge(path):
    with h5py.File(path, "r+") as file:
        del file["data_0"]
        file.create_dataset("data_0", (1 << 20, 128, 160, 3), "u1", chunks=(1, 128, 160, 3))


@pytest.mark.parametrize("damage", [*BROKEN, "declared"])
def test_damaged_hkl_is_named(tmp_path, damage):
    kitti.write_kitti_hkl(tmp_path, size=(16, 24))
    path = tmp_path / "kitti_hkl/X_train.hkl"
    if damage == "declared":
        declare_huge(path)
    else:
        path.write_bytes(BROKEN[damage](path.read_bytes()))
    refused(path, SMALL, tmp_path)
