"""Variables of netCDF files and zarr stores, read through xarray; scale, offset and fill values as it decodes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unistd.tasks.files import DataFileError
from unistd.tasks.guarded import GuardedProcess
from unistd.tasks.own.description import OwnTask
from unistd.tasks.own.records import Record, check_frame

_process = GuardedProcess(Path(__file__).parents[1] / "xarray_process.py", "netCDF")


@dataclass(frozen=True)
class _Store:
    """The variables of a file or store that make up frames of `shape` (C, h, w)."""

    path: Path
    request: dict
    shape: tuple[int, ...]
    dtype: np.dtype

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """rows (n,) -> (n, C, h, w)."""
        _, frames = _process.ask(
            self.path, {**self.request, "rows": rows.tolist()}, (len(rows), *self.shape), self.dtype
        )
        return frames


def records(paths: Sequence[Path], root: Path, task: OwnTask) -> list[Record]:
    """See `records_of`."""
    found = []
    for path in paths:
        request = {"variables": task.variables, "time": task.time, "axes": task.axes}
        if not path.exists():
            raise DataFileError(f"{path}: no such file")
        about, _ = _process.ask(path, request)
        frames, *shape = about["shape"]
        dtype = np.dtype(about["dtype"])
        check_frame(path, shape, dtype.itemsize)
        _, times = _process.ask(path, {**request, "times": True}, (frames,), np.dtype(np.float64))
        read = _Store(path, request, tuple(shape), dtype)
        found.append(Record(path, str(path), times, about["dated"], read, [path]))
    return found
