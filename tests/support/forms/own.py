"""Tiny files of every form that a task of one's own may be of, written by the libraries that write them; all show the
same frames (see `moving_frames`)."""

import gzip
import io
from pathlib import Path

import h5py
import numpy as np
from PIL import Image


def moving_frames(frames: int = 30, size: tuple[int, int] = (12, 16), seed: int = 0) -> np.ndarray:
    """uint8 (frames, h, w): noise that moves by a pixel a frame."""
    height, width = size
    noise = np.random.default_rng(seed).integers(0, 256, (height, width + frames), np.uint8)
    return np.stack([noise[:, time : time + width] for time in range(frames)])


def write_frames(root: Path, frames: np.ndarray, names: list[str] | None = None, suffix: str = ".png") -> Path:
    """Pictures in root/frames."""
    folder = root / "frames"
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames):
        path = folder / ((f"frame_{number:04d}" if names is None else names[number]) + suffix)
        content = io.BytesIO()
        kind = {".png": "PNG", ".tif": "TIFF"}.get(suffix, "PPM")
        Image.fromarray(frame).save(content, kind)
        path.write_bytes(gzip.compress(content.getvalue()) if suffix.endswith(".gz") else content.getvalue())
    return folder


def write_strips(root: Path, clips: list[np.ndarray]) -> Path:
    """A picture a clip of square frames, in root/strips: PNG content in files that are called .jpg, RGBA."""
    folder = root / "strips"
    folder.mkdir(parents=True, exist_ok=True)
    for number, clip in enumerate(clips):
        strip = Image.fromarray(np.concatenate(list(clip), axis=1)).convert("RGBA")
        strip.save(folder / f"{number:04d}.jpg", "PNG")
    return folder


def write_npy(root: Path, array: np.ndarray, name: str = "frames.npy") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    np.save(root / name, array)
    return root / name


def write_hdf5(root: Path, array: np.ndarray, stamps: np.ndarray | None = None, name: str = "data.h5") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    with h5py.File(root / name, "w") as file:
        file["fields/rain"] = array
        if stamps is not None:
            file["date"] = stamps
    return root / name


def write_netcdf(
    root: Path, array: np.ndarray, times: np.ndarray, name: str = "sea.nc", engine: str = "h5netcdf"
) -> Path:
    """`sst` (time, lat, lon) with dates; .zarr in the name: a store."""
    import xarray

    root.mkdir(parents=True, exist_ok=True)
    data = xarray.Dataset({"sst": (("time", "lat", "lon"), array)}, {"time": times})
    if name.endswith(".zarr"):
        data.to_zarr(root / name, consolidated=False)
    else:
        data.to_netcdf(root / name, engine=engine)
    return root / name


def write_video(root: Path, frames: np.ndarray, name: str = "clip.avi", codec: str = "ffv1") -> Path:
    """Without loss; width and height are even."""
    import av

    root.mkdir(parents=True, exist_ok=True)
    with av.open(str(root / name), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:], "gray" if codec == "ffv1" else "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")))
        container.mux(stream.encode())
    return root / name
