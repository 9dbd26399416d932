"""A picture a frame. Pictures of one folder whose names differ in numbers alone are a recording."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from unistd.tasks.files import DataFileError
from unistd.tasks.own.description import OwnTask
from unistd.tasks.own.records import Record, numbered
from unistd.tasks.own.times import date_of, dates_of, expression_of
from unistd.tasks.readers.images import read_image, read_images

_NUMBERS = re.compile(r"(\d+)")


def records(paths: Sequence[Path], root: Path, task: OwnTask) -> list[Record]:
    """See `records_of`."""
    groups: dict[tuple, list[tuple[Path, list[str]]]] = defaultdict(list)
    dated = None if task.time is None else expression_of(task.time)
    for path in paths:
        stem = path.name.removesuffix(".gz").rsplit(".", 1)[0]
        if dated is None:
            words = _NUMBERS.split(stem)
            groups[path.parent, *words[::2]].append((path, words[1::2]))
        else:
            found = dated.search(stem)
            if found is None:
                raise DataFileError(f"{path}: its name has no time of the form {task.time!r}")
            groups[path.parent, stem[: found.start()], stem[found.end() :]].append((path, [found[0]]))
    channels = task.channels or _colours(read_image(paths[0]))
    found = []
    for members in groups.values():
        found += _by_name(members, channels) if dated is None else [_by_date(members, task.time, channels)]
    return found


def _colours(picture: np.ndarray) -> int:
    """Channels of a picture without its transparency."""
    return {2: 1, 4: 3}.get(len(picture), len(picture))


def _by_date(members: list[tuple[Path, list[str]]], pattern: str, channels: int) -> Record:
    times = [date_of(words[0], pattern) for _, words in members]
    if None in times:
        path, words = members[times.index(None)]
        raise DataFileError(f"{path}: {words[0]!r} in its name is no date of the form {pattern!r}")
    return _record([path for path, _ in members], np.array(times, np.float64), True, channels)


def _by_name(members: list[tuple[Path, list[str]]], channels: int) -> list[Record]:
    """Recordings of pictures whose names differ in numbers: the last ones that change are the time, others the clip."""
    numbers = [words for _, words in members]
    changing = [column for column in range(len(numbers[0])) if len({words[column] for words in numbers}) > 1]
    if not changing:
        return [_record([path for path, _ in members], numbered(members[0][0], len(members)), False, channels)]
    last = changing[-1] + 1
    first, times = last - 1, None
    for begin in range(last):  # a date may be written in several numbers: the longest that is one
        times = dates_of(["".join(words[begin:last]) for words in numbers])
        if times is not None:
            first = begin
            break
    dated = times is not None
    if times is None:
        if any(len(words[first]) > 15 for words in numbers):
            raise DataFileError(
                f"{members[0][0]}: the number in its name has more than 15 digits; `time` says a date's form"
            )
        times = np.array([int(words[first]) for words in numbers], np.float64)
    clips: dict[tuple, list[int]] = defaultdict(list)
    for index, words in enumerate(numbers):
        clips[*words[:first], *words[last:]].append(index)
    return [
        _record([members[index][0] for index in chosen], times[chosen], dated, channels) for chosen in clips.values()
    ]


def _record(paths: list[Path], times: np.ndarray, dated: bool, channels: int) -> Record:
    order = np.argsort(times, kind="stable")
    times, paths = times[order], [paths[index] for index in order]
    if same := np.flatnonzero(np.diff(times) == 0).tolist():
        raise DataFileError(
            f"{paths[same[0] + 1]}: of the same time as {paths[same[0]].name}, expected one frame of a time"
        )
    name = str(paths[0].parent / f"{paths[0].name}..{paths[-1].name}") if len(paths) > 1 else str(paths[0])
    return Record(paths[0].parent, name, times, dated, partial(read_images, paths, channels), paths)
