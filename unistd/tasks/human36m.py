"""Human3.6M: a person in a colour studio, seen by one of four cameras.

Protocol: PredBench, 4 -> 4 frames of 3x256x256, every fifth of 50 frames a second (Ionescu et al., PAMI 2014).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from unistd.tasks.raster import finish, paint_box, paint_capsule, pixel_grid, random_stream
from unistd.tasks.readers import human36m
from unistd.tasks.spec import TaskSpec
from unistd.tasks.task import Task
from unistd.tasks.texture import smooth_noise

SPEC = TaskSpec(
    name="human36m",
    title="Human3.6M",
    discipline="motion",
    channels=3,
    height=256,
    width=256,
    frames_in=4,
    frames_out=4,
    patch=16,
    scale=255.0,
    offset=0.0,
    unit="8-bit level",
)

_FRAME_SECONDS = 0.1
_CAMERAS = 4
_CAMERA_DISTANCE, _CAMERA_HEIGHT, _FOCAL, _HORIZON = 5.2, 1.3, 2.0, 0.35  # metres; focal and horizon in frame heights
_ACTIONS = ("walking", "walking", "waving", "directions", "bowing")  # walking is what moves most
_SHIRTS = np.array([[0.75, 0.2, 0.2], [0.2, 0.35, 0.7], [0.85, 0.8, 0.75], [0.2, 0.5, 0.35], [0.8, 0.65, 0.2]])
_TROUSERS = np.array([[0.12, 0.14, 0.25], [0.2, 0.2, 0.2], [0.35, 0.3, 0.22]])
_SKIN, _HAIR, _SHOES = (0.85, 0.65, 0.52), (0.2, 0.13, 0.08), (0.1, 0.1, 0.1)


@lru_cache(maxsize=32)
def _studio(camera: int, height: int, width: int) -> np.ndarray:
    """What a camera sees of the empty studio: curtained wall, carpet, something at the wall; (3, H, W)."""
    rng = np.random.default_rng((36, camera))
    y, x = pixel_grid(height, width)
    corner = 0.56 + 0.03 * (camera % 2)  # where the wall meets the floor
    wall = np.array([0.42, 0.45, 0.47])[:, None, None] * (1 + 0.08 * np.sin(2 * np.pi * (x * (7 + camera)) + camera))
    wall = wall * (0.85 + 0.3 * (1 - y))
    carpet = np.array([0.5, 0.3, 0.24])[:, None, None] * (0.75 + 0.35 * y)
    carpet = carpet * (1 + 0.05 * smooth_noise(rng, (height, width), 0.6))
    floor = np.clip((y - corner) * height + 0.5, 0, 1)
    scene = (wall * (1 - floor) + carpet * floor)[None].astype(np.float32)
    middle = np.array([(0.12 + 0.23 * camera) * width / height])  # a screen at the wall tells the cameras apart
    bottom = np.array([corner + 0.02])
    paint_box(scene, bottom - 0.4, bottom, middle - 0.06, middle + 0.03 + 0.03 * camera, 0.13 + 0.04 * camera)
    return scene[0]


def _bone(start: np.ndarray, pitch: np.ndarray, yaw: np.ndarray | float, length: float) -> np.ndarray:
    """End (T, 3) of a bone from `start`; pitch (rad) from straight down, towards `yaw` (0 forward, pi/2 left).

    Axes: forward, left, up, in metres.
    """
    yaw = np.broadcast_to(yaw, pitch.shape)
    way = np.stack([np.sin(pitch) * np.cos(yaw), np.sin(pitch) * np.sin(yaw), -np.cos(pitch)], -1)
    return start + length * way


def _pose(action: str, phase: np.ndarray, style: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, float, str]]:
    """Bones (start (T, 3), end (T, 3), radius in metres, part) in the person's own axes; phase (T,) in rad."""
    walking, bowing = action == "walking", action == "bowing"
    swing = np.sin(phase) * (0.55 if walking else 0.0)
    bow = (0.55 - 0.55 * np.cos(phase)) * bowing
    sway = 0.03 * np.sin(0.5 * phase + style[0])
    hip = np.stack([-0.25 * np.sin(bow), sway, 0.93 + 0.02 * np.cos(2 * phase) * walking - 0.1 * bow], -1)
    chest = _bone(hip, np.pi - bow, 0.0, 0.5)
    head = _bone(chest, np.pi - 1.2 * bow, 0.0, 0.24)
    bones = [(hip, chest, 0.16, "shirt"), (chest, chest, 0.15, "shirt"), (head, head, 0.115, "skin")]
    crown = head + np.array([-0.02, 0, 0.05])
    bones.append((crown, crown, 0.1, "hair"))
    raise_ = 0.5 - 0.5 * np.cos(phase)
    for side in (-1, 1):
        joint = hip + np.array([0, 0.1 * side, -0.03])
        thigh = side * swing + 0.35 * bow
        knee = _bone(joint, thigh, 0.0, 0.44)
        bend = (0.9 * np.clip(side * np.cos(phase) + 0.2, 0, None)) * walking + 0.7 * bow
        foot = _bone(knee, thigh - bend, 0.0, 0.42)
        bones += [(joint, knee, 0.085, "trousers"), (knee, foot, 0.065, "trousers")]
        bones.append((foot, foot + np.array([0.14, 0, -0.02]), 0.05, "shoes"))
        shoulder = chest + np.array([0, 0.2 * side, -0.02])
        if walking:
            upper, lower, yaw = -side * swing, -side * swing + 0.4, 0.0
        elif action == "waving" and (side > 0 or style[1] > 0):
            upper, lower, yaw = 1.2 + 0.7 * raise_, 1.6 + 1.4 * raise_, side * 1.3
        elif action == "directions" and side > 0:
            upper, lower, yaw = 0.5 + 1.0 * raise_, 0.7 + 0.95 * raise_, 0.9 * np.sin(0.5 * phase + style[0])
        else:
            upper, lower, yaw = 0.2 + 0.8 * bow, 0.3 + 1.2 * bow, side * 0.3 * (1 - bow)
        upper, lower = np.broadcast_to(upper, phase.shape), np.broadcast_to(lower, phase.shape)
        elbow = _bone(shoulder, upper, yaw, 0.29)
        hand = _bone(elbow, lower, yaw, 0.27)
        bones += [(shoulder, elbow, 0.06, "shirt"), (elbow, hand, 0.048, "skin"), (hand, hand, 0.055, "skin")]
    return bones


