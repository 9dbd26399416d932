"""Frames that move, as the picture files of the tasks."""

from pathlib import Path

import numpy as np
from PIL import Image


def moving(count: int, height: int, width: int, channels: int, seed: int) -> np.ndarray:
    """(count, height, width, channels) uint8: smooth noise that drifts by two pixels a frame."""
    coarse = np.random.default_rng(seed).integers(0, 256, (-(-height // 4), -(-width // 4), channels), np.uint8)
    still = coarse.repeat(4, 0).repeat(4, 1)[:height, :width]
    return np.stack([np.roll(still, 2 * frame, axis=1) for frame in range(count)])


def save(path: Path, frame: np.ndarray) -> None:
    """A frame (height, width, channels) as a picture of the format that the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"quality": 95, "subsampling": 0} if path.suffix == ".jpg" else {}
    Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame).save(path, **options)
