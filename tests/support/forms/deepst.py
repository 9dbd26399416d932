"""A small DeepST file."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from torch.utils.data import Dataset

from unistd.tasks import TaskSpec, build_dataset, get_task

FLOW = get_task("taxibj").spec.replace(height=4, width=4, patch=2)
H5 = "BJ15_M4x4_T30_InOut.h5"
ROWS = 60
COUNTS = np.random.default_rng(0).poisson(50, (ROWS, 2, 4, 4)).astype(np.float64)
DATES = np.array([f"2015010{1 + row // 48}{row % 48 + 1:02d}".encode() for row in range(ROWS)])


def write_h5(path: Path, edit: Callable[[h5py.File], object] = lambda file: None, **layout: object) -> Path:
    """COUNTS and DATES as a file, the counts in that layout; then `edit`."""
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=COUNTS, **layout)
        file["date"] = DATES
        edit(file)
    return path


def read(root: Path, spec: TaskSpec = FLOW, split: str = "train") -> Dataset:
    """The data set of a task from the files below `root`."""
    return build_dataset(spec, split, root=root)
