"""Human3.6M: clips of its lists, every fifth frame; what overlaps, is missing or damaged."""

import shutil

import numpy as np
import pytest
from support.forms.human36m import write_human36m
from support.forms.pictures import moving, save
from support.forms.reading import BROKEN, counts, read_all, refused
from support.refusal import assert_refused, attempt
from support.special import NO_FILES, special

from unistd.tasks import build_dataset, files_found, get_task
from unistd.tasks.readers.images import read_image

SPEC = get_task("human36m").spec.replace(height=32, width=32)
FRAME = "human/images/S5_Sitting.58860488_000100.jpg"


def test_every_fifth_frame_of_each_clip_in_order(tmp_path):
    write_human36m(tmp_path)
    found = read_all(SPEC, tmp_path)
    assert {split: samples.shape for split, samples in found.items()} == {
        "train": (2, 8, 3, 32, 32),
        "val": (1, 8, 3, 32, 32),
        "test": (1, 8, 3, 32, 32),
    }
    for split, number in (("train", 0), ("val", 2), ("test", 3)):
        right = moving(40, 32, 32, 3, number)[:36:5].transpose(0, 3, 1, 2) / 255
        assert np.abs(found[split][0] - right).mean() < 0.05  # what JPEG leaves
    name = f"images/S6_Sitting.58860488_{101 + 15:06d}.jpg"
    np.testing.assert_array_equal(found["train"][1, 3] * 255, read_image(tmp_path / "human" / name))


def test_a_val_list_that_is_there_is_taken(tmp_path):
    write_human36m(tmp_path, clips={"train": 2, "val": 1, "test": 1})
    assert counts(SPEC, tmp_path) == (2, 1, 1)


def test_frames_of_other_sizes_cover_the_spec(tmp_path):
    write_human36m(tmp_path, clips={"train": 0, "test": 0})
    for number, split in enumerate(("train", "val", "test")):
        for frame, pixels in enumerate(moving(36, 1002, 1000, 3, number)):
            save(tmp_path / f"human/images/S{number}_A_1.5_{frame:06d}.jpg", pixels)
        (tmp_path / f"human/{split}.txt").write_text(f"images/S{number}_A_1.5_,0,35\r\n\r\n")
    assert read_all(SPEC.replace(height=16, width=16, patch=8), tmp_path)["test"].shape == (1, 8, 3, 16, 16)


@pytest.mark.parametrize("shift", [0, 1, 5, 34])
def test_clips_that_overlap_with_test_are_left_out(tmp_path, shift):
    write_human36m(tmp_path, clips={"train": 3, "test": 1})
    for frame, pixels in enumerate(moving(120, 32, 32, 3, 3)[40:], 143):
        save(tmp_path / f"human/images/S8_Sitting.58860488_{frame:06d}.jpg", pixels)
    with (tmp_path / "human/train.txt").open("r+") as file:
        lines = file.read()
        file.seek(0)
        file.write(f"images/S8_Sitting.58860488_,{103 + shift},{103 + shift + 35}\n{lines}")
    data = build_dataset(SPEC, "train", root=tmp_path)
    assert len(data) == 2
    assert data.notes == ("1 of 3 windows left out: they share frames with another split",)


def test_a_copy_under_another_name_is_left_out(tmp_path):
    write_human36m(tmp_path)
    for path in sorted((tmp_path / "human/images").glob("S8_*")):
        shutil.copy(path, path.with_name(path.name.replace("S8_", "S1_")))
    with (tmp_path / "human/train.txt").open("r+") as file:
        lines = file.read()
        file.seek(0)
        file.write(f"images/S1_Sitting.58860488_,103,142\n{lines}")
    assert build_dataset(SPEC, "train", root=tmp_path).notes


def test_missing_frames_are_named(tmp_path):
    write_human36m(tmp_path)
    for frame in (105, 110):
        (tmp_path / f"human/images/S5_Sitting.58860488_{frame:06d}.jpg").unlink()
    message = refused(tmp_path / "human/images/S5_Sitting.58860488_000105.jpg", SPEC, tmp_path)
    assert message.endswith("no such file, of train.txt: line 1; 2 frames of the list are missing")


LISTS = {
    "empty": ("", "no clips"),
    "two columns": ("images/a_,3\n", "line 1 is 'images/a_,3', expected prefix,first,last"),
    "backwards": ("images/a_,9,3\n", "line 1 is"),
    "negative": ("images/a_,-9,3\n", "line 1 is"),
    "words": ("images/a_,one,two\n", "line 1 is"),
    "of another place": ("../../etc/passwd,1,40\n", "line 1 is"),
    "absolute": ("/etc/passwd,1,40\n", "line 1 is"),
    "huge numbers": (f"images/a_,1,{'9' * 5000}\n", "line 1 is"),
    "bytes": (b"\xff\xfe\x00", "not UTF-8 text"),
    "17 MiB": ("images/a_,1,40\n" * (1 << 20) + "x" * (2 << 20), "expected at most"),
}


@pytest.mark.parametrize("case", LISTS)
def test_lists_that_are_none(tmp_path, case):
    content, found = LISTS[case]
    write_human36m(tmp_path)
    path = tmp_path / "human/train.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert found in refused(path, SPEC, tmp_path)


def test_clips_that_are_too_short(tmp_path):
    write_human36m(tmp_path)
    path = tmp_path / "human/train.txt"
    path.write_text("images/S5_Sitting.58860488_,100,130\n" + path.read_text())
    data = build_dataset(SPEC, "train", root=tmp_path)
    assert data.notes == ("1 of 3 clips left out: shorter than 8 frames, 5 apart",)
    path.write_text("images/S5_Sitting.58860488_,100,130\n" * 2)
    assert "frames 100 to 130, expected 8 frames, 5 apart" in refused(path, SPEC, tmp_path)


@pytest.mark.parametrize("damage", BROKEN)
def test_damaged_pictures_are_named(tmp_path, damage):
    write_human36m(tmp_path)
    path = tmp_path / FRAME
    path.write_bytes(BROKEN[damage](path.read_bytes()))
    refused(path, SPEC, tmp_path)


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("name", [FRAME, "human/test.txt"])
def test_what_is_no_file_is_named(tmp_path, name, kind):
    write_human36m(tmp_path)
    (tmp_path / name).unlink()
    special(kind, tmp_path / name)
    assert_refused(attempt(read_all, SPEC, tmp_path), str(tmp_path / name))


def test_grey_pictures_and_other_sizes_within_a_clip_are_named(tmp_path):
    write_human36m(tmp_path)
    save(tmp_path / FRAME, moving(1, 32, 32, 1, 0)[0])
    assert "1 channels, expected 3" in refused(tmp_path / FRAME, SPEC, tmp_path)
    save(tmp_path / FRAME, moving(1, 16, 16, 3, 0)[0])
    refused(tmp_path / "human/images/S5_Sitting.58860488_000105.jpg", SPEC, tmp_path)


def test_near_layouts(tmp_path):
    write_human36m(tmp_path)
    assert files_found("human36m", tmp_path / "human") == str(tmp_path / "human")
    (tmp_path / "human/test.txt").unlink()
    assert "no such file" in refused(tmp_path / "human/test.txt", SPEC, tmp_path)
    (tmp_path / "human/train.txt").unlink()
    assert "expected images/*.jpg with train.txt and test.txt" in refused(tmp_path / "human", SPEC, tmp_path)
