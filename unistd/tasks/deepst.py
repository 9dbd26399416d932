"""Reader of DeepST's HDF5 flow records (TaxiBJ, TaxiNYC, BikeNYC).

A file `<city><year>_..._M<H>x<W>_T<minutes>_....h5` holds `data` (n, 2, H, W), counts of in- and outflow, and `date`
(n,), bytes `yyyymmddSS` with SS the slot of the day: 01..48 for half hours, 01..24 or 00..23 for hours.
Source: DeepST (Zhang et al., AAAI 2017), data description of TaxiBJ.
"""

from __future__ import annotations

import datetime
import math
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from unistd.tasks.data import SequenceDataset, spread
from unistd.tasks.files import DataFileError, FileNames, in_words
from unistd.tasks.hdf5 import Hdf5Array, open_datasets
from unistd.tasks.spec import TaskSpec

_NAME = re.compile(r"_M[0-9]+x[0-9]+_T([0-9]+)_.*\.h5$")
_FILES = FileNames(
    task="taxibj",
    folders=("taxibj",),
    known=_NAME,
    alike=re.compile(r"_M[0-9]+x[0-9]+_|^BJ[0-9]{2}|^taxi_?bj.*\.(h5|hdf5|np[yz])$", re.IGNORECASE),
    expected="names like BJ16_M32x32_T30_InOut.h5",
)
_HELD_OUT_DAYS = 28
_LONGEST_STAMP = 64  # bytes; 10 are used
_BLOCK = 32 << 20  # bytes that are read and checked at once
_SMALLEST_COUNT = 1e-30  # but 0; less is what other bytes look like when they are taken for a number
_LARGEST_COUNT = 1 << 24  # float32 holds each whole number up to it; more in one cell and interval is no count


@dataclass(frozen=True)
class FlowRecord:
    """One file: counts (n, 2, H, W) float32 and slots (n,) int64, the number of the interval since year 1."""

    path: Path
    counts: np.ndarray
    slots: np.ndarray
    slots_a_day: int

    def window_starts(self, frames: int, first: int, last: int) -> np.ndarray:
        """Rows in [first, last - frames] from which `frames` rows follow one another without a break in the dates.

        A break is any step of the dates other than one interval: a gap, a repeated stamp, a jump back.
        """
        broken = np.concatenate([[0], np.cumsum(np.diff(self.slots) != 1)])  # breaks before each row
        starts = np.arange(first, max(first, last - frames + 1))
        return starts[broken[starts] == broken[starts + frames - 1]]


