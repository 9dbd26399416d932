"""KITTI as it is published, tiny: raw drives, renumbered ones, and PredNet's hkl files as hickle 2 writes them."""

from pathlib import Path

import h5py
import numpy as np

from support.forms.pictures import moving, save

CLIPS = 3
FRAMES = 24


def drive(number: int) -> str:
    return f"2011_09_{26 + number // 10}_drive_{number:04d}_sync"


def write_kitti_raw(root: Path, *, clips: int = CLIPS, size: tuple[int, int] = (128, 424), seed: int = 0) -> None:
    """`<root>/kitti/DATE/DATE_drive_NNNN_sync/image_02/data/NNNNNNNNNN.png`, and the grey camera beside it."""
    for number in range(clips):
        folder = root / "kitti" / drive(number)[:10] / drive(number)
        for frame, pixels in enumerate(moving(FRAMES, *size, 3, seed + number)):
            save(folder / "image_02" / "data" / f"{frame:010d}.png", pixels)
        save(folder / "image_00" / "data" / "0000000000.png", pixels[..., :1])


def write_kitti_png(root: Path, *, clips: int = CLIPS, size: tuple[int, int] = (128, 424), seed: int = 0) -> None:
    """`<root>/kitti/DATE_drive_NNNN_sync/N.png`."""
    for number in range(clips):
        for frame, pixels in enumerate(moving(FRAMES, *size, 3, seed + number)):
            save(root / "kitti" / drive(number) / f"{frame}.png", pixels)


def write_kitti_hkl(root: Path, *, clips: int = CLIPS, size: tuple[int, int] = (128, 160), seed: int = 0) -> None:
    """`<root>/kitti_hkl/X_{train,val,test}.hkl` and `sources_*.hkl`, `clips` drives each."""
    (root / "kitti_hkl").mkdir(parents=True, exist_ok=True)
    for place, split in enumerate(("train", "val", "test")):
        numbers = range(place * clips, (place + 1) * clips)
        frames = np.concatenate([moving(FRAMES, *size, 3, seed + number) for number in numbers])
        sources = [f"city-{drive(number)}".encode() for number in numbers for _ in range(FRAMES)]
        for name, content in (("X", frames), ("sources", sources)):
            with h5py.File(root / "kitti_hkl" / f"{name}_{split}.hkl", "w") as file:
                data = file.create_dataset("data_0", data=content, compression="gzip" if name == "X" else None)
                data.attrs["type"] = [b"<class 'numpy.ndarray'>" if name == "X" else b"<class 'list'>"]
