"""The motion of Moving MNIST: things that drift in a straight line and bounce off the walls of their frame."""

from __future__ import annotations

import numpy as np

from unistd.tasks.raster import finish
from unistd.tasks.spec import TaskSpec

_STEP = 0.1  # of the free canvas, a frame
_CANVAS, _DIGIT = 64, 28  # pixels; the digit keeps this share of a canvas of any other size


def digit_size(spec: TaskSpec) -> int:
    """Pixels per side of a digit in frames of a task."""
    return max(1, round(_DIGIT / _CANVAS * min(spec.height, spec.width)))


def _bounce(rng: np.random.Generator, frames: int) -> np.ndarray:
    """Path of one digit, (frames, 2) in [0, 1] of the free canvas: a straight line, folded at the walls."""
    angle = rng.uniform(0, 2 * np.pi)
    step = _STEP * np.array([np.sin(angle), np.cos(angle)])
    path = (rng.uniform(0, 1, 2) + step * np.arange(frames)[:, None]) % 2
    return np.minimum(path, 2 - path)


def animate(spec: TaskSpec, rng: np.random.Generator, digits: list[np.ndarray]) -> np.ndarray:
    """Frames (Tin + Tout, 1, H, W) of digits (size, size) that bounce; where they overlap the brighter one is seen."""
    frames = np.zeros((spec.frames_in + spec.frames_out, 1, spec.height, spec.width), np.float32)
    for digit in digits:
        size = len(digit)
        free = np.array([spec.height - size, spec.width - size])
        for frame, (top, left) in zip(frames[:, 0], (_bounce(rng, len(frames)) * free).astype(int), strict=True):
            region = frame[top : top + size, left : left + size]
            np.maximum(region, digit, out=region)
    return finish(frames)
