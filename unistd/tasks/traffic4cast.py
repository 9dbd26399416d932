"""Traffic4cast 2021: volume and speed of a city's traffic in four headings, every five minutes.

Protocol: PredBench, 9 -> 3 frames of 8x128x112; channels volume, speed for NE, NW, SE, SW in turn (even = volume).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from unistd.tasks.raster import capsule, finish, pixel_grid, random_stream
from unistd.tasks.readers.traffic4cast import READER
from unistd.tasks.spec import TaskSpec
from unistd.tasks.task import Task
from unistd.tasks.texture import smooth_noise

SPEC = TaskSpec(
    name="traffic4cast",
    title="Traffic4cast 2021",
    discipline="traffic",
    channels=8,
    height=128,
    width=112,
    frames_in=9,
    frames_out=3,
    patch=8,
    scale=255.0,
    offset=0.0,
    unit="8-bit level",
)

_CITY_SEED = 2_021
_JAM_SPEED = 0.03  # frame heights a step: a jam's wave runs upstream, against the traffic
_TABLE = 96  # density samples along one frame height of road


@dataclass(frozen=True)
class _Network:
    """Every (pixel, lane) of the road map: a lane is a road taken in one direction."""

    channel: np.ndarray  # (P,) heading 0..3 of the lane
    pixel: np.ndarray  # (P,) flat pixel index
    lane: np.ndarray  # (P,)
    position: np.ndarray  # (P,) distance along the lane, in frame heights
    coverage: np.ndarray  # (P,) how much of the pixel is road, times the road's importance
    free_speed: np.ndarray  # (lanes,)
    lanes: int


@lru_cache(maxsize=8)
def _network(height: int, width: int) -> _Network:
    """The road map of the one city: two families of arterials, two motorways."""
    rng = np.random.default_rng(_CITY_SEED)
    y, x = pixel_grid(height, width)
    aspect = width / height
    centre = np.array([0.5, 0.5 * aspect])
    roads = []  # (angle, point on it, half width, importance, free speed)
    for family, count in ((0.42, 6), (0.42 + np.pi / 2 + 0.12, 6)):
        normal = np.array([np.cos(family), -np.sin(family)])
        for shift in np.linspace(-0.52, 0.52, count) + rng.uniform(-0.03, 0.03, count):
            roads.append(
                (family + rng.uniform(-0.14, 0.14), centre + shift * normal, 0.008, rng.uniform(0.45, 0.7), 0.5)
            )
    roads.append((-0.75, np.array([0.35, 0.45]), 0.016, 1.0, 0.9))
    roads.append((1.2, np.array([0.6, 0.3]), 0.016, 0.95, 0.85))

    layers: dict[tuple[int, int], tuple[float, int, float]] = {}
    free_speed = []
    for angle, point, half_width, importance, speed in roads:
        ahead = np.array([np.sin(angle), np.cos(angle)])  # (y, x)
        coverage = (
            capsule(height, width, point - 3 * ahead, point + 3 * ahead, max(half_width, 0.4 / height)) * importance
        )
        along = (y - point[0]) * ahead[0] + (x - point[1]) * ahead[1] + 3.0
        for direction in (ahead, -ahead):
            heading = 2 * int(direction[0] > 0) + int(direction[1] < 0)  # NE, NW, SE, SW; y points down
            position = along if direction is ahead else -along
            for pixel in np.flatnonzero(coverage > 0.05):
                key, cover = (heading, int(pixel)), float(coverage.flat[pixel])
                # Where two lanes of one heading cross, the larger one is seen.
                if key not in layers or cover > layers[key][0]:
                    layers[key] = (cover, len(free_speed), float(position.flat[pixel]))
            free_speed.append(speed)
    channel, pixel = np.array(list(layers)).T
    coverage, lane, position = (np.array(column) for column in zip(*layers.values(), strict=True))
    return _Network(
        channel, pixel, lane, position.astype(np.float32), coverage.astype(np.float32),
        np.array(free_speed, np.float32), len(free_speed),
    )  # fmt: skip


def generate(spec: TaskSpec, seed: int, index: int) -> np.ndarray:
    """Jams that form, run upstream and dissolve on a road network; pixels off the roads are zero.

    Density along each lane is a moving wave rho(s + c t) whose swing grows or decays; volume follows the fundamental
    diagram (rising, then falling in a jam) and speed falls with density. Channels are volume, speed for each heading.
    """
    rng = random_stream(seed, index)
    frames = spec.frames_in + spec.frames_out
    net = _network(spec.height, spec.width)
    periods = 8  # of the table, in frame heights: longer than any road on the map
    waves = smooth_noise(rng, (periods * _TABLE,), 0.35, lowest=8)
    smooth = np.exp(-0.5 * (np.fft.rfftfreq(waves.size, 1 / _TABLE) / 3.5) ** 2)  # cycles per frame height
    waves = np.fft.irfft(np.fft.rfft(waves) * smooth, waves.size)
    waves = (waves / waves.std()).astype(np.float32)

    time = np.arange(frames, dtype=np.float32)
    offset = rng.uniform(0, periods, net.lanes).astype(np.float32)
    busy = rng.uniform(0.3, 0.6) + rng.uniform(-0.08, 0.08, net.lanes).astype(np.float32)
    since = time[:, None] - frames / 2
    busy = busy + rng.uniform(-0.012, 0.012) * since  # (T, lanes)
    swing = 0.22 * np.exp(rng.uniform(-0.05, 0.05, net.lanes) * since)

    place = net.position + offset[net.lane] + _JAM_SPEED * time[:, None]  # (T, P)
    table = place * _TABLE
    low = np.floor(table).astype(np.int32)
    part = table - low
    wave = waves[low % waves.size] * (1 - part) + waves[(low + 1) % waves.size] * part
    density = np.clip(busy[:, net.lane] + swing[:, net.lane] * wave, 0.02, 1)

    speed = net.free_speed[net.lane] / (1 + np.exp(14 * (density - 0.55)))
    volume = np.where(density < 0.55, density / 0.55, 1 - 1.4 * (density - 0.55)) * net.coverage
    result = np.zeros((frames, 4, 2, spec.height * spec.width), np.float32)
    result[:, net.channel, 0, net.pixel] = volume
    result[:, net.channel, 1, net.pixel] = speed * np.minimum(1, net.coverage * 2)
    return finish(result.reshape(frames, 8, spec.height, spec.width))


TASK = Task(SPEC, generate, READER)
