"""Moving MNIST: two digits that drift and bounce off the walls of their frame.

Protocol: 10 -> 10 frames of 1x64x64 (Srivastava et al., ICML 2015; motion as in OpenSTL). Digits are drawn strokes, or
real MNIST where its files are given.
"""

from __future__ import annotations

import numpy as np

from unistd.tasks.bounce import animate, digit_size
from unistd.tasks.raster import capsule, random_stream
from unistd.tasks.readers.moving_mnist import DIGITS, MovingMNISTReader
from unistd.tasks.spec import TaskSpec
from unistd.tasks.task import Task

SPEC = TaskSpec(
    name="moving_mnist",
    title="Moving MNIST",
    discipline="motion",
    channels=1,
    height=64,
    width=64,
    frames_in=10,
    frames_out=10,
    patch=4,
    scale=255.0,
    offset=0.0,
    unit="8-bit level",
)


def _arc(cy: float, cx: float, ry: float, rx: float, start: float, stop: float) -> list[tuple[float, float]]:
    """Points of an elliptic arc, angles in turns, clockwise from the right."""
    angles = 2 * np.pi * np.linspace(start, stop, 13)
    return [(cy + ry * np.sin(a), cx + rx * np.cos(a)) for a in angles]


# Strokes of the ten digits as (y, x) in the unit square.
_STROKES: tuple[list[list[tuple[float, float]]], ...] = (
    [_arc(0.5, 0.5, 0.36, 0.24, 0, 1)],
    [[(0.26, 0.38), (0.14, 0.52), (0.86, 0.52)]],
    [[*_arc(0.33, 0.5, 0.19, 0.22, 0.5, 1.08), (0.86, 0.27), (0.86, 0.75)]],
    [_arc(0.31, 0.47, 0.17, 0.2, 0.58, 1.25), _arc(0.67, 0.47, 0.19, 0.24, -0.25, 0.42)],
    [[(0.14, 0.58), (0.6, 0.24), (0.6, 0.78)], [(0.36, 0.62), (0.88, 0.62)]],
    [[(0.14, 0.72), (0.14, 0.34), (0.47, 0.32), *_arc(0.63, 0.48, 0.22, 0.24, -0.22, 0.42)]],
    [[(0.13, 0.62), (0.36, 0.35), (0.62, 0.27)], _arc(0.65, 0.49, 0.2, 0.22, 0, 1)],
    [[(0.15, 0.26), (0.15, 0.74), (0.87, 0.42)]],
    [_arc(0.31, 0.5, 0.17, 0.18, 0, 1), _arc(0.67, 0.5, 0.19, 0.22, 0, 1)],
    [_arc(0.34, 0.49, 0.2, 0.21, 0, 1), [(0.34, 0.7), (0.64, 0.66), (0.87, 0.52)]],
)


def _draw_digit(rng: np.random.Generator, size: int) -> np.ndarray:
    """A digit in a hand of its own: slant, size, wobble and pen width vary; (size, size) float32 in [0, 1]."""
    slant, turn = rng.uniform(-0.25, 0.25), rng.uniform(-0.15, 0.15)
    shape = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn) - slant, np.cos(turn)]]) * rng.uniform(
        0.8, 1.0, (1, 2)
    )
    radius = rng.uniform(0.035, 0.06)
    starts, ends = [], []
    for stroke in _STROKES[rng.integers(10)]:
        points = (np.array(stroke) - 0.5) @ shape.T + 0.5 + rng.normal(0, 0.008, (len(stroke), 2))
        starts.append(points[:-1])
        ends.append(points[1:])
    return capsule(size, size, np.concatenate(starts), np.concatenate(ends), radius).max(0)


def generate(spec: TaskSpec, seed: int, index: int) -> np.ndarray:
    """Two drawn digits that move by a tenth of the free canvas a frame in a random direction and bounce."""
    rng = random_stream(seed, index)
    return animate(spec, rng, [_draw_digit(rng, digit_size(spec)) for _ in range(DIGITS)])


TASK = Task(SPEC, generate, MovingMNISTReader())
