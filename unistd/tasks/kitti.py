"""KITTI: driving along a winding country road between meadows, hills and trees.

Protocol: PredBench, 10 -> 10 frames of 3x128x160 at 10 frames a second (Geiger et al., IJRR 2013).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from unistd.tasks.raster import finish, paint_box, paint_capsule, pixel_grid, random_stream
from unistd.tasks.readers import kitti
from unistd.tasks.readers.forms import Forms
from unistd.tasks.spec import TaskSpec
from unistd.tasks.task import Task
from unistd.tasks.texture import sample_grid, sample_periodic, smooth_noise

SPEC = TaskSpec(
    name="kitti",
    title="KITTI",
    discipline="driving",
    channels=3,
    height=128,
    width=160,
    frames_in=10,
    frames_out=10,
    patch=8,
    scale=255.0,
    offset=0.0,
    unit="8-bit level",
)

_FRAME_SECONDS = 0.1
_FOCAL, _HORIZON, _EYE = 0.95, 0.45, 1.65  # focal length and horizon in frame heights, the camera's height in metres
_WORLD_SEED = 2_013
_FARTHEST = 90.0  # metres up to which the road is drawn as bent
_FIELD = 48.0  # metres of ground that one period of its texture covers


@lru_cache(maxsize=1)
def _textures() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ground (256, 256), outline of the hills (1, 512) and clouds (64, 256); all repeat themselves."""
    rng = np.random.default_rng(_WORLD_SEED)
    ground, hills = smooth_noise(rng, (256, 256), 0.9), smooth_noise(rng, (1, 512), 1.3, lowest=3)
    return ground, hills, smooth_noise(rng, (64, 256), 1.4, lowest=2)


@dataclass(frozen=True)
class _Drive:
    """A winding road and the car on it: all as seen from the car, at T moments."""

    driven: np.ndarray  # (T,) metres along the road
    heading: np.ndarray  # (T,) rad
    bend: np.ndarray  # amplitude and phase of the two waves that make the road's curvature, (2, 2)

    _WAVES = (2 * np.pi / 210, 2 * np.pi / 90)  # rad a metre

    @staticmethod
    def at(bend: np.ndarray, driven: np.ndarray) -> _Drive:
        return _Drive(driven, _Drive._slope(bend, driven), bend)

    @staticmethod
    def _slope(bend: np.ndarray, place: np.ndarray) -> np.ndarray:
        return sum(a * np.sin(w * place + p) for (a, p), w in zip(bend, _Drive._WAVES, strict=True))

    def _sway(self, place: np.ndarray) -> np.ndarray:
        return sum(-a / w * np.cos(w * place + p) for (a, p), w in zip(self.bend, self._WAVES, strict=True))

    def road(self, depth: np.ndarray) -> np.ndarray:
        """Metres right of the view axis at which the road's middle runs, at depths (T, ...) ahead."""
        shape = (-1,) + (1,) * (depth.ndim - 1)
        driven, heading = self.driven.reshape(shape), self.heading.reshape(shape)
        near = np.minimum(depth, _FARTHEST)
        return self._sway(driven + near) - self._sway(driven) - heading * near


def _ground(drive: _Drive, y: np.ndarray, x: np.ndarray, asphalt: float, lane: float) -> np.ndarray:
    """Colour (T, 3, H, W) of meadow and road at rows y (H, 1) below the horizon; x (1, W) from the frame's middle."""
    depth = _EYE * _FOCAL / (y - _HORIZON)  # (H, 1), metres
    pixel = depth * (y[1, 0] - y[0, 0]) / _FOCAL  # metres a pixel covers, crosswise
    pixel_along = pixel * depth / _EYE
    middle = drive.road(np.broadcast_to(depth, (len(drive.driven), *depth.shape))).astype(np.float32)
    from_road = x * depth / _FOCAL - middle + np.float32(lane)  # (T, H, W); the car keeps to its lane
    along = drive.driven[:, None, None].astype(np.float32) + depth  # (T, H, 1)

    fade = np.clip(2.5 / pixel_along, 0, 1)  # far off, the texture averages out
    rough = sample_periodic(_textures()[0], along / _FIELD, from_road / _FIELD) * fade

    def strip(distance: np.ndarray, half: float) -> np.ndarray:
        return np.clip((half - distance) / pixel + 0.5, 0, 1) * np.minimum(1, 2 * half / pixel)

    aside = np.abs(from_road)
    bed = strip(aside, 3.6)
    dash = np.clip(0.5 + 1.5 * np.sin(2 * np.pi / 9 * along) * fade, 0, 1)
    marks = np.maximum(strip(np.abs(aside - np.float32(3.35)), 0.14), strip(aside, 0.14) * dash)
    gravel = strip(aside, 4.4)
    meadow, road = 1 + 0.3 * rough, asphalt + 0.03 * rough
    road += marks * (np.float32(0.87) - road)
    colour = [green * meadow for green in np.float32([0.36, 0.46, 0.2])]
    for channel, stone in zip(colour, np.float32([0.55, 0.5, 0.4]), strict=True):
        channel += gravel * (stone - channel)
        channel += bed * (road - channel)
    return np.stack(colour, 1)


