"""Reader of ICAR-ENSO: simulations of the sea-surface temperature, as netCDF.

`CMIP_train.nc` holds `sst` (rows, 36, lat, lon), anomalies in degC: row after row is the next year of a run of a model
and the two years that follow, so that all but the first twelve months of a row are in the next row again. A run ends
where they are not; of the 4,645 rows of the release it is known where (15 runs of CMIP6, 17 of CMIP5).

The last run is the test split, the one before it val, train all others; windows start every month. Longitudes 95 to 330
degrees east are taken. The scale is the task's, or wider where the train split goes beyond it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from unistd.tasks.files import DataFileError, FileNames, in_words
from unistd.tasks.hdf5 import Hdf5Array
from unistd.tasks.netcdf import open_variables
from unistd.tasks.npy import NpyArray
from unistd.tasks.readers.clips import Clip, ClipDataset, content_id, cut, every
from unistd.tasks.readers.fit import as_stored
from unistd.tasks.readers.index import Arrays, indexed
from unistd.tasks.spec import TaskSpec
from unistd.tasks.task import SPLITS

_FILES = FileNames(
    task="enso",
    folders=("enso", "icar_enso", "icar-enso", "enso_round1_train_20210201"),
    known=re.compile(r"^CMIP_train\.nc$"),
    alike=re.compile(r"^cmip.?train", re.IGNORECASE),
    expected="CMIP_train.nc",
)
_LABELS = "CMIP_label.nc"
_PUBLISHED = ((15, 151), (17, 140))  # runs, and rows of each
_YEAR = 12
_WEST, _EAST = 95.0, 330.0  # degrees
_LARGEST = 100.0  # degC; more is what fill values look like
_SAME = 1e-4  # degC
_BLOCK = 32 << 20  # bytes that are looked at at once


@dataclass(frozen=True)
class _Record:
    """`sst` of a file, the longitudes and the order of latitudes that are taken of it, south to north."""

    sst: NpyArray | Hdf5Array
    columns: slice
    south_first: bool

    def rows(self, start: int, stop: int) -> np.ndarray:
        """(stop - start, months, lat, lon) float32; raises DataFileError for what is no anomaly in degC."""
        values = self.sst.rows(start, stop)[..., self.columns].astype(np.float32)
        good = np.abs(values) <= _LARGEST  # NaN is not
        if not good.all():
            row = start + int((~good).any(axis=(1, 2, 3)).argmax())
            raise DataFileError(
                f"{self.sst.path}: 'sst' holds {values[~good][0]} in row {row}, expected anomalies in degC, at most "
                f"{_LARGEST:g}"
            )
        return values if self.south_first else values[:, :, ::-1]


@dataclass(frozen=True)
class _Run:
    """Rows [first, last) of a record, month after month. The index holds what stands for each row's months."""

    record: _Record
    first: int
    last: int
    ids: np.ndarray  # (last - first, months of a row)

    @property
    def months(self) -> int:
        """How many there are of it."""
        return (self.last - self.first - 1) * _YEAR + self.ids.shape[1]

    def clip(self) -> Clip:
        """All of it."""
        name = f"{self.record.sst.path}: rows {self.first} to {self.last - 1}"
        return Clip(name, self.months, self.read, self.month_ids)

    def place(self, months: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Months of the run -> rows of it, and months in those."""
        rows = np.minimum(months // _YEAR, self.last - self.first - 1)
        return rows, months - _YEAR * rows

    def read(self, months: np.ndarray) -> np.ndarray:
        """Frames (n, 1, lat, lon) float32."""
        rows, columns = self.place(months)
        begin = int(rows[0])
        values = self.record.rows(self.first + begin, self.first + int(rows[-1]) + 1)
        return values[rows - begin, columns][:, None]

    def month_ids(self) -> np.ndarray:
        """What stands for the content of each month, int64."""
        return self.ids[self.place(np.arange(self.months))]


class EnsoReader:
    """Windows of `<root>/enso/CMIP_train.nc`, `<root>/enso_round1_train_20210201/CMIP_train.nc` or one in the root."""

    def find(self, root: Path) -> Path | None:
        """The folder of the file; see `FileNames.find`."""
        return _FILES.find(root)

    def open(self, spec: TaskSpec, split: str, root: Path, length: int | None, seed: int) -> ClipDataset:
        """See `Task.open`; `seed` has no effect."""
        folder = self.find(root)
        record = _open(folder / "CMIP_train.nc")
        _check_labels(folder / _LABELS, record.sst.shape[:2])
        path, stamp = record.sst.path, record.sst.stamp
        index = indexed("enso-1", [(path, stamp)], partial(_look_over, record))
        runs = _runs(record, index)
        if len(runs) < len(SPLITS):
            raise DataFileError(
                f"{path}: {len(runs)} runs of models, expected at least {len(SPLITS)}, one of each split"
            )
        parts = {"train": runs[:-2], "val": runs[-2:-1], "test": runs[-1:]}
        last = runs[-2].first
        low, high = float(index["low"][:last].min()), float(index["high"][:last].max())
        if low < spec.offset or high > spec.offset + spec.scale:
            coldest = min(spec.offset, low)
            spec = spec.replace(offset=coldest, scale=max(spec.offset + spec.scale, high) - coldest)
        data = {name: _dataset(spec, folder, parts[name]) for name in SPLITS}
        if not len(data[split]):
            raise DataFileError(
                f"{data[split].clips[0].name}: {data[split].clips[0].frames} months, expected at least "
                f"{spec.frames_in + spec.frames_out}"
            )
        later = SPLITS[SPLITS.index(split) + 1 :]
        return data[split].apart(*(data[name] for name in later)).limited(length)


def _dataset(spec: TaskSpec, folder: Path, runs: list[_Run]) -> ClipDataset:
    clips = [run.clip() for run in runs]
    windows = cut(clips, spec.frames_in + spec.frames_out, every(1))
    note = f"{len(runs)} runs of models"
    return ClipDataset(spec, clips, windows, str(folder), as_stored, (note,))


def _open(path: Path) -> _Record:
    sst, lat, lon = open_variables(path, "sst", "lat", "lon")
    for name, variable in (("sst", sst), ("lat", lat), ("lon", lon)):
        if variable is None:
            raise DataFileError(f"{path}: no variable {name!r}, expected sst (rows, months, lat, lon), lat and lon")
    if sst.dtype.kind != "f" or len(sst.shape) != 4 or 0 in sst.shape or sst.shape[1] % _YEAR:
        raise DataFileError(
            f"{path}: 'sst' is {sst.dtype} {in_words(sst.shape)}, expected float (rows, months, lat, lon) of whole"
            " years"
        )
    places = []
    for name, variable, side in (("lat", lat, sst.shape[2]), ("lon", lon, sst.shape[3])):
        if variable.shape != (side,) or variable.dtype.kind not in "iuf":
            raise DataFileError(
                f"{path}: {name!r} is {variable.dtype} {in_words(variable.shape)}, expected degrees of {side} cells"
            )
        places.append(variable.rows(0, side).astype(np.float64))
        steps = np.diff(places[-1])
        if not (np.isfinite(places[-1]).all() and ((steps > 0).all() or ((steps < 0).all() and name == "lat"))):
            raise DataFileError(f"{path}: {name!r} holds {in_words(places[-1].tolist())}, expected degrees in order")
    inside = np.flatnonzero((places[1] >= _WEST) & (places[1] <= _EAST))
    if not len(inside):
        raise DataFileError(f"{path}: no 'lon' from {_WEST:g} to {_EAST:g}, expected some")
    return _Record(sst, slice(int(inside[0]), int(inside[-1]) + 1), bool(places[0][0] <= places[0][-1]))


def _check_labels(path: Path, shape: tuple[int, ...]) -> None:
    """Raises DataFileError for labels that do not belong to the rows; the index of the Pacific is in `sst` as well."""
    if not (path.exists() or path.is_symlink()):
        return
    (nino,) = open_variables(path, "nino")
    if nino is None or nino.shape != shape or nino.dtype.kind != "f":
        found = "no variable 'nino'" if nino is None else f"'nino' is {nino.dtype} {in_words(nino.shape)}"
        raise DataFileError(f"{path}: {found}, expected float {in_words(tuple(shape))} as 'sst'")
    if not np.isfinite(nino.rows(0, shape[0])).all():
        raise DataFileError(f"{path}: 'nino' holds NaN or Inf, expected numbers")


def _look_over(record: _Record) -> Arrays:
    """Of every row: ids of its months, whether it goes on with the row before, and how far it goes down and up."""
    rows, months = record.sst.shape[:2]
    record.rows(rows - 1, rows)  # rows that are only declared are told of before there is room for them
    ids, joined = np.empty((rows, months), np.int64), np.zeros(rows, bool)
    low, high = np.empty(rows, np.float32), np.empty(rows, np.float32)
    before = None
    step = max(1, _BLOCK // (math.prod(record.sst.shape[1:]) * record.sst.dtype.itemsize))
    for begin in range(0, rows, step):
        values = record.rows(begin, min(begin + step, rows))
        part = slice(begin, begin + len(values))
        ids[part] = [[content_id(np.ascontiguousarray(month).tobytes()) for month in row] for row in values]
        low[part], high[part] = values.min(axis=(1, 2, 3)), values.max(axis=(1, 2, 3))
        previous = values[:-1] if before is None else np.concatenate([before, values[:-1]])
        following = values[1:] if before is None else values
        same = np.abs(previous[:, _YEAR:] - following[:, :-_YEAR]) <= _SAME
        joined[part.stop - len(following) : part.stop] = same.all(axis=(1, 2, 3)) & (months > _YEAR)
        before = values[-1:]
    return {"ids": ids, "joined": joined, "low": low, "high": high}


def _runs(record: _Record, index: Arrays) -> list[_Run]:
    rows = record.sst.shape[0]
    lengths = [length for runs, length in _PUBLISHED for _ in range(runs)]
    firsts = np.cumsum([0, *lengths[:-1]]) if rows == sum(lengths) else np.flatnonzero(~index["joined"])
    return [
        _Run(record, first, last, index["ids"][first:last])
        for first, last in zip(firsts.tolist(), [*firsts[1:].tolist(), rows], strict=True)
    ]
