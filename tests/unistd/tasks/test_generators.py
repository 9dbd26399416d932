"""The ten generators: deterministic, any size, learnable but not trivial, and ten different worlds."""

from functools import cache

import numpy as np
import pytest

from unistd.tasks import TASKS, build_dataset

NAMES = list(TASKS)
SIDE = 32


def small(name):
    """The task's spec at a height of 32 pixels."""
    spec = TASKS[name].spec
    return spec.replace(height=SIDE, width=round(spec.width * SIDE / spec.height), patch=1)


@cache
def sequences(name, split, count):
    """Inputs (n, Tin, C, H, W) and targets (n, Tout, C, H, W)."""
    data = build_dataset(small(name), split, length=count)
    inputs, targets = zip(*(data[i] for i in range(count)), strict=True)
    return np.stack(inputs), np.stack(targets)


def neighbourhoods(inputs, radius):
    """Each pixel's surroundings in the given frames: (n, T, C, H, W) -> (n * H * W, features + 1)."""
    n, _, _, h, w = inputs.shape
    frames = inputs.reshape(n, -1, h, w)
    padded = np.pad(frames, ((0, 0), (0, 0), (radius, radius), (radius, radius)), mode="edge")
    side = 2 * radius + 1
    patches = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(2, 3))
    features = patches.transpose(0, 2, 3, 1, 4, 5).reshape(n * h * w, -1).astype(np.float64)
    return np.concatenate([features, np.ones((len(features), 1))], axis=1)


def by_pixel(frames):
    """(n, T, C, H, W) -> (n * H * W, T * C)."""
    n, t, c, h, w = frames.shape
    return frames.transpose(0, 3, 4, 1, 2).reshape(n * h * w, t * c).astype(np.float64)


def fit(inputs, change, radius):
    """Ridge regression of the change since the last frame on each pixel's surroundings."""
    x = neighbourhoods(inputs, radius)
    ridge = 1e-6 * len(x) * np.eye(x.shape[1])
    return np.linalg.solve(x.T @ x + ridge, x.T @ by_pixel(change))


@pytest.mark.parametrize("name", NAMES)
def test_shape_range_and_determinism(name):
    task = TASKS[name]
    # No multiple of anything, a frame count of its own, taller than wide.
    spec = task.spec.replace(height=30, width=22, patch=2, frames_in=3, frames_out=4)
    frames = task.generate(spec, 5, 9)
    assert frames.shape == (7, spec.channels, 30, 22)
    assert frames.dtype == np.float32
    assert frames.flags.c_contiguous
    assert np.isfinite(frames).all()
    assert frames.min() >= 0
    assert frames.max() <= 1
    assert np.array_equal(frames, task.generate(spec, 5, 9))
    assert not np.array_equal(frames, task.generate(spec, 5, 10))
    assert not np.array_equal(frames, task.generate(spec, 6, 9))


@pytest.mark.parametrize("name", NAMES)
def test_published_resolution(name):
    spec = TASKS[name].spec
    frames = TASKS[name].generate(spec, 0, 0)
    assert frames.shape == (spec.frames_in + spec.frames_out, *spec.input_shape[1:])


@pytest.mark.parametrize("name", NAMES)
def test_repeating_the_last_frame_is_beatable_and_far_from_perfect(name):
    """A local linear forecast, fitted on 32 sequences, beats "repeat the last frame" on 16 held out by a tenth or more;
    and what repeating misses is at least a tenth of the frames' variance."""
    last = slice(None) if name == "taxibj" else slice(-3, None)
    inputs, targets = sequences(name, "train", 32)
    weights = fit(inputs[:, last], targets - inputs[:, -1:], radius=2)
    inputs, targets = sequences(name, "test", 16)
    missed = by_pixel(targets - inputs[:, -1:])
    repeat = (missed**2).mean()
    linear = ((missed - neighbourhoods(inputs[:, last], 2) @ weights) ** 2).mean()
    assert repeat > 0.1 * targets.var()
    assert linear < 0.9 * repeat


@pytest.mark.parametrize(
    "group", [("moving_mnist", "kth", "sevir", "enso"), ("bair", "human36m", "cityscapes", "kitti")]
)
def test_each_task_moves_in_a_way_of_its_own(group):
    """Of the forecasts fitted to tasks of equally many channels, each task's own serves it best."""

    def common(name, split, count):
        inputs, targets = sequences(name, split, count)
        return inputs[:, -2:], (targets - inputs[:, -1:])[:, :4]

    weights = {name: fit(*common(name, "train", 32), radius=1) for name in group}
    for name in group:
        inputs, change = common(name, "test", 16)
        x, y = neighbourhoods(inputs, 1), by_pixel(change)
        error = {other: ((x @ weights[other] - y) ** 2).mean() for other in group}
        assert min(error, key=error.get) == name, error


def test_traffic4cast_is_zero_off_the_roads():
    frames, _ = sequences("traffic4cast", "train", 32)
    never = (frames == 0).all(axis=(0, 1))  # (8, H, W)
    assert never.mean() > 0.4
    assert (frames[:, :, :, ~never.all(axis=0)] > 0).any(axis=(0, 1, 3)).all()  # every channel has traffic


def test_enso_has_no_anomaly_over_land():
    spec = TASKS["enso"].spec
    anomaly = TASKS["enso"].generate(spec, 0, 3) * spec.scale + spec.offset
    longitude, latitude = np.linspace(95, 330, 48), np.linspace(60, -55, 24)
    australia = np.abs(latitude + 25).argmin(), np.abs(longitude - 133).argmin()
    pacific = np.abs(latitude).argmin(), np.abs(longitude - 240).argmin()
    assert np.abs(anomaly[:, 0, *australia]).max() < 1e-5
    assert np.abs(anomaly[:, 0, *pacific]).max() > 0.3


def test_taxibj_has_quiet_hours():
    inputs, targets = sequences("taxibj", "train", 32)
    level = np.concatenate([inputs, targets], axis=1).mean(axis=(2, 3, 4))
    assert level.min() < 0.25 * level.max()
