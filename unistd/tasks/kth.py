"""KTH: one person in grey before a plain ground, in one of six actions.

Protocol: PredBench, 10 -> 10 frames of 1x128x128 at 25 frames a second (Schüldt et al., ICPR 2004).
"""

from __future__ import annotations

import numpy as np

from unistd.tasks.raster import finish, paint_capsule, pixel_grid, random_stream
from unistd.tasks.readers import kth
from unistd.tasks.readers.forms import Forms
from unistd.tasks.readers.kth import ACTIONS
from unistd.tasks.spec import TaskSpec
from unistd.tasks.task import Task
from unistd.tasks.texture import smooth_noise

SPEC = TaskSpec(
    name="kth",
    title="KTH actions",
    discipline="motion",
    channels=1,
    height=128,
    width=128,
    frames_in=10,
    frames_out=10,
    patch=8,
    scale=255.0,
    offset=0.0,
    unit="8-bit level",
)

# Of the three that move on: body heights and strides a second, swing of thigh and arm, bend of the elbow (rad).
_GAITS = {
    "walking": (0.8, 0.95, 0.5, 0.45, 0.25),
    "jogging": (1.3, 1.35, 0.65, 0.7, 1.3),
    "running": (1.9, 1.6, 0.85, 0.95, 1.6),
}
_FRAME_SECONDS = 1 / 25
_HIP, _SHOULDER, _HEAD = 0.53, 0.81, 0.93  # above the ground, in body heights
_THIGH, _SHIN, _UPPER_ARM, _FOREARM = 0.26, 0.26, 0.17, 0.17
_Limb = tuple[np.ndarray, np.ndarray, float, float]  # start (T, 2), end (T, 2), radius, brightness offset


def _hang(start: np.ndarray, angle: np.ndarray, length: float) -> np.ndarray:
    """End (T, 2), as (up, forward), of a bone that hangs from `start` at `angle` (T,), rad forward of straight down."""
    return start + length * np.stack([-np.cos(angle), np.sin(angle)], -1)


def _limb(
    start: np.ndarray, first: np.ndarray, second: np.ndarray, lengths: tuple[float, float], radius: float, tone: float
):
    """Two bones of an arm or leg as (start, end, radius, tone)."""
    joint = _hang(start, first, lengths[0])
    return [(start, joint, radius, tone), (joint, _hang(joint, second, lengths[1]), 0.8 * radius, tone)]


def _in_profile(action: str, phase: np.ndarray) -> list[_Limb]:
    """Limbs of someone who walks, jogs, runs or boxes, seen from the side; phase (T,) in rad. Far limbs come first."""
    still = np.zeros_like(phase)
    if action == "boxing":
        thigh, arm, bend, lean, knee = 0.22, None, None, 0.08, 0.1
        swing = thigh * np.ones_like(phase)
        bob = 0.008 * np.cos(2 * phase)
    else:
        _, _, thigh, arm, bend = _GAITS[action]
        swing, lean, knee = thigh * np.sin(phase), 0.04 + 0.06 * (thigh - 0.5), 0.3 + thigh
        bob = 0.015 * np.cos(2 * phase)
    hip = np.stack([_HIP + bob, still], -1)
    shoulder = hip + np.array([_SHOULDER - _HIP, lean])
    head = shoulder + np.array([_HEAD - _SHOULDER, 0.02 + 0.3 * lean])
    limbs: list[_Limb] = []
    for side, depth in ((-1, 0.06), (1, 0.0)):  # the far side is a little lighter
        angle = side * swing
        # The knee bends while the leg swings forward.
        shin = angle - knee * np.clip(side * np.cos(phase) + 0.3, 0, None) if action != "boxing" else angle * 0.6 - 0.1
        leg = _limb(hip, angle, shin, (_THIGH, _SHIN), 0.055, -0.1 + depth)
        foot = leg[1][1]
        leg.append((foot, foot + np.array([0.0, 0.06]), 0.03, -0.2 + depth))
        if action == "boxing":
            reach = np.clip(side * np.sin(phase), 0, 1)
            arms = _limb(shoulder, 0.5 + 1.1 * reach, 2.4 - 0.8 * reach, (_UPPER_ARM, _FOREARM), 0.038, depth)
        else:
            forward = -side * arm * np.sin(phase)
            arms = _limb(shoulder, forward, forward + bend, (_UPPER_ARM, _FOREARM), 0.035, depth)
        hand = arms[1][1]
        arms.append((hand, hand, 0.035, 0.18))
        limbs += leg + arms if side < 0 else [(hip, shoulder, 0.085, 0.0), (head, head, 0.068, 0.16), *leg, *arms]
    return limbs


