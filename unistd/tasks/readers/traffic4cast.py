"""Reader of Traffic4cast 2021: an HDF5 file for each day of a city.

`<root>/<CITY>/training/<YYYY-MM-DD>_<CITY>_8ch.h5` holds `array` (T, H, W, 8) uint8, T = 288 intervals of 5 minutes;
channels are volume and speed in turn for NE, NW, SE, SW. The release's files of static maps and of the contest's test
are not read: the latter are inputs without what followed. Where `index.txt`, the release's own list of its files, lies
beside the cities, it says which days of a city there are: then a part of the release is split as the whole.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from unistd.tasks.files import DataFileError, Stamp, in_words, list_folder, open_file, stamp_of
from unistd.tasks.hdf5 import Hdf5Array, open_datasets
from unistd.tasks.readers.clips import Clip, ClipDataset, cut, every, file_id
from unistd.tasks.readers.fit import centre_crop
from unistd.tasks.readers.index import indexed
from unistd.tasks.readers.splits import TreeReader
from unistd.tasks.readers.tree import Tree, files_of, has
from unistd.tasks.spec import TaskSpec
from unistd.tasks.task import SPLITS

_EXPECTED = "CITY/training/YYYY-MM-DD_CITY_8ch.h5"
_DAY = re.compile(r"^([0-9]{4}-[0-9]{2}-[0-9]{2})_(.+)_8ch\.h5$")
_ALIKE = re.compile(r"8ch|\.(h5|hdf5)(\.|$)", re.IGNORECASE)
_STRIDE = 10  # intervals between windows, PredBench's
_INDEX, _LARGEST_INDEX = "index.txt", 1 << 22
_HELD_OUT = 10  # one day of so many


def _days_of(top: Path) -> dict[str, list[Path]]:
    """City -> its files, by date."""
    days = {}
    for city in _cities(top):
        paths = files_of(top / city / "training", _DAY, _ALIKE, f"names like 2019-01-02_{city}_8ch.h5")
        for path in paths:
            date, named = _DAY.fullmatch(path.name).groups()
            try:
                datetime.date.fromisoformat(date)
            except ValueError:
                raise DataFileError(f"{path}: {date} is no date, expected one of the calendar") from None
            if named != city:
                raise DataFileError(f"{path}: a day of {named} by its name, expected one of {city}, as the folder")
        days[city] = paths
    return days


def _cities(top: Path) -> Iterator[str]:
    return (name for name in list_folder(top) if has(top / name / "training", _DAY))


def _released(top: Path) -> set[str]:
    """Names of the days' files that the release's index lists; none where there is no index.

    Raises DataFileError for an index without any: it is another file.
    """
    if _INDEX not in list_folder(top):
        return set()
    with open_file(top / _INDEX) as file:
        lines = file.read(_LARGEST_INDEX).decode("utf-8", "replace").splitlines()
    names = {name for name in (line.strip().rpartition("/")[2] for line in lines) if _DAY.fullmatch(name)}
    if not names:
        raise DataFileError(f"{top / _INDEX}: lists no day, expected lines like {_EXPECTED}")
    return names


def _part(days: list[Path], split: str, released: set[str]) -> list[Path]:
    """Those of a city's days that are of a split: the last tenth test, the tenth before it val; of fewer than 3, none.

    Whole days: windows of two splits never overlap. The tenths are those of the city's days in the release, where its
    index lists them all.
    """
    names = [path.name for path in days]
    if released.issuperset(names):
        (city,) = {_DAY.fullmatch(name)[2] for name in names}
        names = sorted(name for name in released if _DAY.fullmatch(name)[2] == city)
    held = max(1, len(names) // _HELD_OUT) if len(names) >= len(SPLITS) else 0
    borders = {"train": (0, len(names) - 2 * held), "val": (-2 * held, -held), "test": (-held, None)}
    chosen = set(names[slice(*borders[split])]) if held or split == "train" else set()
    return [path for path in days if path.name in chosen]


def _chosen(days: dict[str, list[Path]], split: str, released: set[str]) -> list[Path]:
    return [path for city in days.values() for path in _part(city, split, released)]


def _dataset(spec: TaskSpec, top: Path, split: str) -> ClipDataset:
    days = _days_of(top)
    released, notes = _released(top), ()
    if released and not all(_chosen(days, kind, released) for kind in SPLITS):
        released, notes = set(), (f"{_INDEX} is passed over: of one of the splits that it makes no day is here",)
    paths = _chosen(days, split, released)
    if not paths:
        counts = ", ".join(f"{len(city)} days of {name}" for name, city in days.items())
        raise DataFileError(
            f"{top}: {counts}: none for the {split} split, expected at least {len(SPLITS)} days of a city"
        )
    clips = _clips(paths)
    windows = cut(clips, spec.frames_in + spec.frames_out, every(_STRIDE))
    if not len(windows):
        raise DataFileError(
            f"{clips[0].name}: {clips[0].frames} frames, expected at least {spec.frames_in + spec.frames_out}"
        )
    return ClipDataset(spec, clips, windows, str(top), centre_crop, notes)


def _clips(paths: list[Path]) -> list[Clip]:
    """A clip for each day. The files' headers are looked at once: to open thousands takes long."""
    files = [(path, _stamp(path)) for path in paths]
    shapes = indexed("traffic4cast-1", files, lambda: {"shape": np.array([_open(path).shape for path in paths])})
    arrays = [
        Hdf5Array(path, "array", tuple(shape), np.dtype(np.uint8), stamp)
        for (path, stamp), shape in zip(files, shapes["shape"].tolist(), strict=True)
    ]
    return [Clip(str(array.path), array.shape[0], partial(_rows, array), partial(_ids, array)) for array in arrays]


def _stamp(path: Path) -> Stamp:
    with open_file(path) as file:
        return stamp_of(file)


def _open(path: Path) -> Hdf5Array:
    (array,) = open_datasets(path, "array", by_rows=True)
    if array.dtype != np.uint8 or len(array.shape) != 4 or array.shape[3] != 8 or 0 in array.shape:
        raise DataFileError(f"{path}: 'array' is {array.dtype} {in_words(array.shape)}, expected uint8 (T, H, W, 8)")
    if (array.row_ids([0, array.shape[0] // 2, array.shape[0] - 1]) < 0).any():
        raise DataFileError(f"{path}: 'array' declares {array.shape[0]} frames that were not all written")
    return array


def _rows(array: Hdf5Array, rows: np.ndarray) -> np.ndarray:
    """Frames (n, 8, H, W)."""
    first, last = int(rows[0]), int(rows[-1])
    return np.moveaxis(array.rows(first, last + 1)[rows - first], 3, 1)


def _ids(array: Hdf5Array) -> np.ndarray:
    return np.array([file_id(array.path)])


def _holds(top: Path) -> bool:
    return any(True for _ in _cities(top))


READER = TreeReader(
    Tree("traffic4cast", ("traffic4cast", "traffic4cast2021", "traffic4cast_2021"), _holds, _EXPECTED), _dataset
)
