"""Frames of any task as pictures."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from PIL import Image

from unistd.tasks import TaskSpec

COLORMAPS = {"traffic": "inferno", "weather": "viridis", "motion": "gray", "driving": "gray", "other": "viridis"}
ERROR_COLORMAP = "magma"
MISSING = (128, 128, 128)  # colour of what was not measured
GAP = 2  # transparent pixels between the frames of a strip


def frame_picture(frame: np.ndarray, spec: TaskSpec, limits: tuple[float, float] = (0.0, 1.0)) -> np.ndarray:
    """A frame (C, H, W) in [0, 1] as RGB uint8 (H, W, 3).

    Unless it has three channels, the first one is shown in false colour, which spans `limits`. NaN is grey.
    """
    shown = frame if spec.channels == 3 else frame[:1]
    numbers = np.nan_to_num(shown)
    if spec.channels == 3:
        picture = np.rint(255 * np.clip(numbers, 0, 1).transpose(1, 2, 0)).astype(np.uint8)
    else:
        low, high = limits
        colours = colormaps[COLORMAPS[spec.discipline]]
        picture = colours((numbers[0] - low) / max(high - low, 1e-6), bytes=True)[..., :3]
    return _grey(picture, np.isnan(shown).any(0))


def first_channel_limits(frames: np.ndarray) -> tuple[float, float]:
    """Smallest and largest value of the first channel of frames (T, C, H, W), NaN apart; (0, 1) where all are NaN."""
    first = frames[:, 0]
    if np.isnan(first).all():
        return 0.0, 1.0
    return float(np.nanmin(first)), float(np.nanmax(first))


def error_picture(error: np.ndarray, largest: float) -> np.ndarray:
    """|error| (C, H, W), averaged over channels, as RGB uint8 (H, W, 3); `largest` is the brightest, NaN grey."""
    size = np.abs(error).mean(0)
    picture = colormaps[ERROR_COLORMAP](np.nan_to_num(size) / largest, bytes=True)[..., :3]
    return _grey(picture, np.isnan(size))


def _grey(picture: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3) in which the pixels of `missing` (H, W) are grey."""
    return np.where(missing[..., None], np.uint8(MISSING), picture) if missing.any() else picture


def strip(pictures: Sequence[np.ndarray]) -> str:
    """Pictures (H, W, 3) side by side, with transparent gaps, as the data URI of a PNG."""
    height, width = pictures[0].shape[:2]
    sheet = Image.new("RGBA", (len(pictures) * (width + GAP) - GAP, height))
    for place, picture in enumerate(pictures):
        sheet.paste(Image.fromarray(picture), (place * (width + GAP), 0))
    buffer = BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def save_gif(path: Path, frames: np.ndarray, spec: TaskSpec, frames_per_second: float = 6.0) -> None:
    """Frames (T, C, H, W) in [0, 1] as an endless animation, at least 256 pixels high."""
    zoom = -(-256 // spec.height)
    limits = first_channel_limits(frames)
    pictures = [Image.fromarray(frame_picture(frame, spec, limits)) for frame in frames]
    pictures = [p.resize((p.width * zoom, p.height * zoom), Image.Resampling.NEAREST) for p in pictures]
    pictures[0].save(
        path, "GIF", save_all=True, append_images=pictures[1:], duration=round(1000 / frames_per_second), loop=0
    )
