"""Periodic noise textures and how generators look them up."""

from __future__ import annotations

import numpy as np


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], slope: float, lowest: float = 1.0) -> np.ndarray:
    """Periodic noise with the amplitude spectrum 1 / frequency**slope, zero mean, unit variance, float32.

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
    """Bilinear look-up in a texture (P, Q) that repeats itself, at v and u (any one shape) in periods of P and Q."""
    rows, columns = texture.shape
    (i0, i1, dv), (j0, j1, du) = _neighbours(v, rows), _neighbours(u, columns)
    flat = texture.ravel()
    top, bottom = i0 * columns, i1 * columns
    near = flat[top + j0] * (1 - du) + flat[top + j1] * du
    far = flat[bottom + j0] * (1 - du) + flat[bottom + j1] * du
    return near + dv * (far - near)


def sample_grid(texture: np.ndarray, v: np.ndarray, u: np.ndarray) -> np.ndarray:
    """`sample_periodic` on the grids spanned by v (T, H) and u (T, W): (T, H, W), rows first, then columns."""
    (i0, i1, dv), (j0, j1, du) = _neighbours(v, texture.shape[0]), _neighbours(u, texture.shape[1])
    dv, du = dv[..., None], du[:, None]
    rows = texture[i0] * (1 - dv) + texture[i1] * dv  # (T, H, Q)
    near, far = (np.take_along_axis(rows, j[:, None], axis=2) for j in (j0, j1))
    return near + du * (far - near)


def _neighbours(position: np.ndarray, period: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two samples beside each position (in periods), int32, and the share of the second, float32."""
    place = np.asarray(position, np.float32) * np.float32(period)
    whole = np.floor(place)
    first = whole.astype(np.int32) % period
    return first, (first + 1) % period, place - whole