def _from_front(action: str, phase: np.ndarray) -> list[_Limb]:
    """Limbs of someone who faces the camera and claps or waves."""
    still = np.zeros_like(phase)
    hip = np.stack([still + _HIP, still], -1)
    shoulder = hip + np.array([_SHOULDER - _HIP, 0.0])
    head = shoulder + np.array([_HEAD - _SHOULDER, 0.0])
    limbs: list[_Limb] = [(hip, shoulder, 0.1, 0.0), (head, head, 0.068, 0.16)]
    swing = 0.5 - 0.5 * np.cos(phase)
    for side in (-1, 1):
        across = np.array([0.0, side * 0.05])
        limbs += _limb(hip + across, still + side * 0.12, still + side * 0.05, (_THIGH, _SHIN), 0.055, -0.1)
        if action == "handwaving":  # straight arms, from the hips to above the head
            upper = side * (0.35 + 2.3 * swing)
            lower = side * (0.35 + 2.6 * swing)
        else:  # forearms meet before the chest
            upper = side * (0.35 + 0.55 * swing)
            lower = side * (-1.7 + 3.2 * swing)
        arm = _limb(shoulder + 2 * across, upper, lower, (_UPPER_ARM, _FOREARM), 0.036, 0.0)
        hand = arm[1][1]
        limbs += [*arm, (hand, hand, 0.038, 0.18)]
    return limbs


def generate(spec: TaskSpec, seed: int, index: int) -> np.ndarray:
    """A person of some build and clothes who boxes, claps, waves, walks, jogs or runs, with a little camera noise."""
    rng = random_stream(seed, index)
    frames = spec.frames_in + spec.frames_out
    aspect = spec.width / spec.height
    action = ACTIONS[rng.integers(len(ACTIONS))]
    body = rng.uniform(0.55, 0.72)  # height of the person, in frame heights
    ground = rng.uniform(0.88, 0.94)
    seconds = _FRAME_SECONDS * np.arange(frames)
    if action in _GAITS:
        speed, rate = np.array(_GAITS[action][:2]) * rng.uniform(0.9, 1.1)
        travel = body * speed * seconds
        room = max(aspect - travel[-1], 0)
        place = travel + 0.5 * (aspect - room - travel[-1]) + rng.uniform(0.1, 0.9) * room
    else:
        rate = rng.uniform(0.9, 1.3)
        place = np.full(frames, aspect / 2 + rng.uniform(-0.12, 0.12))
    phase = 2 * np.pi * (rng.uniform() + rate * seconds)
    limbs = _in_profile(action, phase) if action not in ("handclapping", "handwaving") else _from_front(action, phase)

    y, _ = pixel_grid(spec.height, spec.width)
    bright = rng.uniform(0.55, 0.75)
    grass = smooth_noise(rng, (spec.height, spec.width), 0.9)
    scene = bright - 0.12 * np.clip((y - (ground - 0.12)) * 12, 0, 1) + 0.025 * grass
    result = np.repeat(scene[None, None].astype(np.float32), frames, axis=0)
    clothes = rng.uniform(0.15, 0.35)

    def to_frame(points: np.ndarray) -> np.ndarray:
        return np.stack([ground - body * points[:, 0], place + body * points[:, 1]], -1)

    feet = to_frame(np.zeros((frames, 2)))
    shadow = np.array([0, 0.07])
    paint_capsule(result, feet - shadow, feet + shadow, 0.015, 0.1, 0.4)
    for start, end, radius, tone in limbs:
        paint_capsule(result, to_frame(start), to_frame(end), radius * body, clothes + tone)
    if rng.random() < 0.5:  # half of them go, or face, to the left
        result = result[..., ::-1]
    noise = rng.standard_normal(result.shape, np.float32)
    return finish(result + np.float32(0.01) * noise)


TASK = Task(SPEC, generate, Forms(kth.PICTURES, kth.VIDEOS))
