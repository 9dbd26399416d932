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
GAP = 2  # transparent pixels between the frames of a strip


def frame_picture(frame: np.ndarray, spec: TaskSpec, limits: tuple[float, float] = (0.0, 1.0)) -> np.ndarray:
    """A frame (C, H, W) in [0, 1] as RGB uint8 (H, W, 3).

    Unless it has three channels, the first one is shown in false colour, which spans `limits`.
    """
    if spec.channels == 3:
        return np.rint(255 * np.clip(frame, 0, 1).transpose(1, 2, 0)).astype(np.uint8)
    low, high = limits
    return colormaps[COLORMAPS[spec.discipline]]((frame[0] - low) / max(high - low, 1e-6), bytes=True)[..., :3]


def first_channel_limits(frames: np.ndarray) -> tuple[float, float]:
    """Smallest and largest value of the first channel of frames (T, C, H, W)."""
    return float(frames[:, 0].min()), float(frames[:, 0].max())


def error_picture(error: np.ndarray, largest: float) -> np.ndarray:
    """|error| (C, H, W), averaged over channels, as RGB uint8 (H, W, 3); `largest` is the brightest colour."""
    return colormaps[ERROR_COLORMAP](np.abs(error).mean(0) / largest, bytes=True)[..., :3]


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
