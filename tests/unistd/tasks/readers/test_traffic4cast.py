"""Traffic4cast 2021 from the files of its days."""

import pickle
import shutil

import h5py
import numpy as np
import pytest
from support.forms.reading import BROKEN, read_all, refused
from support.forms.traffic4cast import CITY, day, write_traffic4cast

from unistd.tasks import DataFileError, build_dataset, files_found, get_task

SPEC = get_task("traffic4cast").spec
SMALL = SPEC.replace(height=8, width=8)
FOLDER = f"traffic4cast/{CITY}/training"


def path_of(root, number, city=CITY):
    return root / "traffic4cast" / city / "training" / f"2019-01-{number + 2:02d}_{city}_8ch.h5"


def test_days_are_cut_every_ten_intervals_and_cropped_to_their_middle(tmp_path):
    write_traffic4cast(tmp_path, frames=34)
    found = read_all(SPEC, tmp_path)
    assert {split: len(samples) for split, samples in found.items()} == {"train": 9, "val": 3, "test": 3}
    middle = day(34, (144, 128), 1)[10:22, 8:136, 8:120].transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(found["train"][4] * 255, middle)
    np.testing.assert_array_equal(
        found["test"][0, :, 7], day(34, (144, 128), 4)[:12, 8:136, 8:120, 7] / np.float32(255)
    )
    data = pickle.loads(pickle.dumps(build_dataset(SPEC, "train", root=tmp_path, length=2)))
    np.testing.assert_array_equal(data[1][1], found["train"][4][9:])
    assert files_found("traffic4cast", tmp_path) == str(tmp_path / "traffic4cast")


def test_every_citys_last_days_are_held_out(tmp_path):
    write_traffic4cast(tmp_path, clips=21, size=(8, 8), frames=12)
    other = tmp_path / "traffic4cast/OTHER/training"
    other.mkdir(parents=True)
    write_traffic4cast(tmp_path / "more", clips=2, size=(8, 8), frames=12, seed=90)
    for number in range(2):
        shutil.copy(path_of(tmp_path / "more", number), path_of(tmp_path, number, "OTHER"))
    (tmp_path / "traffic4cast" / CITY / f"{CITY}_static.h5").write_bytes(b"not read")
    found = read_all(SMALL, tmp_path)
    assert {split: len(samples) for split, samples in found.items()} == {"train": 2 + 17, "val": 2, "test": 2}
    for split, numbers in {"val": (17, 18), "test": (19, 20)}.items():
        for sample, number in zip(found[split], numbers, strict=True):
            np.testing.assert_array_equal(sample * 255, day(12, (8, 8), number).transpose(0, 3, 1, 2))


def test_the_releases_index_says_which_days_are_held_out(tmp_path):
    write_traffic4cast(tmp_path, clips=4)  # of ten days: the eighth is the first of val
    for number, there in enumerate((0, 7, 8, 9)):
        path_of(tmp_path, number).rename(path_of(tmp_path, number).with_name(f"2019-02-{there + 1:02d}_{CITY}_8ch.h5"))
    index = tmp_path / "traffic4cast/index.txt"
    listed = [f"{CITY}/training/2019-02-{day + 1:02d}_{CITY}_8ch.h5" for day in range(20)]
    index.write_text("\n".join([f"{CITY}/{CITY}_static.h5", *listed[:10]]) + "\n")
    sizes = [len(build_dataset(SPEC, split, root=tmp_path)) for split in ("train", "val", "test")]
    assert sizes == [4, 2, 2]
    index.write_text("\n".join(listed))  # none of the first of twenty days is held out
    data = build_dataset(SPEC, "train", root=tmp_path)
    assert (len(data), len(data.notes)) == (4, 1)
    index.write_text("of something else\n")
    with pytest.raises(DataFileError, match=r"index\.txt: lists no day"):
        build_dataset(SPEC, "train", root=tmp_path)


def test_a_copy_of_a_test_day_is_left_out(tmp_path):
    write_traffic4cast(tmp_path, size=(8, 8), frames=12)
    shutil.copy(path_of(tmp_path, 4), path_of(tmp_path, 0))
    data = build_dataset(SMALL, "train", root=tmp_path)
    assert len(data) == 2
    assert data.notes == ("1 of 3 windows left out: they share frames with another split",)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_too_few_days_to_hold_some_out_are_refused(tmp_path, split):
    write_traffic4cast(tmp_path, clips=2, size=(8, 8))
    with pytest.raises(DataFileError, match=f"2 days of {CITY}: none for the (val|test) split, expected at least 3"):
        build_dataset(SMALL, split, root=tmp_path)


