"""Traffic4cast 2021 as it is published, tiny."""

from pathlib import Path

import h5py
import numpy as np

CITY = "TESTCITY"


def day(frames: int, size: tuple[int, int], seed: int) -> np.ndarray:
    """(frames, *size, 8) uint8: noise that drifts by a cell an interval."""
    still = np.random.default_rng(seed).integers(0, 256, (*size, 8), np.uint8)
    return np.stack([np.roll(still, frame, axis=1) for frame in range(frames)])


def write_traffic4cast(
    root: Path, *, clips: int = 5, size: tuple[int, int] = (144, 128), seed: int = 0, frames: int = 24
) -> None:
    """`<root>/traffic4cast/TESTCITY/training/2019-01-02_TESTCITY_8ch.h5` and the days that follow, `clips` together."""
    folder = root / "traffic4cast" / CITY / "training"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(clips):
        with h5py.File(folder / f"2019-01-{number + 2:02d}_{CITY}_8ch.h5", "w") as file:
            content = day(frames, size, seed + number)
            file.create_dataset("array", data=content, chunks=(1, *size, 8), compression="gzip", compression_opts=9)
