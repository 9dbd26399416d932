"""Reader of DeepST's HDF5 flow records (TaxiBJ, TaxiNYC, BikeNYC).

A file `<city><year>_..._M<H>x<W>_T<minutes>_....h5` holds `data` (n, 2, H, W), counts of in- and outflow, and `date`
(n,), bytes `yyyymmddSS` with SS the slot of the day: 01..48 for half hours, 01..24 or 00..23 for hours.
Source: DeepST (Zhang et al., AAAI 2017), data description of TaxiBJ.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from unistd.tasks.files import DataFileError, FileNames, in_words
from unistd.tasks.hdf5 import Hdf5Array, open_datasets
from unistd.tasks.readers.clips import Clip, ClipDataset, cut, every
from unistd.tasks.readers.counts import LARGEST, no_counts
from unistd.tasks.readers.fit import as_stored
from unistd.tasks.readers.index import Arrays, indexed
from unistd.tasks.readers.taxibj import EXPECTED
from unistd.tasks.spec import TaskSpec
from unistd.tasks.task import SPLITS

_NAME = re.compile(r"_M[0-9]+x[0-9]+_T([0-9]+)_.*\.h5$")
_FILES = FileNames(
    task="taxibj",
    folders=("taxibj",),
    known=_NAME,
    alike=re.compile(r"_M[0-9]+x[0-9]+_|^BJ[0-9]{2}|^taxi_?bj.*\.(h5|hdf5|np[yz])$", re.IGNORECASE),
    expected=EXPECTED,
)
_HELD_OUT_DAYS = 28
_LONGEST_STAMP = 64  # bytes; 10 are used
_BLOCK = 32 << 20  # bytes that are read and checked at once
_LARGEST_KEPT = 256 << 20  # bytes of all counts as float32; more are read as they are needed


@dataclass(frozen=True)
class FlowRecord:
    """One file.

    Args:
        counts: (n, 2, H, W), in memory as float32, or in the file.
        largest: the largest count of each row, (n,).
        slots: (n,) int64, the number of the interval since year 1.
    """

    path: Path
    counts: np.ndarray | Hdf5Array
    largest: np.ndarray
    slots: np.ndarray
    slots_a_day: int

    def unbroken(self, first: int, last: int) -> list[tuple[int, int]]:
        """The longest ranges of rows within [first, last) in which each date is one interval after the one before.

        A break is any other step: a gap, a repeated stamp, a jump back.
        """
        breaks = 1 + first + np.flatnonzero(np.diff(self.slots[first:last]) != 1)
        borders = [first, *breaks.tolist(), last]
        return [(begin, end) for begin, end in pairwise(borders) if begin < end]

    def clip(self, first: int, last: int) -> Clip:
        """Rows [first, last), which are unbroken."""
        return Clip(
            f"{self.path} (rows {first} to {last - 1})",
            last - first,
            partial(_rows, self.counts, first),
            partial(_part, self.slots, first, last),
        )


def read_flow_record(path: Path, grid: tuple[int, int] | None = None, room: int = _LARGEST_KEPT) -> FlowRecord:
    """Read and check one DeepST file: first what it declares, then the dates, then the counts, block by block.

    Args:
        grid: the H and W that are expected; None: any.
        room: bytes of memory for the counts; where they take more, they stay in the file.

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
    if math.prod(counts.shape) * np.dtype(np.float32).itemsize <= room:
        values = np.empty(counts.shape, np.float32)
        for start, block in _blocks(counts):
            values[start : start + len(block)] = block
        held, largest = values, values.max(axis=(1, 2, 3))
    else:
        made = indexed("deepst-1", [(path, counts.stamp)], partial(_largest, counts))
        held, largest = counts, made["largest"]
    return FlowRecord(path, held, largest, slots, 1440 // minutes)


def _blocks(stored: Hdf5Array) -> Iterator[tuple[int, np.ndarray]]:
    """All counts, some rows at a time, checked, as float32: first row, and the rows."""
    rows = max(1, _BLOCK // (math.prod(stored.shape[1:]) * stored.dtype.itemsize))
    for start in range(0, stored.shape[0], rows):
        block = stored.rows(start, min(start + rows, stored.shape[0]))
        bad = no_counts(block)
        if bad.any():
            row = start + int(bad.any(axis=(1, 2, 3)).argmax())
            raise DataFileError(
                f"{stored.path}: 'data' holds {block[bad][0]} in row {row}, expected counts >= 0 and <= {LARGEST}"
            )
        yield start, block.astype(np.float32)


def _largest(stored: Hdf5Array) -> Arrays:
    return {"largest": np.concatenate([np.empty(0), *(block.max(axis=(1, 2, 3)) for _, block in _blocks(stored))])}


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
    between splits or files, or a break in the dates, and none of train has a date that another split has as well.

    Counts are divided by the task's scale, or by the largest count of the train split where that is larger.
    """

    def find(self, root: Path) -> Path | None:
        """The folder that holds DeepST files; see `FileNames.find`."""
        return _FILES.find(root)

    def open(self, spec: TaskSpec, split: str, root: Path, length: int | None, seed: int) -> ClipDataset:
        """See `Task.open`; `seed` has no effect."""
        folder = self.find(root)
        records = _records(folder, (spec.height, spec.width))
        parts = _parts(records)
        largest = max((float(record.largest[rows].max(initial=0)) for record, rows in parts["train"]), default=0.0)
        spec = spec.replace(scale=max(spec.scale, largest))
        data = {name: _dataset(spec, parts[name], folder) for name in SPLITS}
        if not len(data[split]):
            frames = spec.frames_in + spec.frames_out
            raise DataFileError(
                f"{folder}: no {frames} rows in a row without a break in the dates in the {split} split "
                f"({sum(rows.stop - rows.start for _, rows in parts[split])} rows), expected at least one window"
            )
        later = SPLITS[SPLITS.index(split) + 1 :]
        return data[split].apart(*(data[name] for name in later)).limited(length)


def _records(folder: Path, grid: tuple[int, int]) -> list[FlowRecord]:
    records, room = [], _LARGEST_KEPT
    for path in _FILES.files_in(folder):
        records.append(read_flow_record(path, grid, room))
        room -= getattr(records[-1].counts, "nbytes", 0)
    for record in records:
        if record.slots_a_day != records[0].slots_a_day:
            raise DataFileError(
                f"{record.path}: {record.slots_a_day} intervals a day, expected {records[0].slots_a_day} "
                f"as in {records[0].path.name}"
            )
    return sorted(records, key=lambda record: record.slots[:1].tolist())


def _parts(records: list[FlowRecord]) -> dict[str, list[tuple[FlowRecord, slice]]]:
    """Which rows of which records belong to each split."""
    rows = sum(len(record.slots) for record in records)
    held_out = min(_HELD_OUT_DAYS * records[0].slots_a_day, rows // 5)
    borders = (0, rows - 2 * held_out, rows - held_out, rows)
    parts: dict[str, list[tuple[FlowRecord, slice]]] = {split: [] for split in SPLITS}
    for split, (first, last) in zip(SPLITS, pairwise(borders), strict=True):
        begin = 0
        for record in records:
            end = begin + len(record.slots)
            low, high = max(first, begin) - begin, min(last, end) - begin
            if low < high:
                parts[split].append((record, slice(low, high)))
            begin = end
    return parts


def _dataset(spec: TaskSpec, part: list[tuple[FlowRecord, slice]], folder: Path) -> ClipDataset:
    runs = [(record, run) for record, rows in part for run in record.unbroken(rows.start, rows.stop)]
    clips = [record.clip(*run) for record, run in runs]
    breaks = len(runs) - len(part)
    notes = (f"breaks in the dates: {breaks}",) if breaks else ()
    windows = cut(clips, spec.frames_in + spec.frames_out, every(1))
    return ClipDataset(spec, clips, windows, str(folder), as_stored, notes)


def _rows(counts: np.ndarray | Hdf5Array, begin: int, rows: np.ndarray) -> np.ndarray:
    if isinstance(counts, np.ndarray):
        return counts[begin + rows]
    first, last = int(rows[0]), int(rows[-1])
    return counts.rows(begin + first, begin + last + 1)[rows - first].astype(np.float32, copy=False)


def _part(slots: np.ndarray, first: int, last: int) -> np.ndarray:
    return slots[first:last]
