"""Cityscapes: driving through a street canyon of houses, with parked and moving cars.

Protocol: PredBench / MCVD, 10 -> 10 frames of 3x128x128, centre crops at 17 frames a second (Cordts et al., CVPR 2016).
"""

from __future__ import annotations

import numpy as np

from unistd.tasks.raster import box, capsule, finish, paint, pixel_grid, random_stream
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
    step = np.minimum(footprint / period, 1).astype(np.float32)
    start = position / period - step / 2

    def integral(t: np.ndarray) -> np.ndarray:
        whole = np.floor(t)
        return whole * share + np.minimum(t - whole, share)

    return (integral(start + step) - integral(start)) / np.maximum(step, 1e-6)


class _Street:
    """The geometry of a straight street as the pixels see it: which pixel lies on road, left or right houses, and where."""

    def __init__(self, spec: TaskSpec, left: float, right: float) -> None:
        y, x = pixel_grid(spec.height, spec.width)
        down = (y - _HORIZON) / _FOCAL + 0 * x
        aside = (x - 0.5 * spec.width / spec.height) / _FOCAL + 0 * y
        to_road = np.where(down > 1e-4, _EYE / np.maximum(down, 1e-4), 1e4)
        to_house = np.where(aside < 0, left, right) / np.maximum(np.abs(aside), 1e-4)
        self.on_road = to_road < to_house
        self.depth = np.minimum(np.minimum(to_road, to_house), 400).astype(np.float32)
        self.right_hand = aside > 0
        self.across = (aside * self.depth).astype(np.float32)  # metres right of the camera
        self.up = (_EYE - down * self.depth).astype(np.float32)  # metres above the road
        self.pixel = self.depth / (_FOCAL * spec.height)  # metres a pixel covers, crosswise
        wide = np.where(aside < 0, left, right)
        # ... and along the street, which it meets at a slant.
        self.pixel_along = self.pixel * self.depth / np.where(self.on_road, _EYE, wide)


def _houses(street: _Street, along: np.ndarray, facades: np.ndarray, roofs: np.ndarray, sky: np.ndarray) -> np.ndarray:
    """Colour (T, 3, H, W) of house fronts with windows, and sky above the roofs; along (T, H, W) metres of street."""
    number = np.floor(along / _HOUSE).astype(np.int32) % _HOUSES
    side = street.right_hand.astype(np.int32)
    colour = facades[side, number]  # (T, H, W, 3)
    window = _stripes(along, _BAY, 0.45, street.pixel_along) * _stripes(street.up + 0.6, _STOREY, 0.5, street.pixel)
    ground_floor = np.clip((3.2 - street.up) / street.pixel, 0, 1)
    shade = (1 - 0.6 * window) * (1 - 0.3 * ground_floor) * np.where(street.right_hand, 1.0, 0.8)
    over = np.clip((street.up - roofs[side, number]) / street.pixel + 0.5, 0, 1)
    houses = np.moveaxis(colour * shade[..., None], -1, 1)
    haze = np.clip(street.depth / 220, 0, 0.7)
    houses += haze * (np.float32(0.75) - houses)
    return houses + over[:, None] * (sky - houses)


def _road(street: _Street, along: np.ndarray, lane: float, width: float) -> np.ndarray:
    """Grey level (T, H, W) of asphalt, dashed lane marks, kerb and pavement slabs."""
    rough = 0.03 * (_stripes(along, 5.0, 0.5, street.pixel_along) - 0.5) * np.clip(2 / street.pixel_along, 0, 1)
    level = 0.34 + rough

    def mark(centre: float, half: float) -> np.ndarray:
        reach = np.clip((half - np.abs(street.across - centre)) / street.pixel + 0.5, 0, 1)
        return reach * np.minimum(1, 2 * half / street.pixel)

    level = level + 0.5 * mark(lane, 0.14) * _stripes(along, 6.0, 0.5, street.pixel_along)
    pavement = np.clip((np.abs(street.across - lane) - width) / street.pixel + 0.5, 0, 1)
    slabs = 0.5 + 0.12 * _stripes(along, 2.5, 0.5, street.pixel_along)
    return level + pavement * (slabs - level)


