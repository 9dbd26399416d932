"""Samples of files of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from unistd.tasks.files import DataFileError, in_words
from unistd.tasks.own.description import OwnTask
from unistd.tasks.own.find import find_files, place_of
from unistd.tasks.own.forms import records_of
from unistd.tasks.own.records import Record
from unistd.tasks.own.split import split_pieces
from unistd.tasks.own.survey import Survey, measured, survey
from unistd.tasks.readers.clips import Clip, ClipDataset, Windows, cut, every
from unistd.tasks.readers.fit import as_stored, centre_crop, cover, resize
from unistd.tasks.spec import TaskSpec
from unistd.tasks.task import SPLITS, Task

_FITS = {"resize": resize, "crop": centre_crop, "cover": cover}
_BEYOND = 1.0  # widths of the range that a value may lie outside of it


def own_task(name: str, description: OwnTask) -> Task:
    """The task of a description that is complete (see `complete`); raises ValueError for shapes that do not fit."""
    return Task(description.spec(name), None, OwnReader(description))


@dataclass(frozen=True)
class OwnReader:
    """Windows of the recordings that a description names; see `unistd.tasks.task.FileReader`.

    Left out, and said in the notes of the data set: windows with a frame in which nothing was measured; of the train
    split, those in which nothing changes and those that share frames with a split that is held out.
    """

    description: OwnTask

    def find(self, root: Path) -> Path:
        """What is read; raises DataFileError where there are no such files."""
        find_files(self.description, root)
        return place_of(self.description, root)

    def open(self, spec: TaskSpec, split: str, root: Path, length: int | None, seed: int) -> Dataset:
        """See `Task.open`; `seed` has no effect."""
        _, paths, others = find_files(self.description, root)
        records = records_of(paths, root, self.description)
        parts, breaks = split_pieces(records, self.description, root)
        seen = survey(records, self.description)
        notes = []
        if breaks:
            notes.append(f"{breaks} breaks in time, which no sample crosses")
        if others:
            notes.append(
                f"{len(others)} files of another form left out: {in_words([path.name for path in others[:3]])}"
            )
        if seen[0].looked_at > 1:
            notes.append(f"one frame in {seen[0].looked_at} was looked at for empty and unchanging ones")
        place = str(place_of(self.description, root))
        kinds = SPLITS[SPLITS.index(split) :]
        datasets = [self._dataset(spec, kind, records, parts[kind], seen, place, notes) for kind in kinds]
        return datasets[0].apart(*datasets[1:]).limited(length)

    def _dataset(
        self,
        spec: TaskSpec,
        split: str,
        records: Sequence[Record],
        pieces: Sequence[tuple[int, int, int]],
        seen: Sequence[Survey],
        place: str,
        notes: Sequence[str],
    ) -> ClipDataset:
        description, frames = self.description, spec.frames_in + spec.frames_out
        clips = [self._clip(spec, records[number], seen[number], first, end) for number, first, end in pieces]
        windows = cut(clips, frames, every(description.stride), description.step)
        if not len(windows):
            longest = max((clip.frames for clip in clips), default=0)
            needed = (frames - 1) * description.step + 1
            raise DataFileError(
                f"{place}: no sample in the {split} split, whose longest recording without a break has {longest} "
                f"frames, expected at least {needed} (frames_in, frames_out, step), or other splits"
            )
        empty, still = _flaws(windows, pieces, seen, frames)
        keep, notes = ~empty, list(notes)
        if empty.any():
            notes.append(
                f"{int(empty.sum())} of {len(windows)} windows left out: a frame in which nothing was measured"
            )
        if still.any():
            left_out = ", which are left out" if split == "train" else ""
            notes.append(f"nothing changes in {int(still.sum())} of {len(windows)} windows{left_out}")
        if split == "train":
            keep &= ~still
        if not keep.any():
            raise DataFileError(
                f"{place}: nothing is measured or changes in the {split} split, expected frames that move"
            )
        return ClipDataset(spec, clips, windows.take(keep), place, as_stored, tuple(notes))

    def _clip(self, spec: TaskSpec, record: Record, seen: Survey, first: int, end: int) -> Clip:
        read = _Reading(record, first, self.description, spec)
        return Clip(record.name, end - first, read, partial(_rows_of, seen, record.name, first, end))


def _rows_of(seen: Survey, name: str, first: int, end: int) -> np.ndarray:
    return seen.ids(name)[first:end]


def _flaws(
    windows: Windows, pieces: Sequence[tuple[int, int, int]], seen: Sequence[Survey], frames: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which windows have a frame in which nothing was measured, and in which nothing changes."""
    empty, still = np.zeros(len(windows), bool), np.zeros(len(windows), bool)
    for clip in np.unique(windows.clip):
        number, first, _ = pieces[clip]
        chosen = np.flatnonzero(windows.clip == clip)
        rows = first + windows.start[chosen, None] + windows.step * np.arange(frames)
        content = seen[number].content[rows]
        empty[chosen] = seen[number].empty[rows].any(axis=1)
        still[chosen] = (content == content[:, :1]).all(axis=1)
    return empty, still


@dataclass(frozen=True)
class _Reading:
    """Reads rows of a piece of a recording as numbers of the task's size, NaN where nothing was measured."""

    record: Record
    first: int
    description: OwnTask
    spec: TaskSpec

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        frames = measured(self.record.read(self.first + rows), self.description.missing_values)
        frames = _FITS[self.description.fit](frames, self.spec)
        check_values(frames, self.record.name, self.description, self.spec)
        return frames


def check_values(frames: np.ndarray, name: str, description: OwnTask, spec: TaskSpec) -> None:
    """Raises DataFileError for NaN that is not said to be missing, and values that cannot be of the task's range."""
    low, high = spec.offset, spec.offset + spec.scale
    there = ~np.isnan(frames)
    if not description.may_miss and not there.all():
        raise DataFileError(f"{name}: holds NaN, expected numbers (missing: true says that nothing was measured there)")
    beyond = there & ((frames < low - _BEYOND * (high - low)) | (frames > high + _BEYOND * (high - low)))
    if beyond.any():
        raise DataFileError(
            f"{name}: holds {frames[beyond][0]:g}, expected values of about the range [{low:g}, {high:g}]; "
            "`range` or `missing` says otherwise"
        )
