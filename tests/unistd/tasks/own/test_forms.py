"""Every form of files of one's own: the frames that were written come back, in order."""

import numpy as np
import pytest
from support.forms.own import (
    moving_frames,
    write_frames,
    write_hdf5,
    write_netcdf,
    write_npy,
    write_strips,
    write_video,
)
from support.own import all_frames, described, split_of, values

from unistd.tasks import DataFileError

FRAMES = moving_frames(40)  # 24 of train, 8 of val and of test: whole samples of 4
DAYS = np.datetime64("2020-01-01", "ns") + np.arange(40).astype("timedelta64[D]")
HOURS = np.array([f"20200101{hour:02d}" if hour < 24 else f"20200102{hour - 24:02d}" for hour in range(40)], "S10")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNISTD_CACHE", str(tmp_path / "cache"))


def write_transposed(root, frames):
    import xarray

    data = xarray.DataArray(frames, dims=("time", "lat", "lon"), coords={"time": DAYS}, name="sst")
    data.transpose("lat", "lon", "time").to_netcdf(root / "sea.nc", engine="h5netcdf")


WRITERS = {
    "png": (lambda root: write_frames(root, FRAMES), {"files": "frames/*.png"}),
    "pgm.gz": (lambda root: write_frames(root, FRAMES, suffix=".pgm.gz"), {"files": "frames"}),
    "tif": (lambda root: write_frames(root, FRAMES, suffix=".tif"), {"files": ["frames/*_00*.tif"]}),
    "npy": (lambda root: write_npy(root, FRAMES), {"files": "*.npy"}),
    "npy tchw": (lambda root: write_npy(root, FRAMES[:, None]), {"files": "frames.npy"}),
    "npy thwc": (lambda root: write_npy(root, FRAMES[..., None]), {"files": "frames.npy"}),
    "npy in Fortran order": (lambda root: write_npy(root, np.asfortranarray(FRAMES)), {"files": "frames.npy"}),
    "npz": (lambda root: np.savez(root / "a.npz", x=FRAMES, y=FRAMES[:2]), {"files": "a.npz", "variable": "x"}),
    "npz, packed": (lambda root: np.savez_compressed(root / "a.npz", FRAMES), {"files": "a.npz"}),
    "hdf5": (lambda root: write_hdf5(root, FRAMES), {"files": "data.h5", "variable": "fields/rain"}),
    "hdf5 with stamps": (
        lambda root: write_hdf5(root, FRAMES, HOURS),
        {"files": "data.h5", "variable": "fields/rain", "time": "date"},
    ),
    "netcdf": (lambda root: write_netcdf(root, FRAMES, DAYS), {"files": "sea.nc"}),
    "classic netcdf": (
        lambda root: write_netcdf(root, FRAMES.astype(np.float32), DAYS, engine="scipy"),
        {"files": "sea.nc", "variable": "sst", "range": [0, 255]},
    ),
    "netcdf, time last": (lambda root: write_transposed(root, FRAMES), {"files": "sea.nc"}),
    "zarr": (lambda root: write_netcdf(root, FRAMES, DAYS, "sea.zarr"), {"files": "*.zarr"}),
    "video": (lambda root: write_video(root, FRAMES), {"files": "clip.avi", "channels": 1}),
}


@pytest.mark.parametrize("form", WRITERS)
def test_frames_come_back_in_order(tmp_path, form):
    write, keys = WRITERS[form]
    write(tmp_path)
    description = described(tmp_path, **keys)
    assert (description.channels, description.height, description.width, description.range) == (1, 12, 16, [0, 255])
    found = all_frames(tmp_path, **keys)
    np.testing.assert_allclose(found, FRAMES[:, None].astype(np.float32), atol=1e-3)


def test_strips_are_recordings_of_square_frames(tmp_path):
    clips = [moving_frames(9, (8, 8), seed) for seed in range(5)]
    write_strips(tmp_path, clips)
    keys = {"files": "strips", "form": "strips", "channels": 1, "splits": {"by": "file"}, "stride": 100}
    starts = [
        values(data[0], data.spec) for split in ("train", "val", "test") for data in [split_of(tmp_path, split, **keys)]
    ]
    for found in starts:
        assert any(np.array_equal(found.round()[:, 0], clip[:4]) for clip in clips)
    assert len(split_of(tmp_path, **keys)) == 3


def test_sequences_are_recordings_of_their_own(tmp_path):
    clips = np.stack([moving_frames(6, seed=seed) for seed in range(10)])[:, :, None]
    write_npy(tmp_path, clips)
    data = split_of(tmp_path, files="frames.npy")
    assert len(data) == 6 * 3
    np.testing.assert_allclose(values(data[4], data.spec), clips[1, 1:5], atol=1e-3)


def test_several_variables_are_channels(tmp_path):
    import xarray

    parts = {"u": (("time", "y", "x"), FRAMES * 1.0), "v": (("time", "y", "x"), 255.0 - FRAMES)}
    xarray.Dataset(parts).to_netcdf(tmp_path / "wind.nc", engine="h5netcdf")
    data = split_of(tmp_path, files="wind.nc", variable=["u", "v"])
    assert data.spec.channels == 2
    np.testing.assert_allclose(values(data[3], data.spec).sum(1), 255, atol=1e-3)


def test_axes_that_fit_several_words_are_asked_for(tmp_path):
    write_npy(tmp_path, np.zeros((20, 8, 12, 16), np.float32))
    with pytest.raises(DataFileError, match=r"frames\.npy: array \(20, 8, 12, 16\): cannot tell what its axes are"):
        described(tmp_path, files="frames.npy")
    assert described(tmp_path, files="frames.npy", axes="tchw", range=[0, 1]).channels == 8


def test_scale_fill_value_and_calendar_of_netcdf_are_honoured(tmp_path):
    import xarray

    stored = np.where(FRAMES == 7, np.nan, FRAMES * 0.5 - 20)
    data = xarray.Dataset({"sst": (("time", "lat", "lon"), stored)}, {"time": DAYS})
    packed = {"dtype": "int16", "scale_factor": 0.5, "add_offset": -20.0, "_FillValue": -999}
    data.to_netcdf(tmp_path / "sea.nc", engine="h5netcdf", encoding={"sst": packed})
    with pytest.raises(DataFileError, match="holds NaN, expected numbers"):
        split_of(tmp_path, files="sea.nc")[0]
    samples = split_of(tmp_path, files="sea.nc", missing=True)
    found = values(samples[0], samples.spec)[:, 0]
    np.testing.assert_allclose(found, stored[:4], atol=1e-3)