def generate(spec: TaskSpec, seed: int, index: int) -> np.ndarray:
    """A person in 3-D who walks in a circle, or waves, points or bows while turning, before one of four cameras."""
    rng = random_stream(seed, index)
    frames = spec.frames_in + spec.frames_out
    action, camera = _ACTIONS[rng.integers(len(_ACTIONS))], int(rng.integers(_CAMERAS))
    seconds = _FRAME_SECONDS * np.arange(frames)
    turn = rng.choice((-1, 1))
    if action == "walking":
        radius, speed, rate = rng.uniform(0.8, 1.1), rng.uniform(1.2, 1.7), rng.uniform(0.9, 1.1)
        round_ = rng.uniform(0, 2 * np.pi) + turn * speed / radius * seconds
        place = radius * np.stack([np.cos(round_), np.sin(round_)], -1)
        heading = round_ + turn * np.pi / 2
    else:
        rate = rng.uniform(0.45, 0.7)
        place = np.broadcast_to(rng.uniform(-0.7, 0.7, 2), (frames, 2))
        heading = rng.uniform(0, 2 * np.pi) + turn * rng.uniform(0.2, 0.9) * seconds
    phase = 2 * np.pi * (rng.uniform() + rate * seconds)
    bones = _pose(action, phase, rng.uniform(-1, 1, 2))

    view = camera * np.pi / 2 + 0.4

    def project(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points (T, 3) of the body -> frame positions (T, 2) and depths (T,)."""
        ahead, left = np.cos(heading), np.sin(heading)
        north = place[:, 0] + points[:, 0] * ahead - points[:, 1] * left
        west = place[:, 1] + points[:, 0] * left + points[:, 1] * ahead
        depth = _CAMERA_DISTANCE + north * np.cos(view) + west * np.sin(view)
        aside = -north * np.sin(view) + west * np.cos(view)
        y = _HORIZON + _FOCAL * (_CAMERA_HEIGHT - points[:, 2]) / depth
        return np.stack([y, 0.5 * spec.width / spec.height + _FOCAL * aside / depth], -1), depth

    colours = {
        "shirt": _SHIRTS[rng.integers(len(_SHIRTS))],
        "trousers": _TROUSERS[rng.integers(len(_TROUSERS))],
        "skin": np.array(_SKIN),
        "hair": np.array(_HAIR),
        "shoes": np.array(_SHOES),
    }
    result = np.repeat(_studio(camera, spec.height, spec.width)[None], frames, axis=0)
    feet, depth = project(np.zeros((frames, 3)))
    wide = np.stack([0 * depth, 0.25 * _FOCAL / depth], -1)
    paint_capsule(result, feet - wide, feet + wide, 0.07 * _FOCAL / depth, 0.08, 0.45)
    drawn = []
    for start, end, radius, part in bones:
        (first, near), (second, far) = project(start), project(end)
        depth = (near + far) / 2
        drawn.append((depth.mean(), first, second, radius * _FOCAL / depth, colours[part]))
    for _, first, second, radius, colour in sorted(drawn, key=lambda layer: -layer[0]):
        paint_capsule(result, first, second, radius, colour)
    return finish(result)


TASK = Task(SPEC, generate, human36m.READER)