NAMES = {
    "2019-01-09_OTHER_8ch.h5": "a day of OTHER by its name, expected one of TESTCITY",
    "2019-02-30_TESTCITY_8ch.h5": "2019-02-30 is no date",
    "2019-01-09_TESTCITY_8ch.h5.part": "would be left out, expected names like",
    "2019-01-09_TESTCITY.h5": "would be left out",
}


@pytest.mark.parametrize("name", NAMES)
def test_other_names_are_refused(tmp_path, name):
    write_traffic4cast(tmp_path, size=(8, 8))
    path = tmp_path / FOLDER / name
    path_of(tmp_path, 0).rename(path)
    assert NAMES[name] in refused(path, SMALL, tmp_path)


def test_near_layouts_are_named(tmp_path):
    (tmp_path / "traffic4cast/x").mkdir(parents=True)
    assert "expected CITY/training/" in refused(tmp_path / "traffic4cast", SMALL, tmp_path)
    write_traffic4cast(tmp_path / "made", size=(8, 8))
    shutil.rmtree(tmp_path / "traffic4cast")
    shutil.move(tmp_path / "made/traffic4cast", tmp_path / "made/t4c")
    shutil.move(tmp_path / "made/t4c", tmp_path / "t4c")
    assert "looks like the files of task 'traffic4cast'" in refused(tmp_path / "t4c", SMALL, tmp_path)


ARRAYS = {
    "float": (np.zeros((24, 8, 8, 8), np.float32), "'array' is float32 (24, 8, 8, 8), expected uint8 (T, H, W, 8)"),
    "nan": (np.full((24, 8, 8, 8), np.nan), "expected uint8 (T, H, W, 8)"),
    "one channel": (np.zeros((24, 8, 8, 1), np.uint8), "(24, 8, 8, 1), expected uint8 (T, H, W, 8)"),
    "channels first": (np.zeros((24, 8, 8, 9), np.uint8), "expected uint8 (T, H, W, 8)"),
    "five axes": (np.zeros((1, 24, 8, 8, 8), np.uint8), "expected uint8 (T, H, W, 8)"),
    "no frames": (np.zeros((0, 8, 8, 8), np.uint8), "expected uint8 (T, H, W, 8)"),
    "smaller than the spec": (np.zeros((24, 4, 8, 8), np.uint8), "frames (12, 8, 4, 8), expected (12, 8, 8, 8)"),
    "few frames": (np.zeros((11, 8, 8, 8), np.uint8), None),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_other_arrays_are_refused(tmp_path, case):
    array, found = ARRAYS[case]
    write_traffic4cast(tmp_path, clips=3, size=(8, 8))
    with h5py.File(path_of(tmp_path, 0), "w") as file:
        file["array"] = array
    assert (found or "11 frames, expected at least 12") in refused(path_of(tmp_path, 0), SMALL, tmp_path)


DECLARED = {
    "no day": ((288, 495, 436, 8), (1, 495, 436, 8), "declares 288 frames that were not all written"),
    "a century": ((10_000_000, 495, 436, 8), (1, 495, 436, 8), "declares 10000000 frames that were not all written"),
    "a huge frame": ((288, 100_000, 1000, 8), (1, 100, 100, 8), "rows of 800000000 bytes, expected at most"),
    "contiguous": ((288, 495, 436, 8), None, "declares 497249280 bytes, of which 0 are in the file"),
}


@pytest.mark.parametrize("case", DECLARED)
def test_what_is_declared_and_not_there_is_refused(tmp_path, case):
    shape, chunks, found = DECLARED[case]
    write_traffic4cast(tmp_path, clips=3, size=(8, 8))
    with h5py.File(path_of(tmp_path, 1), "w") as file:
        file.create_dataset("array", shape, "u1", chunks=chunks)
    assert found in refused(path_of(tmp_path, 1), SMALL, tmp_path)


def test_a_frame_that_was_never_written_is_refused_as_it_is_read(tmp_path):
    write_traffic4cast(tmp_path, clips=3, size=(8, 8))
    with h5py.File(path_of(tmp_path, 2), "w") as file:
        array = file.create_dataset("array", (24, 8, 8, 8), "u1", chunks=(1, 8, 8, 8))
        for row in {*range(24)} - {5}:
            array[row] = row
    assert "'array' has nothing at (5, 0, 0, 0): that was never written" in refused(
        path_of(tmp_path, 2), SMALL, tmp_path
    )


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_are_refused(tmp_path, kind):
    write_traffic4cast(tmp_path, clips=3, size=(8, 8))
    path = path_of(tmp_path, 0)
    path.write_bytes(BROKEN[kind](path.read_bytes()))
    refused(path, SMALL, tmp_path)
