"""TaxiBJ, tiny: DeepST's records, OpenSTL's archive and PredBench's arrays, all of one stream of counts."""

from pathlib import Path

import h5py
import numpy as np

CLIPS = {"train": 40, "test": 8}
FRAMES = 8
SCALE = 1250


def stream(count: int, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """(count, 2, *size) float32: whole counts that swell and ebb over the day."""
    rng = np.random.default_rng(seed)
    level = 300 + 250 * np.sin(2 * np.pi * np.arange(count) / 48)
    return rng.poisson(level[:, None, None, None] * rng.uniform(0.2, 1, (2, *size)), (count, 2, *size)).astype("f4")


def windows(
    clips: dict[str, int], size: tuple[int, int], seed: int = 0, gap: int = FRAMES - 1
) -> dict[str, np.ndarray]:
    """Split -> (n, 8, 2, *size): windows half an hour apart; splits follow one another, `gap` windows lie between."""
    counts, first, found = stream(sum(clips.values()) + gap * len(clips) + FRAMES, size, seed), 0, {}
    for split, number in clips.items():
        found[split] = np.stack([counts[start : start + FRAMES] for start in range(first, first + number)])
        first += number + gap
    return found


def write_taxibj_h5(root: Path, *, clips: int = 90, size: tuple[int, int] = (32, 32), seed: int = 0) -> None:
    """`<root>/taxibj/BJ16_MHxW_T30_InOut.h5`, `clips` half hours from 2015-11-01 on."""
    (root / "taxibj").mkdir(parents=True, exist_ok=True)
    with h5py.File(root / "taxibj" / f"BJ16_M{size[0]}x{size[1]}_T30_InOut.h5", "w") as file:
        file["data"] = stream(clips, size, seed).astype(np.float64)
        file["date"] = np.array([f"201511{1 + n // 48:02d}{n % 48 + 1:02d}" for n in range(clips)], "S10")


def write_taxibj_npz(
    root: Path, *, clips: dict[str, int] = CLIPS, size: tuple[int, int] = (32, 32), seed: int = 0, packed: bool = False
) -> None:
    """`<root>/taxibj/dataset.npz`."""
    (root / "taxibj").mkdir(parents=True, exist_ok=True)
    arrays = {}
    for split, cut in windows(clips, size, seed).items():
        scaled = (cut / (SCALE / 2) - 1).astype(np.float32)
        arrays[f"X_{split}"], arrays[f"Y_{split}"] = scaled[:, :4], scaled[:, 4:]
    (np.savez_compressed if packed else np.savez)(root / "taxibj" / "dataset.npz", **arrays)


def write_taxibj_npy(
    root: Path, *, clips: dict[str, int] = CLIPS, size: tuple[int, int] = (32, 32), seed: int = 0
) -> None:
    """`<root>/taxibj/{train,val,test}.npy`, those of `clips`."""
    (root / "taxibj").mkdir(parents=True, exist_ok=True)
    for split, cut in windows(clips, size, seed).items():
        np.save(root / "taxibj" / f"{split}.npy", cut)
