"""TaxiBJ: in- and outflow of taxis over a city grid, every half hour.

Protocol: PredBench, 4 -> 4 frames of 2x32x32. Data: DeepST (Zhang et al., AAAI 2017), read by `unistd.tasks.deepst`,
and windows of them, read by `unistd.tasks.readers.taxibj`.
"""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np

from unistd.tasks.deepst import DeepSTReader
from unistd.tasks.raster import finish, pixel_grid, random_stream
from unistd.tasks.readers import taxibj
from unistd.tasks.readers.forms import Forms
from unistd.tasks.spec import TaskSpec
from unistd.tasks.task import Task
from unistd.tasks.texture import smooth_noise

SPEC = TaskSpec(
    name="taxibj",
    title="TaxiBJ",
    discipline="traffic",
    channels=2,
    height=32,
    width=32,
    frames_in=4,
    frames_out=4,
    patch=2,
    scale=1250.0,
    offset=0.0,
    unit="trips per 30 min",
)

_SLOTS_A_DAY = 48
_STEPS_AN_HOUR = 20  # of the tables of the daily rhythm
_CITY_SEED = 20_131
# Rhythm of the kinds of place: (hour, width in hours, strength) of the peaks of outflow on workdays and on days off.
_PEAKS = {
    "home": (((7.8, 1.2, 1.0), (13.5, 2.5, 0.35)), ((10.8, 2.4, 0.55), (15.5, 2.5, 0.45))),
    "work": (((18.0, 1.4, 1.0), (12.3, 1.3, 0.45)), ((17.0, 2.5, 0.2),)),
    "leisure": (((22.3, 1.5, 0.7), (14.0, 2.2, 0.25)), ((23.2, 1.6, 1.0), (16.5, 2.6, 0.6))),
    "ring": (((8.3, 1.6, 0.7), (17.8, 2.0, 0.75), (13.0, 4.0, 0.4)), ((14.5, 5.0, 0.6),)),
}
# Those who leave one kind of place arrive, a little later, at another.
_ARRIVE_FROM = {"home": "work", "work": "home", "leisure": "home", "ring": "ring"}
_TRAVEL_HOURS = 0.6


@lru_cache(maxsize=8)
def _city(height: int, width: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Density of each kind of place (H, W), and hours of travel to the centre (H, W). One city for all."""
    rng = np.random.default_rng(_CITY_SEED)
    y, x = pixel_grid(height, width)
    x = x * (height / width)
    distance = np.hypot(y - 0.5, x - 0.5)

    def hubs(count: int, spread: float, size: float) -> np.ndarray:
        field = np.zeros((height, width), np.float32)
        for _ in range(count):
            cy, cx = 0.5 + rng.uniform(-spread, spread, 2)
            field += rng.uniform(0.5, 1.0) * np.exp(
                -((y - cy) ** 2 + (x - cx) ** 2) / (2 * (size * rng.uniform(0.6, 1.4)) ** 2)
            )
        return field / field.max()

    def ring(radius: float) -> np.ndarray:
        rounded = (np.abs(y - 0.5) ** 4 + np.abs(0.9 * (x - 0.5)) ** 4) ** 0.25
        return np.exp(-(((rounded - radius) / 0.025) ** 2)) * busy

    busy = np.clip(
        0.75 + 0.3 * smooth_noise(rng, (height, width), 1.0), 0.2, 1
    )  # ring roads are fuller here than there
    avenue = np.exp(-(((y - 0.52) / 0.03) ** 2)) * (np.abs(x - 0.5) < 0.42)
    places = {
        "home": hubs(26, 0.4, 0.06),
        "work": hubs(9, 0.2, 0.07),
        "leisure": hubs(6, 0.26, 0.05),
        "ring": np.clip(ring(0.16) + 0.8 * ring(0.28) + 0.5 * ring(0.42) + 0.7 * avenue, 0, 1),
    }
    return {kind: field.astype(np.float32) for kind, field in places.items()}, (2.4 * distance).astype(np.float32)


@cache
def _rhythm(kind: str, day_off: bool) -> np.ndarray:
    """Outflow of a kind of place over the day, relative to its density: (24 * _STEPS_AN_HOUR,), from midnight."""
    hour = np.arange(24 * _STEPS_AN_HOUR) / _STEPS_AN_HOUR
    level = np.full(len(hour), 0.04)
    for centre, width, strength in _PEAKS[kind][int(day_off)]:
        away = (hour - centre + 12) % 24 - 12
        level += strength * np.exp(-0.5 * (away / width) ** 2)
    return level.astype(np.float32)


def _activity(kind: str, day_off: bool, hour: np.ndarray) -> np.ndarray:
    """The rhythm at hours of any shape."""
    return _rhythm(kind, day_off)[np.rint(hour * _STEPS_AN_HOUR).astype(np.int32) % (24 * _STEPS_AN_HOUR)]


def generate(spec: TaskSpec, seed: int, index: int) -> np.ndarray:
    """A few hours of some day of the week in a city of homes, offices, night life and ring roads.

    The city is always the same; the hour, the weekday, the weather (a level per kind of place, with a slow trend) and
    an event that swells and ebbs somewhere are the sample's. Counts have Poisson noise.
    """
    rng = random_stream(seed, index)
    frames = spec.frames_in + spec.frames_out
    places, lag = _city(spec.height, spec.width)
    start, day = rng.integers(_SLOTS_A_DAY), rng.integers(7)
    slots = start + np.arange(frames)
    hour = (slots * (24 / _SLOTS_A_DAY)).astype(np.float32)[:, None, None]
    day_off = day >= 5

    outflow = np.zeros((frames, spec.height, spec.width), np.float32)
    inflow = np.zeros_like(outflow)
    trend = (1 + rng.uniform(-0.04, 0.04) * np.arange(frames, dtype=np.float32))[:, None, None]
    for kind, density in places.items():
        level = np.float32(rng.uniform(0.45, 0.85)) * density * trend
        # Who lives further out leaves earlier and is home later, so departures run inwards and arrivals outwards.
        outflow += level * _activity(kind, day_off, hour + lag)
        inflow += level * _activity(_ARRIVE_FROM[kind], day_off, hour - _TRAVEL_HOURS - lag)

    y, x = pixel_grid(spec.height, spec.width)
    cy, cx = rng.uniform(0.25, 0.75), rng.uniform(0.25, 0.75) * spec.width / spec.height
    near = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * 0.07**2))
    swell = 0.5 * np.exp(-0.5 * ((np.arange(frames) - rng.uniform(-2, frames + 2)) / 2.5) ** 2)
    inflow += swell[:, None, None] * near
    outflow += np.roll(swell, 2)[:, None, None] * near

    flow = np.stack([inflow, outflow], axis=1) * (1 + 0.05 * smooth_noise(rng, (spec.height, spec.width), 0.5))
    counts = np.maximum(flow, 0) * spec.scale
    counts += np.sqrt(counts) * rng.standard_normal(counts.shape, np.float32)  # Poisson, counts are large
    return finish(counts / spec.scale)


TASK = Task(SPEC, generate, Forms(DeepSTReader(), taxibj.ARRAYS, taxibj.ARCHIVE))
