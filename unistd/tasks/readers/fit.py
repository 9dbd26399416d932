"""Frames of a recording brought to the size of a task's spec: (n, C, h, w) -> (n, C, H, W)."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from unistd.tasks.spec import TaskSpec


def as_stored(frames: np.ndarray, spec: TaskSpec) -> np.ndarray:
    """As they are."""
    return frames


def centre_crop(frames: np.ndarray, spec: TaskSpec) -> np.ndarray:
    """The middle of larger frames; smaller ones stay as they are."""
    top, left = (max(0, (frames.shape[-2] - spec.height) // 2), max(0, (frames.shape[-1] - spec.width) // 2))
    return frames[..., top : top + spec.height, left : left + spec.width]


def resize(frames: np.ndarray, spec: TaskSpec) -> np.ndarray:
    """Scaled to the size, whatever that does to the aspect; bilinear, with the neighbourhood averaged where it shrinks.

    Integers are rounded back to their type. Pixels without a number (NaN) count for nothing; where they make up more
    than half of what is averaged, the result is NaN.
    """
    return _resized(frames, spec.height, spec.width)


def cover(frames: np.ndarray, spec: TaskSpec) -> np.ndarray:
    """Scaled by one factor until they cover the size, then the middle of that."""
    height, width = frames.shape[-2:]
    factor = max(spec.height / height, spec.width / width)
    sides = (max(spec.height, round(height * factor)), max(spec.width, round(width * factor)))
    return centre_crop(_resized(frames, *sides), spec)


def crop_and_scale(frames: np.ndarray, spec: TaskSpec) -> np.ndarray:
    """The largest middle part of the spec's aspect, scaled to its size with Lanczos' filter; of uint8 alone."""
    height, width = frames.shape[-2:]
    factor = min(height / spec.height, width / spec.width)
    sides = tuple(max(1, round(side * factor)) for side in (spec.height, spec.width))
    top, left = (height - sides[0]) // 2, (width - sides[1]) // 2
    frames = frames[..., top : top + sides[0], left : left + sides[1]]
    if sides == (spec.height, spec.width):
        return frames
    scaled = np.empty((*frames.shape[:-2], spec.height, spec.width), np.uint8)
    for place in np.ndindex(frames.shape[:-2]):  # one channel at a time: all frames as they are published take much
        picture = Image.fromarray(np.ascontiguousarray(frames[place]))
        scaled[place] = picture.resize((spec.width, spec.height), Image.Resampling.LANCZOS)
    return scaled


def _resized(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    if frames.shape[-2:] == (height, width):
        return frames
    numbers = torch.from_numpy(np.ascontiguousarray(frames).astype(np.float32, copy=False))
    smaller = height < frames.shape[-2] or width < frames.shape[-1]

    def scale(pixels: torch.Tensor) -> torch.Tensor:
        return F.interpolate(pixels, (height, width), mode="bilinear", antialias=smaller)

    missing = numbers.isnan()
    if missing.any():
        weight = scale((~missing).float())
        scaled = (scale(numbers.nan_to_num(0.0)) / weight.clamp(min=0.5)).where(weight >= 0.5, torch.nan).numpy()
    else:
        scaled = scale(numbers).numpy()
    if frames.dtype.kind in "iu":
        limits = np.iinfo(frames.dtype)
        scaled = np.clip(np.rint(scaled), limits.min, limits.max)
    return scaled.astype(frames.dtype, copy=False)
