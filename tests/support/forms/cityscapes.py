"""Cityscapes, tiny: the published tree of pictures, and the HDF5 shards that MCVD writes."""

from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from support.forms.pictures import moving, save

CLIPS = {"train": 3, "val": 1, "test": 2}
CITIES = {"train": "aachen", "val": "lindau", "test": "bonn"}
FRAMES = 30
SIZE = (64, 128)


def video(split: str, number: int, size: tuple[int, int] = SIZE, seed: int = 0) -> np.ndarray:
    """(30, *size, 3) uint8: video `number` of a split."""
    return moving(FRAMES, *size, 3, seed + 100 * list(CITIES).index(split) + number)


def square(frames: np.ndarray, side: int) -> np.ndarray:
    """(n, h, w, 3) as MCVD converts frames: their middle, as wide as high, scaled with Lanczos' filter."""
    height, width = frames.shape[1:3]
    left = (width - height) // 2
    middle = frames[:, :, left : left + height]
    return np.stack([np.asarray(Image.fromarray(frame).resize((side, side), Image.LANCZOS)) for frame in middle])


def write_cityscapes_png(
    root: Path, *, clips: dict[str, int] = CLIPS, size: tuple[int, int] = SIZE, seed: int = 0
) -> None:
    """`<root>/leftImg8bit_sequence/SPLIT/CITY/CITY_SSSSSS_FFFFFF_leftImg8bit.png`, one city a split."""
    for split, count in clips.items():
        city = CITIES[split]
        folder = root / "leftImg8bit_sequence" / split / city
        for number in range(count):
            for frame, pixels in enumerate(video(split, number, size, seed)):
                save(folder / f"{city}_{number:06d}_{frame:06d}_leftImg8bit.png", pixels)


def write_cityscapes_h5(
    root: Path, *, clips: dict[str, int] = CLIPS, size: tuple[int, int] = SIZE, seed: int = 0, side: int = 32
) -> None:
    """`<root>/Cityscapes128_h5/SPLIT/shard_NNNN.hdf5`: two videos a shard, of frames `side` x `side`."""
    for split, count in clips.items():
        videos = [square(video(split, number, size, seed), side) for number in range(count)]
        for shard, first in enumerate(range(0, count, 2), 1):
            path = root / "Cityscapes128_h5" / split / f"shard_{shard:04d}.hdf5"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_shard(path, videos[first : first + 2])


def write_shard(path: Path, videos: list[np.ndarray]) -> None:
    """Videos (n, h, w, 3) as a shard."""
    with h5py.File(path, "w") as file:
        file.create_group("len")
        file.create_group("videos")
        for number, frames in enumerate(videos):
            file["len"].create_dataset(str(number), data=len(frames))
            group = file.create_group(str(number))
            for place, frame in enumerate(frames):
                group.create_dataset(str(place), data=frame, dtype="uint8", compression="lzf")
