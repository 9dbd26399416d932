"""Cityscapes from its pictures and from MCVD's shards: the same samples of both, and what is not as published."""

import pickle
import shutil
import zlib

import h5py
import numpy as np
import pytest
from PIL import Image
from support.forms.cityscapes import (
    square,
    video,
    write_cityscapes_h5,
    write_cityscapes_png,
    write_shard,
)
from support.forms.pictures import moving, save
from support.forms.reading import BROKEN, counts, read_all, refused
from support.refusal import assert_refused, attempt
from support.special import special

from unistd.tasks import build_dataset, files_found, get_task

SPEC = get_task("cityscapes").spec.replace(height=32, width=32)
FORMS = {"png": write_cityscapes_png, "h5": write_cityscapes_h5}
PNG = "leftImg8bit_sequence/train/aachen/aachen_000000_000002_leftImg8bit.png"
SHARD = "Cityscapes128_h5/train/shard_0001.hdf5"
PLACES = {"png": PNG, "h5": SHARD}


@pytest.fixture(scope="module", params=FORMS)
def form(request):
    return request.param


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder with both forms in folders of their names."""
    for form, write in FORMS.items():
        write(tmp_path_factory.getbasetemp() / "cityscapes" / form)
    return tmp_path_factory.getbasetemp() / "cityscapes"


@pytest.fixture
def png(made, tmp_path):
    return shutil.copytree(made / "png", tmp_path, dirs_exist_ok=True)


@pytest.fixture
def h5(made, tmp_path):
    return shutil.copytree(made / "h5", tmp_path, dirs_exist_ok=True)


@pytest.fixture
def either(made, tmp_path, form):
    return shutil.copytree(made / form, tmp_path, dirs_exist_ok=True)


def test_windows_of_the_middle_of_every_video(made, form):
    found = read_all(SPEC, made / form)
    for split, videos, starts in (("train", 3, (0, 5, 10)), ("val", 1, (0, 5, 10)), ("test", 2, (0,))):
        right = [
            square(video(split, number), 32)[start : start + 20].transpose(0, 3, 1, 2)
            for number in range(videos)
            for start in starts
        ]
        np.testing.assert_array_equal(found[split], np.stack(right) / np.float32(255))
    data = build_dataset(SPEC, "train", root=made / form, length=2)
    assert data.notes == ()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(data))[1][0], found["train"][4][:10])


@pytest.mark.parametrize("size", [(16, 16), (32, 64), (48, 24), (64, 128)])
def test_frames_of_other_sizes_are_scaled_to_the_spec(tmp_path, form, size):
    FORMS[form](tmp_path, clips={"train": 1, "val": 1, "test": 1})
    spec = SPEC.replace(height=size[0], width=size[1], frames_in=2, frames_out=1)
    assert read_all(spec, tmp_path)["test"].shape == (1, 3, 3, *size)


def test_where_the_files_may_lie(tmp_path):
    write_cityscapes_png(tmp_path / "a/cityscapes")
    assert files_found("cityscapes", tmp_path / "a").endswith("cityscapes/leftImg8bit_sequence")
    write_cityscapes_h5(tmp_path / "a/cityscapes")
    assert files_found("cityscapes", tmp_path / "a").endswith("cityscapes/Cityscapes128_h5")
    top = tmp_path / "a/cityscapes/leftImg8bit_sequence"
    assert files_found("cityscapes", top) == str(top)
    assert files_found("cityscapes", top.parent / "Cityscapes128_h5") == str(top.parent / "Cityscapes128_h5")
    shutil.move(top, tmp_path / "streets")
    assert "looks like the files of task 'cityscapes'" in refused(tmp_path / "streets", SPEC, tmp_path)
    (tmp_path / "cityscapes").mkdir()
    assert "expected leftImg8bit_sequence/{train,val,test}/CITY" in refused(tmp_path / "cityscapes", SPEC, tmp_path)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_split_that_is_not_there_is_named(either, form, split):
    folder = (either / PLACES[form].split("/")[0]) / split
    shutil.rmtree(folder)
    assert "no such folder" in refused(folder, SPEC, either)


def test_a_copy_of_a_test_video_is_left_out_of_shards(h5):
    held = [square(video(*name), 32) for name in (("train", 0), ("test", 1))]
    write_shard(h5 / SHARD, held)
    data = build_dataset(SPEC, "train", root=h5)
    assert len(data) == 6
    assert data.notes == ("3 of 9 windows left out: they share frames with another split",)


@pytest.mark.parametrize(("shift", "left"), [(0, 9), (12, 10), (25, 12)])
def test_pictures_that_test_has_too_are_left_out(png, shift, left):
    """Frames of a test video from `shift` on, under the name and numbers of another recording."""
    folder = png / "leftImg8bit_sequence"
    for frame in range(30):
        new = folder / f"train/aachen/aachen_000009_{frame + 100:06d}_leftImg8bit.png"
        if frame + shift < 20:  # the sample of a test video is of its first 20
            shutil.copy(folder / f"test/bonn/bonn_000001_{frame + shift:06d}_leftImg8bit.png", new)
        else:
            save(new, moving(1, 64, 128, 3, 50 + frame)[0])
    data = build_dataset(SPEC, "train", root=png)
    assert len(data) == left
    assert len(data.notes) == (shift < 20)


def test_a_missing_picture_cuts_a_video(png):
    (png / PNG.replace("000002_left", "000004_left")).unlink()
    data = build_dataset(SPEC, "train", root=png)
    assert len(data) == 2 + 6
    assert data.notes == ("1 of 4 clips left out: fewer than 20 frames in a row",)


def test_single_frames_are_no_sequences(tmp_path):
    for split, city in {"train": "aachen", "val": "lindau", "test": "bonn"}.items():
        save(tmp_path / f"cityscapes/{split}/{city}/{city}_000000_000019_leftImg8bit.png", np.zeros((8, 16, 3), "u1"))
    path = tmp_path / "cityscapes/train/aachen/aachen_000000_000019_leftImg8bit.png"
    assert "1 frames in a row, expected at least 20" in refused(path, SPEC, tmp_path)


NAMES = {
    "bonn_000000_000002_leftImg8bit.png": "a frame of another city than its folder",
    "aachen_000000_000002_leftImg8bit.png.part": "would be left out",
    "aachen_000000_000002.png": "would be left out, expected names like aachen_000000_000019_leftImg8bit.png",
    "aachen_0_2_leftImg8bit.png": "would be left out",
}


@pytest.mark.parametrize("name", NAMES)
def test_pictures_of_other_names(png, name):
    (png / PNG).rename((png / PNG).with_name(name))
    assert NAMES[name] in refused((png / PNG).with_name(name), SPEC, png)


def test_a_city_without_frames(png):
    folder = png / "leftImg8bit_sequence/val/munster"
    folder.mkdir()
    assert "no frames (but [])" in refused(folder, SPEC, png)


PIXELS = {
    "grey": (np.zeros((64, 128), np.uint8), "1 channels, expected 3"),
    "16 bits": (np.zeros((64, 128), np.uint16), "1 channels, expected 3"),
    "another size": (np.zeros((64, 64, 3), np.uint8), "uint8 (64, 64), expected uint8 (64, 128)"),
    "above the limit": (np.zeros((7000, 6000), bool), "6000 x 7000 pixels, expected at most"),
}


@pytest.mark.parametrize("case", PIXELS)
def test_pictures_of_other_pixels(png, case):
    pixels, found = PIXELS[case]
    Image.fromarray(pixels).save(png / PNG)
    assert found in refused(png / PNG, SPEC, png)


def test_large_pictures_that_fill_the_memory_are_refused(png):
    Image.new("RGB", (2200, 2200)).save(png / "black.png")
    paths = sorted((png / PNG).parent.glob("aachen_000000_*"))
    for path in paths:
        shutil.copy(png / "black.png", path)
    assert_refused(attempt(read_all, SPEC, png), str(paths[0]), "20 frames of 14520000 bytes, expected at most")


@pytest.mark.parametrize("damage", BROKEN)
def test_damaged_files_are_named(either, form, damage):
    path = either / PLACES[form]
    path.write_bytes(BROKEN[damage](path.read_bytes()))
    refused(path, SPEC, either)


@pytest.mark.parametrize("kind", ["a named pipe", "a link to nothing"])
def test_what_is_no_file_is_named(either, form, kind):
    path = either / PLACES[form]
    path.unlink()
    special(kind, path)
    assert_refused(attempt(read_all, SPEC, either), str(path))


def replaced(key, content):
    def edit(file):
        del file[key]
        if content is not None:
            file[key] = content

    return edit


def soft(file):
    del file["1/3"]
    file["1/3"] = h5py.SoftLink("/1/4")


def outside(file):
    del file["len/1"]
    file["len"].create_dataset("1", (), "i8", external=[("/etc/passwd", 0, 8)])


SHARDS = {
    "no lengths": (lambda file: file.pop("len"), "2 videos, 0 in 'len', expected both to be numbered from 0 on"),
    "a length less": (lambda file: file.pop("len/1"), "2 videos, 1 in 'len'"),
    "a video less": (lambda file: file.pop("1"), "1 videos, 2 in 'len'"),
    "a video of another name": (lambda file: file.move("1", "one"), "(not so: ['1', 'one'])"),
    "numbers from 1": (lambda file: (file.move("0", "2"), file.move("len/0", "len/2")), "numbered from 0 on"),
    "more frames than said": (replaced("len/1", 29), "video 1 has 30 frames, expected 29 as 'len' says"),
    "fewer frames than said": (lambda file: file.pop("1/29"), "video 1 has 29 frames, expected 30 as 'len' says"),
    "a frame in between": (lambda file: file.pop("1/7"), "video 1 has frames ['0', '1', '10'"),
    "no frames": (lambda file: (file.pop("1"), file.create_group("1")), "video 1 has frames []"),
    "an array for a video": (replaced("1", np.zeros((30, 32, 32, 3), np.uint8)), "video 1 has frames []"),
    "a length in texts": (replaced("len/1", "30"), "'len/1' is of type object, expected a whole number"),
    "a length in floats": (replaced("len/1", 30.0), "'len/1' is of type float64, expected a whole number"),
    "lengths": (replaced("len/1", np.array([30])), "(shape (1,)), expected a single number"),
    "an empty length": (replaced("len/1", h5py.Empty("i8")), "(shape None), expected a single number"),
    "a length of another file": (outside, "'len/1' declares 8 bytes, of which 0 are in the file"),
    "a link": (soft, "'1/3' is a soft link"),
    "floats": (replaced("1/3", np.full((32, 32, 3), np.nan)), "'1/3' is float64 (32, 32, 3), expected uint8"),
    "grey": (replaced("1/3", np.zeros((32, 32), np.uint8)), "'1/3' is uint8 (32, 32), expected uint8 (height,"),
    "channels first": (replaced("1/3", np.zeros((3, 32, 32), np.uint8)), "'1/3' is uint8 (3, 32, 32)"),
    "another size": (replaced("1/3", np.zeros((16, 32, 3), np.uint8)), "'1/3' is (16, 32, 3), expected (32, 32, 3)"),
    "a number": (replaced("1/3", 5), "'1/3' has no rows"),
    "no pixels": (replaced("1/3", np.zeros((0, 32, 3), np.uint8)), "expected uint8 (height, width, 3)"),
}


@pytest.mark.parametrize("case", SHARDS)
def test_shards_of_other_content(h5, case):
    edit, found = SHARDS[case]
    with h5py.File(h5 / SHARD, "r+") as file:
        edit(file)
    assert found in refused(h5 / SHARD, SPEC, h5)


DECLARED = {
    "never written": ((32, 32, 3), (32, 32, 3), "declares 3072 bytes in 1 chunks, of which 0 are in the file"),
    "a huge frame": ((100_000, 100_000, 3), (1000, 1000, 3), "of which 0 are in the file"),
    "contiguous": ((100_000, 100_000, 3), None, "declares 30000000000 bytes, of which 0 are in the file"),
}


@pytest.mark.parametrize("case", DECLARED)
def test_what_is_declared_and_not_there_is_refused(h5, case):
    shape, chunks, found = DECLARED[case]
    with h5py.File(h5 / SHARD, "r+") as file:
        del file["0/3"]
        file.create_dataset("0/3", shape, "u1", chunks=chunks)
    assert_refused(attempt(read_all, SPEC, h5), str(h5 / SHARD), found)


def test_frames_that_unpack_to_more_than_the_memory(h5):
    shape, packed = (4600, 4600, 3), zlib.compress(bytes(4600 * 4600 * 3))
    with h5py.File(h5 / SHARD, "w") as file:
        file["len/0"] = 30
        for frame in range(30):
            made = file.create_dataset(f"0/{frame}", shape, "u1", chunks=shape, compression="gzip")
            made.id.write_direct_chunk((0, 0, 0), packed)
    assert_refused(attempt(read_all, SPEC, h5), str(h5 / SHARD), "20 frames of 63480000 bytes, expected at most")


def test_a_shard_that_is_missing_is_named_and_an_empty_last_one_is_passed_over(h5):
    write_shard(h5 / "Cityscapes128_h5/test/shard_0002.hdf5", [])
    assert counts(SPEC, h5) == (9, 3, 2)
    (h5 / SHARD).unlink()
    assert "no such file, beside shards [2]" in refused(h5 / SHARD, SPEC, h5)
    write_shard(h5 / "Cityscapes128_h5/val/shard_0001.hdf5", [])
    write_cityscapes_h5(h5, clips={"train": 3})
    assert "no videos" in refused(h5 / "Cityscapes128_h5/val/shard_0001.hdf5", SPEC, h5)


def test_a_shard_that_changes_is_refused(h5):
    data = build_dataset(SPEC, "test", root=h5)
    path = h5 / "Cityscapes128_h5/test/shard_0001.hdf5"
    write_shard(path, [np.zeros((30, 32, 32, 3), np.uint8)] * 2)
    with pytest.raises(ValueError, match="has changed since it was opened"):
        data[0]
