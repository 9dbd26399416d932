"""The catalogue of SEVIR: which events there are of an image type, when and where, and in which row of which file."""

from __future__ import annotations

import csv
import datetime
import io
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from unistd.tasks.files import DataFileError, in_words, open_file

_COLUMNS = ("id", "file_name", "file_index", "img_type", "time_utc", "pct_missing")
_CORNERS = ("llcrnrlat", "llcrnrlon", "urcrnrlat", "urcrnrlon")
_LARGEST = 256 << 20  # bytes; the published one has 25 MB
_BORDERS = {  # first moment that is no longer of the split
    "train": datetime.datetime(2019, 1, 1),
    "val": datetime.datetime(2019, 6, 1),
    "test": datetime.datetime.max,
}


@dataclass(frozen=True)
class Event:
    """A row of the catalogue.

    Args:
        id: of the event, the same for all its image types.
        file, index: row of that file's data set; the file is relative, as the catalogue has it.
        time: of the middle frame, UTC.
        corners: latitude and longitude of the lower left, then of the upper right corner, degrees; NaN: not known.
        complete: no pixel of it is missing.
    """

    id: str
    file: str
    index: int
    time: datetime.datetime
    corners: tuple[float, float, float, float]
    complete: bool

    @property
    def split(self) -> str:
        """To which split it belongs by its time, as Earthformer divides the events."""
        return next(split for split, border in _BORDERS.items() if self.time <= border)


def read_catalog(path: Path, kinds: Iterable[str]) -> dict[str, list[Event]]:
    """Image type -> its events, in the order of the rows; none of a type but `kinds`, whose rows are of other kinds.

    Raises:
        DataFileError: not UTF-8 text, without the columns that are needed, or with a row that is not as published.
    """
    with open_file(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > _LARGEST:
            raise DataFileError(f"{path}: {size} bytes, expected a catalogue of at most {_LARGEST}")
        events: dict[str, list[Event]] = {}
        try:
            reader = csv.DictReader(io.TextIOWrapper(file, "utf-8-sig", newline=""), strict=True)
            lacking = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            if lacking:
                found = in_words(list(reader.fieldnames or ()))
                raise DataFileError(f"{path}: columns {found}, expected {', '.join(lacking)} as well")
            for row in reader:
                event = _event(path, reader.line_num, row, row.get("img_type") in kinds)
                events.setdefault(row["img_type"], []).extend(event)
        except UnicodeDecodeError as error:
            raise DataFileError(f"{path}: not UTF-8 text (byte {error.start} of a piece)") from None
        except csv.Error as error:
            raise DataFileError(f"{path}: not a table of comma-separated values ({error})") from None
    return events


def _event(path: Path, line: int, row: dict[str, str | None], wanted: bool) -> list[Event]:
    """That of a row, or none: the lightning's are not of frames, and need not have all that frames have."""

    def refuse(name: str, expected: str) -> DataFileError:
        return DataFileError(f"{path}: {name} is {in_words(row[name])} in line {line}, expected {expected}")

    if None in row or None in row.values():
        raise DataFileError(f"{path}: line {line} has not the columns that the first line names")
    if not wanted:
        return []
    if not row["id"]:
        raise refuse("id", "the name of an event")
    index = row["file_index"]
    if not (index.isascii() and index.isdigit() and len(index) < 10):
        raise refuse("file_index", "a row of the file, 0 or more")
    try:
        time = datetime.datetime.fromisoformat(row["time_utc"]).replace(tzinfo=None)
    except ValueError:
        raise refuse("time_utc", "a time as 2019-06-01 12:30:00") from None
    missing = _number(row["pct_missing"])
    if not missing >= 0:
        raise refuse("pct_missing", "a share, 0 or more")
    file = PurePosixPath(row["file_name"])
    if not row["file_name"] or file.is_absolute() or ".." in file.parts or "\0" in row["file_name"]:
        raise refuse("file_name", "a file below the data folder")
    corners = tuple(_number(row.get(name)) for name in _CORNERS)
    return [Event(row["id"], row["file_name"], int(index), time, corners, missing == 0)]


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def unique(events: Sequence[Event]) -> list[Event]:
    """The first of every event."""
    return list({event.id: event for event in reversed(events)}.values())[::-1]


def before(events: Sequence[Event], later: Sequence[Event], length: datetime.timedelta) -> list[Event]:
    """Those of `events` that were not filmed while and where one of `later` was: of these both would show the same.

    Args:
        length: how long an event is filmed.
    """
    times = np.array([event.time for event in events], "M8[us]")
    low_lat, low_lon, high_lat, high_lon = np.array([event.corners for event in events]).reshape(-1, 4).T
    keep = np.ones(len(events), bool)
    for other in later:
        lat, lon, top, right = other.corners
        near = np.abs(times - np.datetime64(other.time)) < np.timedelta64(length)
        keep &= ~(near & (low_lat < top) & (high_lat > lat) & (low_lon < right) & (high_lon > lon))
    return [event for event, kept in zip(events, keep, strict=True) if kept]


def files_of(events: Sequence[Event]) -> Iterator[tuple[str, list[Event]]]:
    """The events of each file."""
    found: dict[str, list[Event]] = {}
    for event in events:
        found.setdefault(event.file, []).append(event)
    yield from found.items()
