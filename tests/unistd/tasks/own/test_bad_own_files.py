"""Damaged files of every form of one's own: one line that names the file, soon and in little memory."""

import os
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from support.forms.own import (
    moving_frames,
    write_frames,
    write_hdf5,
    write_netcdf,
    write_npy,
    write_strips,
    write_video,
)
from support.own import split_of
from support.refusal import assert_refused, attempt

from unistd.tasks import DataFileError

FRAMES = moving_frames(40)
DAYS = np.datetime64("2020-01-01", "ns") + np.arange(40).astype("timedelta64[D]")
FORMS = {
    "png": (lambda root: write_frames(root, FRAMES) / "frame_0007.png", {"files": "frames"}),
    "pgm.gz": (lambda root: write_frames(root, FRAMES, suffix=".pgm.gz") / "frame_0007.pgm.gz", {"files": "frames"}),
    "strips": (
        lambda root: write_strips(root, [moving_frames(9, (8, 8), seed) for seed in range(5)]) / "0002.jpg",
        {"files": "strips", "form": "strips", "splits": {"by": "file"}},
    ),
    "npy": (lambda root: write_npy(root, FRAMES), {"files": "*.npy"}),
    "npz": (lambda root: zipped(root), {"files": "*.npz"}),
    "hdf5": (lambda root: write_hdf5(root, FRAMES), {"files": "*.h5", "variable": "fields/rain"}),
    "netcdf": (lambda root: write_netcdf(root, FRAMES, DAYS), {"files": "*.nc"}),
    "classic netcdf": (
        lambda root: write_netcdf(root, FRAMES.astype(np.float32), DAYS, engine="scipy"),
        {"files": "*.nc"},
    ),
    "video": (lambda root: write_video(root, FRAMES, codec="mpeg4"), {"files": "*.avi"}),
}
DAMAGE = {
    "empty": lambda content: b"",
    "a few bytes": lambda content: content[:10],
    "half": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "another format": lambda content: b"%PDF-1.7\n" * 500,
}


def zipped(root: Path) -> Path:
    np.savez_compressed(root / "a.npz", FRAMES)
    return root / "a.npz"


def read_all(root: Path, keys: dict) -> None:
    os.environ["UNISTD_CACHE"] = str(root / "cache")
    data = split_of(root, **keys)
    for index in range(len(data)):
        data[index]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("form", FORMS)
def test_damage_is_one_line_that_names_the_file(tmp_path, form, damage):
    write, keys = FORMS[form]
    path = write(tmp_path)
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert_refused(attempt(read_all, tmp_path, keys), str(path))


def test_a_folder_a_pipe_and_a_link_to_nothing(tmp_path):
    for make in (os.mkfifo, lambda path: os.symlink("nowhere", path)):
        path = tmp_path / "frames.npy"
        make(path)
        assert_refused(attempt(read_all, tmp_path, {"files": "*.npy"}), str(path))
        path.unlink()
    (tmp_path / "frames.npy").mkdir()
    assert_refused(attempt(read_all, tmp_path, {"files": "*.npy"}), "frames.npy")


def enormous_npy(root: Path) -> None:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1024, 1024), }"
    (root / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(1000))


def enormous_png(root: Path) -> None:
    write_frames(root, FRAMES)
    path = root / "frames" / "frame_0003.png"
    content = path.read_bytes()
    head = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + content[24:29]
    path.write_bytes(content[:12] + head + zlib.crc32(head).to_bytes(4, "big") + content[33:])


def enormous_hdf5(root: Path) -> None:
    with h5py.File(root / "a.h5", "w") as file:
        file.create_dataset("x", (1_000_000, 1024, 1024), np.float32, chunks=(1, 1024, 1024))


def enormous_netcdf(root: Path) -> None:
    with h5py.File(root / "a.nc", "w") as file:
        data = file.create_dataset("sst", (1_000_000, 1024, 1024), np.float32, chunks=(1, 1024, 1024))
        for axis, name in enumerate(("time", "lat", "lon")):
            file[name] = np.arange(data.shape[axis], dtype=np.float64)
            file[name].make_scale(name)
            data.dims[axis].attach_scale(file[name])


def enormous_npz(root: Path) -> None:
    np.savez_compressed(root / "a.npz", np.zeros((300, 1024, 1024), np.uint8))


ENORMOUS = {
    "npy": (enormous_npy, {"files": "a.npy"}, "a.npy"),
    "png": (enormous_png, {"files": "frames"}, "frame_0003.png"),
    "hdf5": (enormous_hdf5, {"files": "a.h5", "variable": "x"}, "a.h5"),
    "netcdf": (enormous_netcdf, {"files": "a.nc"}, "a.nc"),
    "npz": (enormous_npz, {"files": "a.npz"}, "a.npz"),
}


@pytest.mark.parametrize("form", ENORMOUS)
def test_enormous_by_header(tmp_path, form):
    write, keys, name = ENORMOUS[form]
    write(tmp_path)
    assert_refused(attempt(read_all, tmp_path, keys), name)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("split", ["train", "test"])
def test_what_is_no_number_is_named(tmp_path, value, split):
    frames = FRAMES.astype(np.float32)
    frames[5 if split == "train" else 36, 3, 3] = value
    path = write_npy(tmp_path, frames)
    keys = {"files": "*.npy", "range": [0, 255]}
    outcome = attempt(read_split, tmp_path, split, keys)
    assert_refused(outcome, str(path), "holds")


def read_split(root: Path, split: str, keys: dict) -> None:
    os.environ["UNISTD_CACHE"] = str(root / "cache")
    data = split_of(root, split, **keys)
    for index in range(len(data)):
        data[index]


def test_a_file_of_several_pictures(tmp_path):
    pages = [Image.fromarray(frame) for frame in FRAMES]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert_refused(attempt(read_all, tmp_path, {"files": "*.tif"}), f"{tmp_path}/a.tif", "several pictures")


def test_frames_that_go_back_in_time(tmp_path):
    stamps = np.array([f"202001{31 - day % 31:02d}{23 - day // 31:02d}" for day in range(len(FRAMES))], "S10")
    write_hdf5(tmp_path, FRAMES, np.sort(stamps)[::-1])
    keys = {"files": "data.h5", "variable": "fields/rain", "time": "date"}
    assert_refused(attempt(read_all, tmp_path, keys), f"{tmp_path}/data.h5", "go back in time")


def test_a_netcdf_that_is_replaced_by_a_larger_one(tmp_path):
    write_netcdf(tmp_path, FRAMES, DAYS)
    samples = split_of(tmp_path, files="sea.nc")
    write_netcdf(tmp_path, np.concatenate([FRAMES, FRAMES], axis=2), DAYS, "new.nc").rename(tmp_path / "sea.nc")
    with pytest.raises(DataFileError, match=r"bytes of values, expected .* as it was opened"):
        samples[0]
