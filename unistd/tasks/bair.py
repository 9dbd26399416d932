"""BAIR robot pushing: a two-link arm sweeps over a tray and pushes what it meets.

Protocol: PredBench, 2 -> 10 frames of 3x64x64 (Ebert et al., CoRL 2017).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from unistd.tasks.raster import finish, paint_capsule, pixel_grid, random_stream
from unistd.tasks.readers import bair
from unistd.tasks.readers.forms import Forms
from unistd.tasks.spec import TaskSpec
from unistd.tasks.task import Task
from unistd.tasks.texture import smooth_noise

SPEC = TaskSpec(
    name="bair",
    title="BAIR robot pushing",
    discipline="motion",
    channels=3,
    height=64,
    width=64,
    frames_in=2,
    frames_out=10,
    patch=4,
    scale=255.0,
    offset=0.0,
    unit="8-bit level",
)

_TRAY_SEED = 7
_LINKS = (0.62, 0.55)  # lengths of upper arm and forearm, in frame heights
_HAND = 0.075  # radius
_SUBSTEPS = 3
_OBJECT_COLOURS = np.array(
    [
        [0.85, 0.15, 0.15],
        [0.15, 0.5, 0.85],
        [0.95, 0.8, 0.1],
        [0.2, 0.65, 0.3],
        [0.9, 0.5, 0.1],
        [0.95, 0.95, 0.9],
        [0.55, 0.25, 0.6],
    ]
)


@lru_cache(maxsize=8)
def _tray(height: int, width: int) -> np.ndarray:
    """The wooden tray with its rim, seen from above, (3, H, W)."""
    rng = np.random.default_rng(_TRAY_SEED)
    y, x = pixel_grid(height, width)
    grain = smooth_noise(rng, (height, width), 0.8)
    planks = 0.03 * np.sign(np.sin(2 * np.pi * y * 3.5))
    tray = np.array([0.62, 0.5, 0.36])[:, None, None] + 0.03 * grain + planks
    aspect = width / height
    rim = np.maximum(np.abs(y - 0.55) / 0.45, np.abs(x - 0.5 * aspect) / (0.48 * aspect))
    outside = np.clip((rim - 0.97) * height * 0.4, 0, 1)
    return (tray * (1 - outside) + np.array([0.3, 0.31, 0.33])[:, None, None] * outside).astype(np.float32)


def _fold(path: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Reflect a straight path at the walls low and high."""
    span = high - low
    path = (path - low) % (2 * span)
    return low + np.minimum(path, 2 * span - path)


def _push(hands: np.ndarray, objects: np.ndarray, radii: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Positions (T, N, 2) of objects (N, 2) that a hand, (T * substeps, 2), shoves out of its way without glide."""
    path = []
    for step, hand in enumerate(hands):
        away = objects - hand
        distance = np.sqrt((away**2).sum(1)) + 1e-9
        overlap = np.maximum(radii + _HAND - distance, 0)
        objects = np.clip(objects + away * (overlap / distance)[:, None], low, high)
        if step % _SUBSTEPS == 0:
            path.append(objects)
    return np.stack(path)


def _elbow(shoulder: np.ndarray, hand: np.ndarray) -> np.ndarray:
    """Elbow (T, 2) of the two links between a fixed shoulder and the hand (T, 2), always bent to the same side."""
    reach = hand - shoulder
    distance = np.clip(np.sqrt((reach**2).sum(1, keepdims=True)), 0.1, sum(_LINKS) - 1e-3)
    along = (distance**2 + _LINKS[0] ** 2 - _LINKS[1] ** 2) / (2 * distance)
    aside = np.sqrt(np.maximum(_LINKS[0] ** 2 - along**2, 0))
    unit = reach / distance
    return shoulder + along * unit + aside * unit[:, ::-1] * np.array([-1, 1])


def generate(spec: TaskSpec, seed: int, index: int) -> np.ndarray:
    """An arm whose hand crosses the tray in a straight line, turns at the rims, and pushes coloured objects along.

    Hand, objects and their radii are the sample's; two frames show where the hand is going.
    """
    rng = random_stream(seed, index)
    frames = spec.frames_in + spec.frames_out
    aspect = spec.width / spec.height
    low, high = np.array([0.2, 0.12 * aspect]), np.array([0.9, 0.88 * aspect])

    angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0.03, 0.065)
    steps = np.arange(frames * _SUBSTEPS)[:, None] / _SUBSTEPS
    start = rng.uniform(low, high)
    hands = _fold(start + speed * steps * np.array([np.sin(angle), np.cos(angle)]), low, high)
    count = rng.integers(4, 7)
    radii = rng.uniform(0.045, 0.08, count)
    objects = _push(hands, rng.uniform(low, high, (count, 2)), radii, low, high)
    hand = hands[::_SUBSTEPS]

    result = np.repeat(_tray(spec.height, spec.width)[None], frames, axis=0)
    shade = np.float32(0.02 * rng.standard_normal())
    colours = _OBJECT_COLOURS[rng.permutation(len(_OBJECT_COLOURS))[:count]]
    for number in range(count):
        centre = objects[:, number]
        bar = radii[number] * 0.6 * np.array([np.sin(number + index), np.cos(number + index)]) * (number % 2)
        thickness = radii[number] * (0.65 if number % 2 else 1.0)
        paint_capsule(result, centre - bar + 0.015, centre + bar + 0.015, thickness, 0.1, 0.35)
        paint_capsule(result, centre - bar, centre + bar, thickness, colours[number])
    shoulder = np.array([-0.18, 0.5 * aspect])
    elbow = _elbow(shoulder, hand)
    paint_capsule(result, elbow + 0.04, hand + 0.04, 0.05, 0.05, 0.3)
    paint_capsule(result, np.broadcast_to(shoulder, elbow.shape), elbow, 0.085, (0.5, 0.08, 0.1))
    paint_capsule(result, elbow, hand, 0.055, (0.62, 0.13, 0.13))
    paint_capsule(result, elbow, elbow, 0.07, (0.12, 0.12, 0.13))
    paint_capsule(result, hand, hand, _HAND, (0.16, 0.16, 0.18))
    paint_capsule(result, hand, hand, 0.035, (0.75, 0.75, 0.78))
    return finish(result + shade)


TASK = Task(SPEC, generate, Forms(bair.ARRAYS, bair.RECORDS))
