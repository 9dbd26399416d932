"""Data sets of HDF5 files, with a data set of stamps beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unistd.tasks.files import DataFileError, in_words
from unistd.tasks.hdf5 import Hdf5Array, open_datasets
from unistd.tasks.own.description import OwnTask
from unistd.tasks.own.forms.arrays import array_records, axes_of
from unistd.tasks.own.records import Record
from unistd.tasks.own.times import dates_of


def records(paths: Sequence[Path], root: Path, task: OwnTask) -> list[Record]:
    """See `records_of`."""
    if task.variable is None:
        raise DataFileError(f"{paths[0]}: variable is null, expected the name of a data set of the file")
    found = []
    for path in paths:
        *arrays, last = open_datasets(path, *task.variables, *([] if task.time is None else [task.time]))
        arrays, stamps = ([*arrays, last], None) if task.time is None else (arrays, last)
        axes = axes_of(path, repr(task.variables[0]), arrays[0].shape, task.axes)
        times, dated = (None, False) if stamps is None else times_of(stamps, arrays[0].shape[axes.index("t")])
        found += array_records(path, arrays, axes, times, dated)
    return found


def times_of(stamps: Hdf5Array, frames: int) -> tuple[np.ndarray, bool]:
    """Stamps of a file as times, and whether they are dates: texts and whole numbers YYYYMMDD to YYYYMMDDhhmmss, else
    numbers as they are.

    Raises:
        DataFileError: not one for each frame, or neither dates nor numbers.
    """
    what = f"{stamps.path}: {stamps.key!r}"
    if stamps.shape != (frames,):
        raise DataFileError(f"{what} has shape {in_words(stamps.shape)}, expected one for each of the {frames} frames")
    values = stamps.rows(0, frames)
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise DataFileError(
                f"{what} holds NaN or Inf in row {int((~np.isfinite(values)).argmax())}, expected times"
            )
        return values.astype(np.float64), False
    texts = [value.decode("ascii", "replace") if isinstance(value, bytes) else str(value) for value in values.tolist()]
    dates = dates_of(texts)
    if dates is not None:
        return dates, True
    if values.dtype.kind in "iu":
        return values.astype(np.float64), False
    wrong = next((row for row, text in enumerate(texts) if dates_of([text]) is None), 0)
    raise DataFileError(
        f"{what} holds {in_words(texts[wrong])} in row {wrong}, expected dates YYYYMMDD to YYYYMMDDhhmmss"
    )
