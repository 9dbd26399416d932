"""KITTI: driving along a winding country road between meadows, hills and trees.

Protocol: PredBench, 10 -> 10 frames of 3x128x160 at 10 frames a second (Geiger et al., IJRR 2013).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from unistd.tasks.raster import box, capsule, finish, paint, pixel_grid, random_stream, sample_periodic, smooth_noise
from unistd.tasks.spec import TaskSpec
from unistd.tasks.task import Task

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
    """Ground texture (256, 256) that repeats itself, outline of the hills (1, 512) and clouds (64, 256)."""
    rng = np.random.default_rng(_WORLD_SEED)
    return (
        smooth_noise(rng, (256, 256), 0.9),
        smooth_noise(rng, (1, 512), 1.3, lowest=3),
        smooth_noise(rng, (64, 256), 1.4, lowest=2),
    )


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


def _ground(spec: TaskSpec, drive: _Drive, asphalt: float, lane: float) -> tuple[np.ndarray, np.ndarray]:
    """Colour (T, 3, rows, W) of meadow and road below the horizon, and depth (rows,) in metres of each row."""
    texture = _textures()[0]
    y, x = pixel_grid(spec.height, spec.width)
    y = y[y[:, 0] > _HORIZON + 0.25 / spec.height]
    depth = _EYE * _FOCAL / (y[:, 0] - _HORIZON)
    across = (x - 0.5 * spec.width / spec.height) * depth[:, None] / _FOCAL  # (rows, W)
    pixel = (depth / (_FOCAL * spec.height))[:, None]
    pixel_along = pixel * depth[:, None] / _EYE
    middle = drive.road(np.broadcast_to(depth, (len(drive.driven), len(depth))))
    from_road = (across - middle[..., None] + lane).astype(np.float32)  # (T, rows, W); the car keeps to its lane
    along = (drive.driven[:, None] + depth)[..., None].astype(np.float32)

    fade = np.clip(2.5 / np.maximum(pixel_along, 1e-6), 0, 1)  # far off, the texture averages out
    rough = sample_periodic(texture, along / _FIELD, from_road / _FIELD) * fade

    def strip(centre: float, half: float) -> np.ndarray:
        reach = np.clip((half - np.abs(from_road - centre)) / pixel + 0.5, 0, 1)
        return reach * np.minimum(1, 2 * half / pixel)

    dash = np.clip(0.5 + 1.5 * np.sin(2 * np.pi * along / 9) * fade, 0, 1)
    colour = np.array([0.36, 0.46, 0.2], np.float32)[:, None, None] * (1 + 0.3 * rough)[:, None]

    def cover(alpha: np.ndarray, tone: tuple[float, float, float]) -> None:
        nonlocal colour
        colour = colour + alpha[:, None] * (np.array(tone, np.float32)[:, None, None] - colour)

    cover(strip(0, 4.4), (0.55, 0.5, 0.4))  # gravel
    cover(strip(0, 3.6), (asphalt, asphalt, asphalt * 1.03))
    colour = colour + 0.03 * (rough * strip(0, 3.6))[:, None]
    for side in (-3.35, 3.35):
        cover(strip(side, 0.14), (0.85, 0.85, 0.83))
    cover(strip(0, 0.14) * dash, (0.88, 0.88, 0.85))
    return colour, depth


def _sky(spec: TaskSpec, drive: _Drive, first_azimuth: float, light: float) -> np.ndarray:
    """Colour (T, 3, H, W) of clouds and hills, which turn with the car's heading and do not come nearer."""
    _, hills, clouds = _textures()
    y, x = pixel_grid(spec.height, spec.width)
    bearing = np.arctan((x[0] - 0.5 * spec.width / spec.height) / _FOCAL)
    azimuth = ((bearing + drive.heading[:, None] + first_azimuth) / (2 * np.pi)).astype(np.float32)  # (T, W), in turns
    outline = 0.055 + 0.03 * sample_periodic(hills, np.zeros_like(azimuth), azimuth)
    elevation = np.broadcast_to(y, (len(azimuth), *y.shape))
    veil = sample_periodic(
        clouds, elevation * 0.8, np.broadcast_to(azimuth[:, None] * 2, (len(azimuth), spec.height, spec.width))
    )
    veil = np.clip(0.35 + 0.35 * veil, 0, 1)[:, None]
    blue = np.array([0.42, 0.6, 0.85], np.float32)[:, None, None] + 0.4 * y
    sky = (blue + veil * (np.float32(0.92) - blue)) * light
    hill = np.clip((y - (_HORIZON - outline[:, None])) * spec.height + 0.5, 0, 1)[:, None]
    return (sky + hill * (np.array([0.35, 0.45, 0.47], np.float32)[:, None, None] - sky)).astype(np.float32)


