"""SEVIR: vertically integrated liquid (VIL) of storms, as weather radar sees it.

Protocol: PredBench / Earthformer, 13 -> 12 frames of 1x384x384 every 5 minutes (Veillette et al., NeurIPS 2020).
"""

from __future__ import annotations

import numpy as np

from unistd.metrics import DEFAULT_METRICS
from unistd.tasks.raster import finish, pixel_grid, random_stream
from unistd.tasks.readers.sevir import SevirReader
from unistd.tasks.spec import TaskSpec
from unistd.tasks.task import Task
from unistd.tasks.texture import sample_grid, smooth_noise

SPEC = TaskSpec(
    name="sevir",
    title="SEVIR (VIL)",
    discipline="weather",
    channels=1,
    height=384,
    width=384,
    frames_in=13,
    frames_out=12,
    patch=16,
    scale=255.0,
    offset=0.0,
    unit="8-bit VIL level",
    metrics=(*DEFAULT_METRICS, "csi", "pod", "sucr", "bias", "hss"),
    thresholds=(16, 74, 133, 160, 181, 219),
)

_TEXTURE = 128  # samples of one period of the rain's texture, which spans 1.6 frame heights
_PERIOD = 1.6


def _cells(rng: np.random.Generator, aspect: float, wind: np.ndarray, frames: int) -> tuple[np.ndarray, ...]:
    """Storm cells in squall lines: start (N, 2), radius (N,), and birth, life and strength, (N,) each."""
    starts = []
    for _ in range(rng.integers(2, 5)):
        # Of what will be overhead in the middle of the sequence, a line of cells at some angle.
        centre = rng.uniform(0, 1, 2) * (1, aspect) - wind * frames / 2
        angle = rng.uniform(0, np.pi)
        along = rng.uniform(-0.45, 0.45, (rng.integers(4, 9), 1)) * (np.sin(angle), np.cos(angle))
        starts.append(centre + along + rng.normal(0, 0.03, along.shape))
    starts = np.concatenate(starts)
    count = len(starts)
    return (
        starts,
        rng.uniform(0.04, 0.1, count),
        rng.uniform(-0.5, 0.8, count) * frames,
        rng.uniform(0.7, 1.6, count) * frames,
        rng.uniform(0.5, 1.2, count),
    )


def generate(spec: TaskSpec, seed: int, index: int) -> np.ndarray:
    """Squall lines that the wind carries along while their cells swell and fade, in rain that drifts with them.

    VIL is what of rain times texture exceeds a threshold, squeezed to the 8-bit scale; most of the map is zero.
    """
    rng = random_stream(seed, index)
    frames = spec.frames_in + spec.frames_out
    aspect = spec.width / spec.height
    time = np.arange(frames, dtype=np.float32)
    angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0.012, 0.03)
    wind = speed * np.array([np.sin(angle), np.cos(angle)], np.float32)

    starts, radius, birth, life, strength = _cells(rng, aspect, wind, frames)
    centres = starts + wind * time[:, None, None]  # (T, N, 2)
    age = (time[:, None] - birth) / life
    swell = np.clip(age * (1 - age) * 4, 0, None)  # (T, N): a parabola from birth to death
    y, x = pixel_grid(spec.height, spec.width)
    spread = radius * (0.7 + 0.5 * np.clip(age, 0, 1))
    # Gaussians are separable, so the cells of a frame are summed as a product of (H, N) and (N, W). By einsum: a BLAS
    # would start threads that fight with the training's.
    rows = np.exp(-0.5 * ((y[None] - centres[:, None, :, 0]) / spread[:, None]) ** 2) * (swell * strength)[:, None]
    columns = np.exp(-0.5 * ((x[0] - centres[..., 1, None]) / spread[..., None]) ** 2)
    storms = np.einsum("thn,tnw->thw", rows.astype(np.float32), columns.astype(np.float32))

    rain = smooth_noise(rng, (_TEXTURE, _TEXTURE), 1.6, lowest=2)
    rain = sample_grid(rain, (y[:, 0] - wind[0] * time[:, None]) / _PERIOD, (x[0] - wind[1] * time[:, None]) / _PERIOD)
    threshold = rng.uniform(0.2, 0.9) + rng.uniform(-0.015, 0.015) * time[:, None, None]
    stratiform = 0.22 * np.clip(rain - threshold, 0, None)
    vil = np.clip(storms * (0.9 + 0.35 * rain) - 0.12, 0, None) + stratiform
    return finish(np.tanh(vil)[:, None])


TASK = Task(SPEC, generate, SevirReader())
