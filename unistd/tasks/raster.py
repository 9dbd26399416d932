"""Drawing helpers shared by the generators.

Lengths are in units of the frame's height: y runs from 0 (top) to 1, x from 0 to width / height.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np


def random_stream(seed: int, index: int) -> np.random.Generator:
    """The random numbers of sample `index` under `seed`, independent of every other (seed, index)."""
    return np.random.default_rng((seed, index))


@lru_cache(maxsize=32)
def pixel_grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres: y (H, 1) and x (1, W), float32, read-only."""
    y = (np.arange(height, dtype=np.float32) + 0.5) / height
    x = (np.arange(width, dtype=np.float32) + 0.5) / height
    y.flags.writeable = x.flags.writeable = False
    return y[:, None], x[None, :]


def capsule(height: int, width: int, start: np.ndarray, end: np.ndarray, radius: np.ndarray | float) -> np.ndarray:
    """Anti-aliased coverage of thick lines with round ends (discs where start equals end).

    Args:
        start, end: (..., 2) as (y, x).
        radius: scalar or (...,).

    Returns:
        (..., H, W) float32 in [0, 1].
    """
    y, x = pixel_grid(height, width)
    return _capsule(y, x, height, np.asarray(start, np.float32), np.asarray(end, np.float32), radius)


def paint_capsule(
    frames: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    radius: np.ndarray | float,
    colour: np.ndarray | tuple[float, ...] | float,
    opacity: np.ndarray | float = 1.0,
) -> None:
    """Paint a moving capsule over frames (T, C, H, W), in place.

    Args:
        start, end: (T, 2) as (y, x).
        radius, opacity: scalar or (T,).
        colour: scalar or (C,).
    """
    start, end = np.asarray(start, np.float32), np.asarray(end, np.float32)
    reach = np.asarray(radius, np.float32)[..., None]
    low = (np.minimum(start, end) - reach).min(0)
    high = (np.maximum(start, end) + reach).max(0)
    window = _window(frames, low, high)
    if window is not None:
        rows, columns, y, x = window
        _blend(frames[:, :, rows, columns], _capsule(y, x, frames.shape[2], start, end, radius), colour, opacity)


def paint_box(
    frames: np.ndarray,
    top: np.ndarray,
    bottom: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    colour: np.ndarray | tuple[float, ...] | float,
    opacity: np.ndarray | float = 1.0,
) -> None:
    """Paint a moving upright rectangle with edges (T,) over frames (T, C, H, W), in place; see `paint_capsule`."""
    window = _window(frames, np.array([top.min(), left.min()]), np.array([bottom.max(), right.max()]))
    if window is not None:
        rows, columns, y, x = window
        pixels = np.float32(frames.shape[2])

        def overlap(centre: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
            low, high = low.astype(np.float32)[:, None], high.astype(np.float32)[:, None]
            inside = np.minimum(high, centre + 0.5 / pixels) - np.maximum(low, centre - 0.5 / pixels)
            return np.clip(inside * pixels, 0, 1)

        coverage = overlap(y[:, 0], top, bottom)[:, :, None] * overlap(x[0], left, right)[:, None, :]
        _blend(frames[:, :, rows, columns], coverage, colour, opacity)


def finish(frames: np.ndarray) -> np.ndarray:
    """Frames as every generator returns them: clipped to [0, 1], float32, contiguous."""
    return np.ascontiguousarray(np.clip(frames, 0, 1), dtype=np.float32)


def _capsule(
    y: np.ndarray, x: np.ndarray, pixels: int, start: np.ndarray, end: np.ndarray, radius: np.ndarray | float
) -> np.ndarray:
    along = end - start
    inverse = (1 / np.maximum((along**2).sum(-1), 1e-12))[..., None, None]
    from_y = y - start[..., 0, None, None]  # (..., H, 1)
    from_x = x - start[..., 1, None, None]  # (..., 1, W)
    along_y, along_x = along[..., 0, None, None], along[..., 1, None, None]
    position = np.clip(from_y * (along_y * inverse) + from_x * (along_x * inverse), 0, 1)
    distance = np.sqrt((from_y - position * along_y) ** 2 + (from_x - position * along_x) ** 2)
    return np.clip((np.asarray(radius, np.float32)[..., None, None] - distance) * pixels + 0.5, 0, 1)


def _window(
    frames: np.ndarray, low: np.ndarray, high: np.ndarray
) -> tuple[slice, slice, np.ndarray, np.ndarray] | None:
    """Rows, columns and pixel centres of the frames' part between low and high, (y, x) each; None: out of view."""
    height, width = frames.shape[2:]
    first = np.maximum(np.floor(low * height - 1), 0)
    last = np.minimum(np.ceil(high * height + 1), (height, width))
    if not (last > first).all():
        return None
    rows, columns = (slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
    y, x = pixel_grid(height, width)
    return rows, columns, y[rows], x[:, columns]


def _blend(
    region: np.ndarray,
    coverage: np.ndarray,
    colour: np.ndarray | tuple[float, ...] | float,
    opacity: np.ndarray | float,
) -> None:
    """Move region (T, C, h, w) towards the colour by coverage (T, h, w) times opacity, in place."""
    alpha = (coverage * np.asarray(opacity, np.float32).reshape(-1, 1, 1))[:, None]
    region += alpha * (np.asarray(colour, np.float32).reshape(-1, 1, 1) - region)