def _tree(frames: np.ndarray, scale: np.ndarray, x: np.ndarray, size: float, colour: np.ndarray) -> None:
    """Paint a tree of `size` metres at frame positions x (T,) and scale (T,) frame heights a metre; scale 0: not in view."""
    height, width = frames.shape[2:]
    shown = (scale > 0).astype(np.float32)[:, None, None]
    foot = _HORIZON + _EYE * scale
    trunk = np.stack([foot, x], -1)
    crown = np.stack([foot - 0.68 * size * scale, x], -1)
    lift = np.stack([-0.12 * size * scale, 0 * x], -1)
    paint(frames, box(height, width, crown[:, 0], foot, x - 0.2 * scale, x + 0.2 * scale) * shown, (0.25, 0.18, 0.12))
    paint(frames, capsule(height, width, trunk, trunk, 0.12 * size * scale) * shown * 0.4, (0.1, 0.12, 0.05))
    paint(frames, capsule(height, width, crown - lift, crown + lift, 0.27 * size * scale) * shown, 0.7 * colour)
    paint(frames, capsule(height, width, crown + 1.2 * lift, crown + lift, 0.19 * size * scale) * shown, colour)


def generate(spec: TaskSpec, seed: int, index: int) -> np.ndarray:
    """A drive along a winding road whose bends turn the camera; ground, road marks and trees are warped by perspective.

    Speed, bends, light and the trees at both sides are the sample's; hills and clouds only turn with the heading.
    """
    if spec.channels != 3:
        raise ValueError(f"task kitti: channels is {spec.channels}, the generator makes 3")
    rng = random_stream(seed, index)
    frames = spec.frames_in + spec.frames_out
    speed = rng.uniform(6.0, 13.0)  # metres a second
    driven = rng.uniform(0, 1000) + speed * _FRAME_SECONDS * np.arange(frames)
    bend = np.stack([rng.uniform((0.1, 0.02), (0.3, 0.08)), rng.uniform(0, 2 * np.pi, 2)], -1)
    drive = _Drive.at(bend, driven)
    lane = 1.7  # metres right of the middle

    result = _sky(spec, drive, rng.uniform(0, 2 * np.pi), rng.uniform(0.85, 1.05))
    ground, depth = _ground(spec, drive, rng.uniform(0.32, 0.45), lane)
    result[:, :, spec.height - len(depth) :] = ground

    places = np.sort(driven[0] + rng.uniform(2, 110, rng.integers(14, 24)))[::-1]
    for place in places:
        ahead = place - driven
        shown = (ahead > 1.5) & (ahead < 100)
        if not shown.any():
            continue
        scale = np.where(shown, _FOCAL / np.maximum(ahead, 1.5), 0)
        side = rng.choice((-1, 1)) * rng.uniform(6.0, 16.0)
        across = drive.road(np.maximum(ahead, 1.5)) + side - lane
        green = np.array([0.2, 0.38, 0.14]) * rng.uniform(0.7, 1.25) + rng.uniform(0, 0.06, 3)
        _tree(result, scale, 0.5 * spec.width / spec.height + across * scale, rng.uniform(4.5, 9.0), green)
    return finish(result)


TASK = Task(SPEC, generate)
