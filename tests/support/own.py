"""Data sets of tasks of one's own, as a config makes them."""

from pathlib import Path

import numpy as np

from unistd.tasks import build_dataset
from unistd.tasks.own import OwnTask, complete, own_task


def described(root: Path, **keys: object) -> OwnTask:
    """The description, complete."""
    defaults = {"frames_in": 2, "frames_out": 2}
    return complete(OwnTask.model_validate(defaults | keys), root)


def split_of(root: Path, split: str = "train", **keys: object):
    """A split of the task `mine`."""
    task = own_task("mine", described(root, **keys))
    return build_dataset(task.spec, split, root=root, task=task)


def values(sample, spec) -> np.ndarray:
    """A sample (T, C, H, W) in the values of its file."""
    frames = np.concatenate([part.numpy() for part in sample])
    return frames * np.float32(spec.scale) + np.float32(spec.offset)


def all_frames(root: Path, **keys: object) -> np.ndarray:
    """The frames (n, C, H, W) of all samples of all splits, in the order of time, where samples do not overlap."""
    found = []
    for split in ("train", "val", "test"):
        data = split_of(root, split, **({"stride": 4} | keys))
        found += [values(data[index], data.spec) for index in range(len(data))]
    return np.concatenate(found)