def read_flow_record(path: Path, grid: tuple[int, int] | None = None) -> FlowRecord:
    """Read and check one DeepST file: first what it declares, then the dates, then the counts, block by block.

    Args:
        grid: the H and W that are expected; None: any.

    Raises:
        DataFileError: not a DeepST file name, truncated, without `data` or `date`, of another shape or length, with a
            stamp that is no date, or with counts that are negative, not finite, above 2^24 or,
            but for 0, below 1e-30.
    """
    minutes = int(_name_parts(path)[1])
    if minutes < 1 or 1440 % minutes:
        raise DataFileError(f"{path}: an interval of {minutes} minutes in the name, expected a divisor of 1440")
    counts, stamps = open_datasets(path, "data", "date")
    if len(counts.shape) != 4 or counts.shape[1] != 2 or counts.dtype.kind not in "iuf" or 0 in counts.shape[2:]:
        raise DataFileError(f"{path}: 'data' is {counts.dtype} {in_words(counts.shape)}, expected numbers (n, 2, H, W)")
    if grid is not None and counts.shape[2:] != grid:
        raise DataFileError(
            f"{path}: 'data' has shape {in_words(counts.shape)}, "
            f"expected (n, 2, {grid[0]}, {grid[1]}) as the task's spec"
        )
    if stamps.shape != counts.shape[:1]:
        raise DataFileError(
            f"{path}: 'date' has shape {in_words(stamps.shape)}, expected one for each of the {counts.shape[0]} rows"
        )
    if stamps.dtype.kind == "f" or stamps.dtype.itemsize > _LONGEST_STAMP:
        raise DataFileError(f"{path}: 'date' is of type {stamps.dtype}, expected texts of 10 characters")
    slots = _slots(path, stamps.rows(0, stamps.shape[0]), 1440 // minutes)
    return FlowRecord(path, _counts(counts), slots, 1440 // minutes)


def _counts(stored: Hdf5Array) -> np.ndarray:
    counts = np.empty(stored.shape, np.float32)
    rows = max(1, _BLOCK // (math.prod(stored.shape[1:]) * stored.dtype.itemsize))
    for start in range(0, len(counts), rows):
        block = stored.rows(start, min(start + rows, len(counts)))
        exact = block.astype(np.float64, copy=False)  # in half precision the largest count is infinity
        bad = ~((exact == 0) | (exact >= _SMALLEST_COUNT) & (exact <= _LARGEST_COUNT))  # NaN compares false
        if bad.any():
            row = start + int(bad.any(axis=(1, 2, 3)).argmax())
            raise DataFileError(
                f"{stored.path}: 'data' holds {block[bad][0]} in row {row}, "
                f"expected counts >= 0 and <= {_LARGEST_COUNT}"
            )
        counts[start : start + rows] = block
    return counts


def _name_parts(path: Path) -> re.Match[str]:
    match = _NAME.search(path.name)
    if match is None:
        raise DataFileError(f"{path}: expected a name like BJ16_M32x32_T30_InOut.h5")
    return match


def _slots(path: Path, stamps: np.ndarray, slots_a_day: int) -> np.ndarray:
    slots = np.empty(len(stamps), np.int64)
    for row, stamp in enumerate(stamps):
        text = stamp.decode("ascii", "replace") if isinstance(stamp, bytes) else str(stamp)
        try:
            if not re.fullmatch(r"[0-9]{10}", text) or int(text[8:]) > slots_a_day:
                raise ValueError
            day = datetime.date(int(text[:4]), int(text[4:6]), int(text[6:8])).toordinal()
        except ValueError:
            raise DataFileError(
                f"{path}: 'date' holds {text!r} in row {row}, expected yyyymmdd and a slot up to {slots_a_day}"
            ) from None
        slots[row] = day * slots_a_day + int(text[8:])
    return slots


class DeepSTReader:
    """Windows of all DeepST files of a folder: `<root>/taxibj/*.h5` (in any case of letters) or `<root>/*.h5`.

    Files are put in the order of their first stamp. The last 28 days (DeepST's convention) are the test split and the
    28 days before them the val split, each at most a fifth of all rows; train is the rest. No window crosses a border
    between splits or files, or a break in the dates.

    Counts are divided by the task's scale, or by the largest count in the files where that is larger: `dataset.spec`
    has the scale that was used.
    """

    def find(self, root: Path) -> Path | None:
        """The folder that holds DeepST files; see `FileNames.find`."""
        return _FILES.find(root)

    def open(self, spec: TaskSpec, split: str, root: Path, length: int | None, seed: int) -> Dataset:
        """See `Task.open`; `seed` has no effect."""
        folder = self.find(root)
        records = sorted(
            (read_flow_record(path, (spec.height, spec.width)) for path in _FILES.files_in(folder)),
            key=lambda record: (record.slots[:1] / record.slots_a_day).tolist(),
        )
        for record in records:
            if record.slots_a_day != records[0].slots_a_day:
                raise DataFileError(
                    f"{record.path}: {record.slots_a_day} intervals a day, expected {records[0].slots_a_day} "
                    f"as in {records[0].path.name}"
                )
        frames = spec.frames_in + spec.frames_out
        first, last = _split_rows(split, sum(len(record.slots) for record in records), records[0].slots_a_day)
        windows, begin = [], 0
        for number, record in enumerate(records):
            low, high = max(first - begin, 0), min(last - begin, len(record.slots))
            windows += [(number, int(start)) for start in record.window_starts(frames, low, high)]
            begin += len(record.slots)
        if not windows:
            raise DataFileError(
                f"{folder}: no {frames} rows in a row without a break in the dates in the {split} split "
                f"(rows {first} to {last - 1}), expected at least one window"
            )
        largest = max(float(record.counts.max(initial=0)) for record in records)
        spec = spec.replace(scale=max(spec.scale, largest))
        chosen = [windows[i] for i in spread(len(windows), length)]
        return SequenceDataset(spec, partial(_window, records, chosen, spec.scale, frames), len(chosen), str(folder))


def _split_rows(split: str, rows: int, slots_a_day: int) -> tuple[int, int]:
    """First and one past the last row of a split."""
    held_out = min(_HELD_OUT_DAYS * slots_a_day, rows // 5)
    borders = {"train": (0, rows - 2 * held_out), "val": (rows - 2 * held_out, rows - held_out)}
    return borders.get(split, (rows - held_out, rows))


def _window(
    records: list[FlowRecord], windows: list[tuple[int, int]], scale: float, frames: int, index: int
) -> np.ndarray:
    number, start = windows[index]
    return records[number].counts[start : start + frames] / np.float32(scale)
