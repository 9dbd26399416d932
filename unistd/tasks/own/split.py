"""Which frames of the recordings are trained on, and which are held out."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from hashlib import blake2b
from pathlib import Path

import numpy as np

from unistd.tasks.files import DataFileError, in_words
from unistd.tasks.own.description import OwnTask, Splits
from unistd.tasks.own.records import Record
from unistd.tasks.own.times import pieces, usual_step
from unistd.tasks.task import SPLITS

Piece = tuple[int, int, int]  # number of the recording, first row and end: frames without a break, of one split


def split_pieces(records: Sequence[Record], task: OwnTask, root: Path) -> tuple[dict[str, list[Piece]], int]:
    """The pieces of each split, and how many breaks there are in the recordings.

    Raises:
        DataFileError: too few files for all splits, or patterns that fit none, or one file twice.
    """
    for record in records:
        if len(record) > 1 and (np.diff(record.times) < 0).all():
            raise DataFileError(f"{record.name}: its frames go back in time, expected the earliest first")
    step = task.interval or usual_step(np.concatenate([_steps(record) for record in records]))
    whole = [(number, first, end) for number, record in enumerate(records) for first, end in pieces(record.times, step)]
    if task.splits.named or task.splits.by == "file":
        parts = _by_file(records, task.splits, root, whole)
    else:
        parts = _by_time(records, task.splits, whole)
    return parts, len(whole) - len(records)


def _steps(record: Record) -> np.ndarray:
    """Times such that the steps between them are those of the recording, and none leads from one to the next."""
    steps = np.diff(record.times)
    return np.concatenate([[0.0], np.cumsum(steps[steps > 0])])


def _by_time(records: Sequence[Record], splits: Splits, whole: Sequence[Piece]) -> dict[str, list[Piece]]:
    """Cut at two times; of frames that have none, one after the other, recording by recording."""
    if all(record.dated for record in records):
        times = [record.times for record in records]
    else:
        begins = np.cumsum([0, *map(len, records)])
        times = [begin + np.arange(len(record)) for begin, record in zip(begins, records, strict=False)]
    order = np.sort(np.concatenate(times))
    borders = [order[min(len(order) - 1, round(len(order) * share))] for share in _shares(splits)]
    parts: dict[str, list[Piece]] = {split: [] for split in SPLITS}
    for number, first, end in whole:
        cuts = (first + np.searchsorted(times[number][first:end], borders)).tolist()
        for split, low, high in zip(SPLITS, [first, *cuts], [*cuts, end], strict=True):
            if low < high:
                parts[split].append((number, low, high))
    return parts


def _shares(splits: Splits) -> tuple[float, float]:
    return 1 - splits.val - splits.test, 1 - splits.test


def _by_file(records: Sequence[Record], splits: Splits, root: Path, whole: Sequence[Piece]) -> dict[str, list[Piece]]:
    names = {str(record.path): _relative(record.path, root) for record in records}
    split_of = _named(names, splits) if splits.named else _drawn(names, splits)
    parts: dict[str, list[Piece]] = {split: [] for split in SPLITS}
    for piece in whole:
        parts[split_of[str(records[piece[0]].path)]].append(piece)
    return parts


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _drawn(names: dict[str, str], splits: Splits) -> dict[str, str]:
    """By a number that each name gives, so that neighbours in the order of names are not held out together."""
    count = len(names)
    if count < len(SPLITS):
        raise DataFileError(f"{next(iter(names))}: {count} files or folders, expected at least 3 for splits by file")
    order = sorted(names, key=lambda path: blake2b(names[path].encode("utf-8", "surrogateescape")).digest())
    first, second = (round(count * share) for share in _shares(splits))
    second = min(max(second, 2), count - 1)
    first = min(max(first, 1), second - 1)
    return {path: SPLITS[(place >= first) + (place >= second)] for place, path in enumerate(order)}


def _named(names: dict[str, str], splits: Splits) -> dict[str, str]:
    found = dict.fromkeys(names, "train")
    for split in ("val", "test"):
        for pattern in getattr(splits, split):
            fitting = [path for path, name in names.items() if fnmatch(name, pattern) or fnmatch(name, f"*/{pattern}")]
            if not fitting:
                raise DataFileError(
                    f"splits.{split}: {pattern!r} fits none of {in_words(list(names.values())[:3], 200)}"
                )
            for path in fitting:
                if found[path] not in ("train", split):
                    raise DataFileError(f"{path}: in splits.{found[path]} and splits.{split}, expected one of them")
                found[path] = split
    if "train" not in found.values():
        raise DataFileError(
            f"splits: all of {in_words(list(names.values())[:3], 200)} are held out, expected some to train on"
        )
    return found
