"""Small drawing and texture helpers shared by the generators.

Lengths are in units of the frame's height: y runs from 0 (top) to 1, x from 0 to width / height.
"""

from __future__ import annotations

import numpy as np


def random_stream(seed: int, index: int) -> np.random.Generator:
    """The random numbers of sample `index` under `seed`, independent of every other (seed, index)."""
    return np.random.default_rng((seed, index))


def pixel_grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres: y (H, 1) and x (1, W), float32."""
    y = (np.arange(height, dtype=np.float32) + 0.5) / height
    x = (np.arange(width, dtype=np.float32) + 0.5) / height
    return y[:, None], x[None, :]


def capsule(height: int, width: int, start: np.ndarray, end: np.ndarray, radius: np.ndarray | float) -> np.ndarray:
    """Anti-aliased coverage of a thick line with round ends (a disc where start equals end).

    Args:
        start, end: (..., 2) as (y, x).
        radius: scalar or (...,).

    Returns:
        (..., H, W) float32 in [0, 1].
    """
    y, x = pixel_grid(height, width)
    start, end = np.asarray(start, np.float32), np.asarray(end, np.float32)
    along = end - start
    inverse = 1 / np.maximum((along**2).sum(-1), 1e-12)
    from_y = y - start[..., 0, None, None]  # (..., H, 1)
    from_x = x - start[..., 1, None, None]  # (..., 1, W)
    along_y, along_x = along[..., 0, None, None], along[..., 1, None, None]
    inverse = inverse[..., None, None]
    position = np.clip(from_y * (along_y * inverse) + from_x * (along_x * inverse), 0, 1)
    distance = np.hypot(from_y - position * along_y, from_x - position * along_x)
    radius = np.asarray(radius, np.float32)[..., None, None]
    return np.clip((radius - distance) * height + 0.5, 0, 1)


def box(
    height: int, width: int, top: np.ndarray, bottom: np.ndarray, left: np.ndarray, right: np.ndarray
) -> np.ndarray:
    """Anti-aliased coverage of upright rectangles; edges (...,) -> (..., H, W) float32."""
    y, x = pixel_grid(height, width)

    def overlap(centre: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        low, high = (np.asarray(edge, np.float32)[..., None] for edge in (low, high))
        inside = np.minimum(high, centre + 0.5 / height) - np.maximum(low, centre - 0.5 / height)
        return np.clip(inside * height, 0, 1)

    return overlap(y[:, 0], top, bottom)[..., :, None] * overlap(x[0], left, right)[..., None, :]


def paint(frames: np.ndarray, coverage: np.ndarray, colour: np.ndarray | float) -> None:
    """Paint `colour` (C,) over frames (T, C, H, W), in place, where coverage (T, H, W) is 1 (and in part where less)."""
    alpha = coverage[:, None]
    frames += alpha * (np.asarray(colour, np.float32).reshape(-1, 1, 1) - frames)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], slope: float, lowest: float = 1.0) -> np.ndarray:
    """Periodic noise with the spectrum 1 / frequency**slope (amplitude), zero mean, unit variance, float32.

    Args:
        shape: of the result; every axis is periodic.
        lowest: frequencies below this many cycles per period are left out.
    """
    axes = [np.fft.fftfreq(n, 1 / n) for n in shape[:-1]] + [np.fft.rfftfreq(shape[-1], 1 / shape[-1])]
    frequency = np.sqrt(sum(a**2 for a in np.meshgrid(*axes, indexing="ij", sparse=True)))
    weight = np.where(frequency >= lowest, np.maximum(frequency, 1e-9) ** -slope, 0.0)
    field = np.fft.irfftn(np.fft.rfftn(rng.standard_normal(shape)) * weight, s=shape, axes=range(len(shape)))
    return (field / field.std()).astype(np.float32)


def sample_periodic(texture: np.ndarray, v: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Bilinear look-up in a texture (..., P, Q) that repeats itself; v and u are in periods of P and Q, any one shape.

    Returns:
        (..., *v.shape) of the texture's dtype.
    """
    rows, columns = texture.shape[-2:]
    v, u = np.broadcast_arrays(v, u)
    v, u = v * np.float32(rows), u * np.float32(columns)
    v0, u0 = np.floor(v), np.floor(u)
    dv, du = (v - v0).astype(texture.dtype), (u - u0).astype(texture.dtype)
    i0, j0 = v0.astype(np.int32) % rows, u0.astype(np.int32) % columns
    i1, j1 = (i0 + 1) % rows, (j0 + 1) % columns
    top = texture[..., i0, j0] * (1 - du) + texture[..., i0, j1] * du
    bottom = texture[..., i1, j0] * (1 - du) + texture[..., i1, j1] * du
    return top * (1 - dv) + bottom * dv


def finish(frames: np.ndarray) -> np.ndarray:
    """Frames as every generator returns them: clipped to [0, 1], float32, contiguous."""
    return np.ascontiguousarray(np.clip(frames, 0, 1), dtype=np.float32)