def _sky(drive: _Drive, y: np.ndarray, x: np.ndarray, first_azimuth: float, light: float) -> np.ndarray:
    """Colour (T, 3, H, W) of clouds and hills, which turn with the car's heading and do not come nearer."""
    _, hills, clouds = _textures()
    bearing = np.arctan(x[0] / _FOCAL)
    azimuth = ((bearing + drive.heading[:, None] + first_azimuth) / (2 * np.pi)).astype(np.float32)  # (T, W), in turns
    outline = 0.055 + 0.03 * sample_periodic(hills, np.zeros_like(azimuth), azimuth)
    veil = sample_grid(clouds, np.broadcast_to(0.8 * y[:, 0], (len(azimuth), len(y))), 2 * azimuth)
    veil = np.clip(0.35 + 0.35 * veil, 0, 1)
    hill = np.clip((y - _HORIZON + outline[:, None]) / (y[1, 0] - y[0, 0]) + 0.5, 0, 1)
    sky = []
    for blue, rock in zip(np.float32([0.42, 0.6, 0.85]), np.float32([0.35, 0.45, 0.47]), strict=True):
        clear = blue + np.float32(0.4) * y
        channel = (clear + veil * (np.float32(0.92) - clear)) * np.float32(light)
        sky.append(channel + hill * (rock - channel))
    return np.stack(sky, 1)


def _tree(frames: np.ndarray, depth: np.ndarray, across: np.ndarray, size: float, colour: np.ndarray) -> None:
    """Paint a tree of `size` metres at depths and metres right of the view axis, (T,); once passed it is gone."""
    shown = depth > 1.5
    if not shown.any():
        return
    last = np.flatnonzero(shown)[-1] + 1
    frames, depth, across = frames[:last], depth[:last], across[:last]
    scale = _FOCAL / depth
    x = 0.5 * frames.shape[3] / frames.shape[2] + across * scale
    foot = _HORIZON + _EYE * scale
    crown = np.stack([foot - 0.68 * size * scale, x], -1)
    lift = np.stack([-0.12 * size * scale, 0 * x], -1)
    paint_box(frames, crown[:, 0], foot, x - 0.2 * scale, x + 0.2 * scale, (0.25, 0.18, 0.12))
    paint_capsule(frames, crown - lift, crown + lift, 0.27 * size * scale, 0.7 * colour)
    paint_capsule(frames, crown + 1.2 * lift, crown + lift, 0.19 * size * scale, colour)


def generate(spec: TaskSpec, seed: int, index: int) -> np.ndarray:
    """A drive along a winding road whose bends turn the camera; ground, road marks and trees are warped by perspective.

    Speed, bends, light and the trees at both sides are the sample's; hills and clouds only turn with the heading.
    """
    rng = random_stream(seed, index)
    frames = spec.frames_in + spec.frames_out
    speed = rng.uniform(6.0, 13.0)  # metres a second
    driven = rng.uniform(0, 1000) + speed * _FRAME_SECONDS * np.arange(frames)
    bend = np.stack([rng.uniform((0.1, 0.02), (0.3, 0.08)), rng.uniform(0, 2 * np.pi, 2)], -1)
    drive = _Drive.at(bend, driven)
    lane = 1.7  # metres right of the middle

    y, x = pixel_grid(spec.height, spec.width)
    x = x - np.float32(0.5 * spec.width / spec.height)
    above = max(2, round(_HORIZON * spec.height))  # rows of sky
    sky = _sky(drive, y[:above], x, rng.uniform(0, 2 * np.pi), rng.uniform(0.85, 1.05))
    ground = _ground(drive, np.maximum(y[above:], _HORIZON + 0.25 / spec.height), x, rng.uniform(0.32, 0.45), lane)
    result = np.concatenate([sky, ground], axis=2)

    for place in np.sort(driven[0] + rng.uniform(2, 90, rng.integers(10, 18)))[::-1]:
        ahead = place - driven
        side = rng.choice((-1, 1)) * rng.uniform(6.0, 16.0)
        across = drive.road(np.maximum(ahead, 1.5)) + side - lane
        green = np.array([0.2, 0.38, 0.14]) * rng.uniform(0.7, 1.25) + rng.uniform(0, 0.06, 3)
        _tree(result, ahead, across, rng.uniform(4.5, 9.0), green)
    return finish(result)


TASK = Task(SPEC, generate, Forms(kitti.HKL, kitti.RAW))
