"""The ten forecasting tasks: their shapes, their generators and the readers of their published files."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from unistd.messages import shown
from unistd.tasks import bair, cityscapes, enso, human36m, kitti, kth, moving_mnist, sevir, taxibj, traffic4cast
from unistd.tasks.data import SequenceDataset, stream_index
from unistd.tasks.files import DataFileError
from unistd.tasks.readers.forms import Forms
from unistd.tasks.readers.prepared import PreparedReader
from unistd.tasks.spec import TaskSpec, nearest
from unistd.tasks.task import SPLITS, Task

__all__ = [
    "SPLITS",
    "TASKS",
    "DataFileError",
    "Task",
    "TaskSpec",
    "build_dataset",
    "files_found",
    "get_task",
    "task_table",
]

_MODULES = (taxibj, traffic4cast, moving_mnist, bair, human36m, kth, cityscapes, kitti, sevir, enso)


def _with_prepared(task: Task) -> Task:
    """The task as one whose files may have been prepared."""
    return dataclasses.replace(task, reader=Forms(PreparedReader(task.spec.name), task.reader))


TASKS: dict[str, Task] = {module.TASK.spec.name: _with_prepared(module.TASK) for module in _MODULES}

# Samples per epoch of generated data where the caller does not say.
_DEFAULT_LENGTH = {"train": 10_000, "val": 1_000, "test": 1_000}


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
        ValueError: no such task; the message names the nearest one.
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {shown(name)}{nearest(name, list(TASKS))}")
    return TASKS[name]


def build_dataset(
    spec: TaskSpec | str,
    split: str,
    *,
    root: str | Path | None = None,
    length: int | None = None,
    seed: int = 0,
    task: Task | None = None,
) -> Dataset:
    """Map-style dataset of one task: of its files below `root`, or of generated sequences without a root.

    Items are (inputs (Tin, C, H, W), targets (Tout, C, H, W)), float32 in [0, 1]. `dataset.spec` holds the scale that
    was used, `dataset.source` is "generated" or the path that is read.

    Args:
        spec: a `TaskSpec` (of any resolution and frame counts) or the name of a task.
        split: "train", "val" or "test": disjoint, and the same for the same arguments.
        root: folder that holds published files; None: data are generated.
        length: number of samples; of files at most this many, spread evenly. None: all of a file's,
            10,000 (train) or 1,000 (val, test) generated ones.
        seed: of generated sequences.
        task: of the spec; None: the one of that name.

    Raises:
        ValueError: unknown task or split, another number of channels than the task's, or a length or seed that is not
            a whole number >= 1 (seed: >= 0).
        DataFileError: no files of the task there, or such as cannot be read, see `Task.open`.
    """
    if isinstance(spec, str):
        spec = get_task(spec).spec
    task = task or get_task(spec.name)
    task.check(spec)
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}{nearest(split, list(SPLITS))}")
    if length is not None and (not isinstance(length, int) or length < 1):
        raise ValueError(f"length is {length!r}, expected a whole number >= 1 or None")
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed is {seed!r}, expected a whole number >= 0")
    if root is not None:
        return task.open(spec, split, root, length=length, seed=seed)
    return SequenceDataset(
        spec, partial(_generated, spec, split, seed), length or _DEFAULT_LENGTH[split], source="generated"
    )


def files_found(name: str, root: str | Path | None) -> str | None:
    """Path of the files of a task that `build_dataset` would read below `root`, None where there are none.

    Raises:
        DataFileError: no such root, or what lies there is meant as the task's files and is not as published.
    """
    path = get_task(name).find(root)
    return None if path is None else str(path)


def task_table(root: str | Path | None = None, others: Sequence[Task] = ()) -> list[dict[str, str | int]]:
    """One row a task for printing: name, title, discipline, shapes, number of tokens, and where its data come from.

    Args:
        root: folder of real data sets.
        others: tasks beside the ten.

    Raises DataFileError as `files_found` does.
    """
    rows = []
    for task in (*TASKS.values(), *others):
        spec = task.spec
        found = task.find("/" if root is None and task.generator is None else root)
        rows.append(
            {
                "name": spec.name,
                "title": spec.title,
                "discipline": spec.discipline,
                "frame": f"{spec.channels}x{spec.height}x{spec.width}",
                "frames": f"{spec.frames_in} -> {spec.frames_out}",
                "patch": spec.patch,
                "tokens": spec.tokens,
                "source": str(found or ("generated" if root is None else "no files")),
            }
        )
    return rows


def _generated(spec: TaskSpec, split: str, seed: int, index: int) -> np.ndarray:
    return TASKS[spec.name].generate(spec, seed, stream_index(split, index))
