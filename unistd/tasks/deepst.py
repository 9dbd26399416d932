"""Reader of DeepST's HDF5 flow records (TaxiBJ, TaxiNYC, BikeNYC).

A file `<city><year>_..._M<H>x<W>_T<minutes>_....h5` holds `data` (n, 2, H, W), counts of in- and outflow, and `date`
(n,), bytes `yyyymmddSS` with SS the slot of the day: 01..48 for half hours, 01..24 or 00..23 for hours.
Source: DeepST (Zhang et al., AAAI 2017), data description of TaxiBJ.
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import h5py
import numpy as np
from torch.utils.data import Dataset

from unistd.tasks.data import SequenceDataset, spread
from unistd.tasks.spec import TaskSpec
from unistd.tasks.task import DataFileError

_FOLDERS = ("taxibj", "TaxiBJ", "")
_NAME = re.compile(r"_M\d+x\d+_T(\d+)_.*\.h5$")
_HELD_OUT_DAYS = 28


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


def read_flow_record(path: Path) -> FlowRecord:
    """Read and check one DeepST file.

    Raises:
        DataFileError: not a DeepST file name, truncated, without `data` or `date`, of another shape or length, with a
            stamp that is no date, or with counts that are negative or not finite.
    """
    minutes = int(_name_parts(path)[1])
    if minutes < 1 or 1440 % minutes:
        raise DataFileError(f"{path}: an interval of {minutes} minutes in the name, expected a divisor of 1440")
    try:
        with h5py.File(path) as file:
            arrays = {key: file[key][()] for key in ("data", "date") if isinstance(file.get(key), h5py.Dataset)}
            found = sorted(file)
    except (OSError, RuntimeError, KeyError) as error:  # h5py raises any of these, depending on which part is damaged
        raise DataFileError(f"{path}: not a readable HDF5 file ({' '.join(str(error).split())})") from error
    if len(arrays) < 2:
        raise DataFileError(f"{path}: found keys {found}, expected data sets 'data' and 'date'")
    counts, stamps = np.asarray(arrays["data"]), np.asarray(arrays["date"])
    if counts.ndim != 4 or counts.shape[1] != 2 or counts.dtype.kind not in "iuf":
        raise DataFileError(f"{path}: 'data' is {counts.dtype} {counts.shape}, expected numbers (n, 2, H, W)")
    counts = counts.astype(np.float32)
    if stamps.shape != (len(counts),):
        raise DataFileError(f"{path}: 'date' has shape {stamps.shape}, expected one for each of the {len(counts)} rows")
    bad = ~np.isfinite(counts).all(axis=(1, 2, 3)) | (counts.min(axis=(1, 2, 3), initial=0) < 0)
    if bad.any():
        row = int(bad.argmax())
        values = counts[row]
        value = values[~np.isfinite(values) | (values < 0)][0]
        raise DataFileError(f"{path}: 'data' holds {value} in row {row}, expected counts >= 0")
    return FlowRecord(path, counts, _slots(path, stamps, 1440 // minutes), 1440 // minutes)


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
            if not re.fullmatch(r"\d{10}", text) or int(text[8:]) > slots_a_day:
                raise ValueError
            day = datetime.date(int(text[:4]), int(text[4:6]), int(text[6:8])).toordinal()
        except ValueError:
            raise DataFileError(
                f"{path}: 'date' holds {text!r} in row {row}, expected yyyymmdd and a slot up to {slots_a_day}"
            ) from None
        slots[row] = day * slots_a_day + int(text[8:])
    return slots


class DeepSTReader:
    """Windows of all DeepST files of a folder: `<root>/taxibj/*.h5`, `<root>/TaxiBJ/*.h5` or `<root>/*.h5`.

    Files are put in the order of their first stamp. The last 28 days (DeepST's convention) are the test split and the
    28 days before them the val split, each at most a fifth of all rows; train is the rest. No window crosses a border
    between splits or files, or a break in the dates.

    Counts are divided by the task's scale, or by the largest count in the files where that is larger: `dataset.spec`
    has the scale that was used.
    """

    def find(self, root: Path) -> Path | None:
        """The first of the folders that holds DeepST files."""
        return next((root / folder for folder in _FOLDERS if _files(root / folder)), None)

    def open(self, spec: TaskSpec, split: str, root: Path, length: int | None, seed: int) -> Dataset:
        """See `Task.open`; `seed` has no effect."""
        folder = self.find(root)
        records = sorted(
            (read_flow_record(path) for path in _files(folder)),
            key=lambda record: (record.slots[:1] / record.slots_a_day).tolist(),
        )
        for record in records:
            if record.counts.shape[1:] != (spec.channels, spec.height, spec.width):
                raise DataFileError(
                    f"{record.path}: 'data' has shape {record.counts.shape}, "
                    f"expected (n, {spec.channels}, {spec.height}, {spec.width}) as the task's spec"
                )
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


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.h5") if _NAME.search(path.name))


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
