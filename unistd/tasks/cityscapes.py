"""Cityscapes: driving through a street canyon of houses, with parked and moving cars.

Protocol: PredBench / MCVD, 10 -> 10 frames of 3x128x128, centre crops at 17 frames a second (Cordts et al., CVPR 2016).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unistd.tasks.raster import finish, paint_box, pixel_grid, random_stream
from unistd.tasks.readers import cityscapes
from unistd.tasks.readers.forms import Forms
from unistd.tasks.spec import TaskSpec
from unistd.tasks.task import Task

SPEC = TaskSpec(
    name="cityscapes",
    title="Cityscapes",
    discipline="driving",
    channels=3,
    height=128,
    width=128,
    frames_in=10,
    frames_out=10,
    patch=8,
    scale=255.0,
    offset=0.0,
    unit="8-bit level",
)

_FRAME_SECONDS = 1 / 17
_FOCAL, _HORIZON, _EYE = 1.0, 0.42, 1.4  # focal length and horizon in frame heights, the camera's height in metres
_HOUSE = 14.0  # metres of street a house takes
_HOUSES = 64  # houses before the street repeats itself
_BAY, _STOREY = 3.5, 3.3  # metres between windows
_FACADES = np.array(
    [
        [0.62, 0.52, 0.42],
        [0.7, 0.66, 0.58],
        [0.5, 0.32, 0.26],
        [0.55, 0.56, 0.58],
        [0.74, 0.62, 0.44],
        [0.4, 0.38, 0.36],
    ]
)
_CARS = np.array([[0.12, 0.12, 0.14], [0.7, 0.72, 0.75], [0.55, 0.1, 0.1], [0.12, 0.2, 0.42], [0.88, 0.88, 0.86]])


def _stripes(position: np.ndarray, period: float, share: float, footprint: np.ndarray) -> np.ndarray:
    """Mean over a pixel's footprint of a pattern that is 1 for a share of each period, 0 for the rest."""
    step = np.minimum(footprint / np.float32(period), 1)
    start = position * np.float32(1 / period) - step / 2
    stop = start + step
    whole_start, whole_stop = np.floor(start), np.floor(stop)
    covered = (whole_stop - whole_start) * share
    covered += np.minimum(stop - whole_stop, share) - np.minimum(start - whole_start, share)
    return covered / step


@dataclass(frozen=True)
class _Surface:
    """What P pixels see: a point of a surface each, in metres; all (P,), float32 but for the flag."""

    pixels: np.ndarray  # flat pixel index
    depth: np.ndarray  # ahead of the camera
    across: np.ndarray  # right of the camera
    up: np.ndarray  # above the road
    size: np.ndarray  # what a pixel covers, crosswise
    length: np.ndarray  # what a pixel covers along the street, which it meets at a slant
    right_hand: np.ndarray


def _look(spec: TaskSpec, left: float, right: float) -> tuple[_Surface, _Surface]:
    """Road and house fronts of a straight street as the pixels see them; fronts are `left` and `right` metres away."""
    y, x = pixel_grid(spec.height, spec.width)
    down = ((y - _HORIZON) / _FOCAL + 0 * x).ravel()
    aside = ((x - 0.5 * spec.width / spec.height) / _FOCAL + 0 * y).ravel()
    distance = np.where(aside < 0, left, right).astype(np.float32)
    to_road = np.where(down > 1e-4, _EYE / np.maximum(down, 1e-4), 1e4)
    to_house = distance / np.maximum(np.abs(aside), 1e-4)

    def surface(pixels: np.ndarray, depth: np.ndarray, slant: np.ndarray | float) -> _Surface:
        depth = np.minimum(depth[pixels], 400).astype(np.float32)
        size = depth / np.float32(_FOCAL * spec.height)
        side = aside[pixels]
        return _Surface(
            pixels, depth, side * depth, np.float32(_EYE) - down[pixels] * depth, size, size * depth / slant, side > 0
        )

    road, house = np.flatnonzero(to_road < to_house), np.flatnonzero(to_road >= to_house)
    return surface(road, to_road, _EYE), surface(house, to_house, distance[house])


def _houses(seen: _Surface, along: np.ndarray, facades: np.ndarray, roofs: np.ndarray, sky: np.ndarray) -> np.ndarray:
    """Colour (3, T, P) of house fronts with windows, and of the sky (3, P) above the roofs.

    Args:
        along: (T, P), metres of street.
        facades, roofs: colour (3, 2 sides, houses) and height (2 sides, houses) of the houses.
    """
    number = np.floor(along * np.float32(1 / _HOUSE)).astype(np.int32) % _HOUSES + _HOUSES * seen.right_hand
    window = _stripes(along, _BAY, 0.45, seen.length) * _stripes(seen.up + np.float32(0.6), _STOREY, 0.5, seen.size)
    ground_floor = np.clip((3.2 - seen.up) / seen.size, 0, 1)
    haze = np.clip(seen.depth / 220, 0, 0.7)
    shade = (1 - 0.6 * window) * ((1 - 0.3 * ground_floor) * np.where(seen.right_hand, 1.0, 0.8) * (1 - haze))
    over = np.clip((seen.up - roofs.ravel()[number]) / seen.size + 0.5, 0, 1)
    houses = facades.reshape(3, -1)[:, number] * shade + 0.75 * haze
    return houses + over * (sky[:, None] - houses)