def _car(frames: np.ndarray, depth: np.ndarray, across: float, colour: np.ndarray) -> None:
    """Paint a car, seen from behind, at depths (T,) in metres; one that is passed is gone."""
    height, width = frames.shape[2:]
    shown = (depth > 2.5).astype(np.float32)[:, None, None]
    scale = _FOCAL / np.maximum(depth, 2.5)
    middle = 0.5 * width / height + scale * across
    floor = _HORIZON + scale * _EYE

    def part(bottom: float, top: float, half: float, tone: np.ndarray | tuple[float, float, float] | float) -> None:
        area = box(
            height, width, floor - scale * top, floor - scale * bottom, middle - scale * half, middle + scale * half
        )
        paint(frames, area * shown, np.broadcast_to(tone, 3))

    part(-0.12, 0.2, 0.95, 0.1)  # shadow and wheels
    part(0.25, 0.95, 0.9, colour)
    part(0.9, 1.5, 0.72, 0.6 * colour)
    part(1.0, 1.4, 0.62, (0.2, 0.24, 0.28))  # rear window
    part(0.62, 0.8, 0.88, (0.6, 0.1, 0.08) if colour[0] < 0.5 else (0.45, 0.05, 0.05))  # lights


def generate(spec: TaskSpec, seed: int, index: int) -> np.ndarray:
    """A drive at steady speed along a straight street; each pixel's ray meets road, house front or sky.

    Width of the street, speed, colours and heights of the houses, parked cars and one car ahead are the sample's.
    """
    if spec.channels != 3:
        raise ValueError(f"task cityscapes: channels is {spec.channels}, the generator makes 3")
    rng = random_stream(seed, index)
    frames = spec.frames_in + spec.frames_out
    left, right = rng.uniform(6.5, 9.0), rng.uniform(5.0, 7.5)
    speed = rng.uniform(7.0, 13.0)  # metres a second
    driven = speed * _FRAME_SECONDS * np.arange(frames, dtype=np.float32)
    street = _Street(spec, left, right)
    along = street.depth + (driven + np.float32(rng.uniform(0, _HOUSE * _HOUSES)))[:, None, None]

    facades = _FACADES[rng.integers(len(_FACADES), size=(2, _HOUSES))] * rng.uniform(0.8, 1.15, (2, _HOUSES, 1))
    roofs = rng.uniform(7, 20, (2, _HOUSES)).astype(np.float32)
    y, _ = pixel_grid(spec.height, spec.width)
    sky = np.array([0.62, 0.72, 0.85])[:, None, None] + np.float32(0.35) * y
    sky = (sky + 0 * street.depth) * rng.uniform(0.85, 1.05)
    result = _houses(street, along, facades.astype(np.float32), roofs, sky.astype(np.float32)).astype(np.float32)
    road = _road(street, along, lane=-1.6, width=4.6)[:, None] * np.array([1.0, 1.0, 1.03], np.float32)[:, None, None]
    result = np.where(street.on_road, road, result).astype(np.float32)

    cars = []  # (depth (T,), across, colour)
    for side, place in ((1, 2.2), (-1, -5.4)):
        for depth in np.arange(rng.uniform(4, 12), 70, rng.uniform(8, 16)):
            cars.append((depth + rng.uniform(-1.5, 1.5) - driven, place + 0.2 * side, _CARS[rng.integers(len(_CARS))]))
    ahead = rng.uniform(9, 24) + rng.uniform(-4.0, 4.0) * _FRAME_SECONDS * np.arange(frames)
    cars.append((ahead, 0.0, _CARS[rng.integers(len(_CARS))]))
    oncoming = rng.uniform(10, 60) - driven - rng.uniform(7, 12) * _FRAME_SECONDS * np.arange(frames)
    cars.append((oncoming, -3.0, _CARS[rng.integers(len(_CARS))]))
    for depth, across, colour in sorted(cars, key=lambda car: -car[0][0]):
        if depth.max() > 2.5:
            _car(result, depth, across, colour)
    aspect = spec.width / spec.height  # the bonnet of the own car
    bonnet = capsule(spec.height, spec.width, np.array([[1.1, -0.2]]), np.array([[1.1, aspect + 0.2]]), 0.16)
    paint(result, bonnet, (0.1, 0.1, 0.12))
    return finish(result)


TASK = Task(SPEC, generate)
