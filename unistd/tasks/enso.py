"""ICAR-ENSO: monthly sea-surface temperature anomalies of the Pacific.

Protocol: PredBench / Earthformer, 12 -> 14 months of 1x24x48 cells of 5 degrees: 55S to 60N, 95E to 30W.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from unistd.metrics import DEFAULT_METRICS
from unistd.tasks.raster import finish, random_stream
from unistd.tasks.readers.enso import EnsoReader
from unistd.tasks.spec import TaskSpec
from unistd.tasks.task import Task
from unistd.tasks.texture import sample_periodic, smooth_noise

_COLDEST, _WARMEST = -16.549121856689453, 10.198975563049316  # degC, extremes of the data set

SPEC = TaskSpec(
    name="enso",
    title="ICAR-ENSO",
    discipline="weather",
    channels=1,
    height=24,
    width=48,
    frames_in=12,
    frames_out=14,
    patch=2,
    scale=_WARMEST - _COLDEST,
    offset=_COLDEST,
    unit="degC anomaly",
    metrics=(*DEFAULT_METRICS, "nino"),
)

_NORTH, _SOUTH, _WEST, _EAST = 60.0, -55.0, 95.0, 330.0  # of the outermost cells' centres, degrees
# Coast lines, roughly, as (longitude east, latitude).
_LAND = (
    (
        (90, 62), (90, 22), (98, 8), (104, 1), (105, 9), (109, 12), (107, 20), (121, 28), (122, 38),
        (129, 36), (135, 45), (142, 54), (160, 60), (162, 62),
    ),
    ((130, 31), (136, 34), (141, 36), (143, 43), (139, 40), (132, 35)),
    ((95, 6), (104, -6), (115, -9), (118, 4), (110, 2), (100, 3)),
    ((131, -1), (141, -3), (151, -10), (138, -8)),
    (
        (113, -22), (122, -17), (131, -11), (142, -11), (146, -19), (153, -26), (150, -37), (139, -36),
        (129, -32), (115, -35),
    ),
    ((173, -35), (178, -38), (170, -46), (167, -46)),
    (
        (195, 62), (200, 57), (222, 59), (236, 48), (236, 40), (243, 32), (250, 23), (255, 19), (264, 15),
        (277, 8), (284, 9), (276, 16), (270, 21), (263, 20), (263, 28), (278, 30), (281, 26), (280, 32),
        (285, 38), (290, 43), (300, 47), (305, 52), (297, 61),
    ),
    (
        (280, 0), (285, 11), (299, 8), (310, 0), (325, -6), (320, -22), (311, -29), (302, -38), (294, -47),
        (291, -57), (285, -50), (289, -32), (290, -18), (279, -5),
    ),
)  # fmt: skip


def _inside(longitude: np.ndarray, latitude: np.ndarray, coast: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Even-odd rule: which points (H, W) lie inside a closed coast line."""
    inside = np.zeros(longitude.shape, bool)
    for (x0, y0), (x1, y1) in zip(coast, coast[1:] + coast[:1], strict=True):
        crosses = (y0 > latitude) != (y1 > latitude)
        inside ^= crosses & (longitude < x0 + (latitude - y0) * (x1 - x0) / (y1 - y0 + 1e-12))
    return inside


@lru_cache(maxsize=8)
def _ocean(height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Longitude (1, W) and latitude (H, 1) in degrees, north on top, and sea = 1, land = 0 as (H, W)."""
    longitude = np.linspace(_WEST, _EAST, width, dtype=np.float32)[None]
    latitude = np.linspace(_NORTH, _SOUTH, height, dtype=np.float32)[:, None]
    land = np.zeros((height, width), bool)
    for coast in _LAND:
        land |= _inside(*np.broadcast_arrays(longitude, latitude), coast)
    return longitude, latitude, (~land).astype(np.float32)


def _belt(latitude: np.ndarray, centre: float, width: float) -> np.ndarray:
    return np.exp(-0.5 * ((latitude - centre) / width) ** 2)


def generate(spec: TaskSpec, seed: int, index: int) -> np.ndarray:
    """El Nino and La Nina, with the waves that carry them.

    A recharge oscillation of 26 to 54 months warms and cools the eastern equatorial Pacific, the west answers with the
    opposite sign. Kelvin waves run east along the equator, Rossby waves west at 10 degrees of latitude, both fastened
    to the oscillation's phase; farther out, smooth anomalies drift slowly. Anomalies are zero over land.
    """
    rng = random_stream(seed, index)
    month = np.arange(spec.frames_in + spec.frames_out, dtype=np.float32)[:, None, None]
    longitude, latitude, sea = _ocean(spec.height, spec.width)

    rate = 2 * np.pi / rng.uniform(26, 54)
    phase = rate * month + rng.uniform(0, 2 * np.pi)
    strength = rng.uniform(0.8, 2.8) * np.exp(rng.uniform(-0.015, 0.015) * month)
    basin = np.clip((longitude - 140) / 25, 0, 1) * np.clip((287 - longitude) / 6, 0, 1)
    tongue = np.exp(-0.5 * ((longitude - 255) / 38) ** 2) * _belt(latitude, 0, 7)
    horseshoe = np.exp(-0.5 * ((longitude - 150) / 22) ** 2) * (_belt(latitude, 14, 9) + _belt(latitude, -14, 9))
    anomaly = strength * (np.sin(phase) * (tongue - 0.3 * horseshoe))

    # Crests every 110 degrees of longitude: eastward at 1.6 times the oscillation's rate, westward at 0.9 times.
    wave = 2 * np.pi / 110
    kelvin = np.sin(phase * 1.6 - wave * (longitude - 150) + 0.8)
    rossby = np.sin(phase * 0.9 + wave * 0.8 * (longitude - 150) - 0.5)
    anomaly += 0.45 * strength * basin * kelvin * _belt(latitude, 0, 5)
    anomaly += 0.35 * strength * basin * rossby * (_belt(latitude, 10, 5) + _belt(latitude, -10, 5))

    # Weather-driven patches: a smooth periodic field that drifts east in the westerlies, west in the trades.
    patches = smooth_noise(rng, (32, 64), 1.7, lowest=2)
    drift = (0.4 + 1.8 * np.tanh((np.abs(latitude) - 25) / 10)) * rng.uniform(0.6, 1.2)  # degrees a month
    place = (longitude - drift * month) / 235
    patches = sample_periodic(patches, np.broadcast_to((60 - latitude) / 115, place.shape), place)
    anomaly += 0.8 * patches * np.clip(np.abs(latitude) / 25, 0.15, 1)
    return finish(((anomaly * sea - spec.offset) / spec.scale)[:, None])


TASK = Task(SPEC, generate, EnsoReader())