def _road(seen: _Surface, along: np.ndarray, lane: float, width: float) -> np.ndarray:
    """Grey level (T, P) of asphalt, dashed lane marks and pavement slabs; along (T, P), metres of street."""

    def reach(half: float) -> np.ndarray:
        return np.clip((half - np.abs(seen.across - lane)) / seen.size + 0.5, 0, 1)

    mark = 0.5 * reach(0.14) * np.minimum(1, 0.28 / seen.size)
    asphalt = 0.32 + 0.03 * _stripes(along, 5.0, 0.5, seen.length) + mark * _stripes(along, 6.0, 0.5, seen.length)
    slabs = 0.5 + 0.12 * _stripes(along, 2.5, 0.5, seen.length)
    return slabs + reach(width) * (asphalt - slabs)


def _car(frames: np.ndarray, depth: np.ndarray, across: float, colour: np.ndarray) -> None:
    """Paint a car, seen from behind, at depths (T,) in metres; one that is passed is gone."""
    shown = depth > 2.5
    first, last = np.flatnonzero(shown)[[0, -1]]
    frames, depth, shown = frames[first : last + 1], depth[first : last + 1], shown[first : last + 1]
    scale = _FOCAL / np.maximum(depth, 2.5)
    middle = 0.5 * frames.shape[3] / frames.shape[2] + scale * across
    floor = _HORIZON + scale * _EYE

    def part(
        bottom: float, top: float, left: float, right: float, tone: np.ndarray | tuple[float, ...] | float
    ) -> None:
        edges = (floor - scale * top, floor - scale * bottom, middle + scale * left, middle + scale * right)
        paint_box(frames, *edges, tone, shown)

    part(-0.12, 0.25, -0.95, 0.95, 0.1)  # shadow and wheels
    part(0.25, 0.95, -0.9, 0.9, colour)
    part(0.9, 1.5, -0.72, 0.72, 0.6 * colour)
    part(1.0, 1.4, -0.62, 0.62, (0.2, 0.24, 0.28))  # rear window
    for side in (-0.75, 0.75):
        part(0.62, 0.8, side - 0.13, side + 0.13, (0.75, 0.1, 0.08))  # lights


def generate(spec: TaskSpec, seed: int, index: int) -> np.ndarray:
    """A drive at steady speed along a straight street; each pixel's ray meets road, house front or sky.

    Width of the street, speed, colours and heights of the houses, parked cars and one car ahead are the sample's.
    """
    rng = random_stream(seed, index)
    frames = spec.frames_in + spec.frames_out
    left, right = rng.uniform(6.5, 9.0), rng.uniform(5.0, 7.5)
    speed = rng.uniform(7.0, 13.0)  # metres a second
    driven = speed * _FRAME_SECONDS * np.arange(frames, dtype=np.float32)
    place = (driven + np.float32(rng.uniform(0, _HOUSE * _HOUSES)))[:, None]
    road, house = _look(spec, left, right)

    facades = _FACADES[rng.integers(len(_FACADES), size=(2, _HOUSES))] * rng.uniform(0.8, 1.15, (2, _HOUSES, 1))
    roofs = rng.uniform(7, 20, (2, _HOUSES)).astype(np.float32)
    y, x = pixel_grid(spec.height, spec.width)
    sky = (np.array([0.62, 0.72, 0.85])[:, None, None] + 0.35 * y + 0 * x) * rng.uniform(0.85, 1.05)
    sky = sky.astype(np.float32).reshape(3, -1)[:, house.pixels]
    facades = np.moveaxis(facades, -1, 0).astype(np.float32)

    canvas = np.empty((frames, 3, spec.height * spec.width), np.float32)
    canvas[:, :, house.pixels] = _houses(house, house.depth + place, facades, roofs, sky).transpose(1, 0, 2)
    canvas[:, :, road.pixels] = _road(road, road.depth + place, lane=-1.6, width=4.6)[:, None]
    result = canvas.reshape(frames, 3, spec.height, spec.width)

    cars = []  # (depth (T,), across, colour)
    for side, place in ((1, 2.2), (-1, -5.4)):
        for depth in np.arange(rng.uniform(4, 12), 50, rng.uniform(9, 18)):
            cars.append((depth + rng.uniform(-1.5, 1.5) - driven, place + 0.2 * side, _CARS[rng.integers(len(_CARS))]))
    ahead = rng.uniform(9, 24) + rng.uniform(-4.0, 4.0) * _FRAME_SECONDS * np.arange(frames)
    cars.append((ahead, 0.0, _CARS[rng.integers(len(_CARS))]))
    oncoming = rng.uniform(10, 60) - driven - rng.uniform(7, 12) * _FRAME_SECONDS * np.arange(frames)
    cars.append((oncoming, -3.0, _CARS[rng.integers(len(_CARS))]))
    for depth, across, colour in sorted(cars, key=lambda car: -car[0][0]):
        if depth.max() > 2.5:
            _car(result, depth, across, colour)
    paint_box(result, *np.array([[0.94], [1.0], [0.0], [spec.width / spec.height]]), (0.1, 0.1, 0.12))  # own bonnet
    return finish(result)


TASK = Task(SPEC, generate, Forms(cityscapes.SHARDS, cityscapes.PICTURES))
