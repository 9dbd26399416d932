"""What lies below a root for each task: how much of it, of which range, and which files are missing or damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from unistd.tasks import SPLITS, DataFileError, Task, TaskSpec, build_dataset
from unistd.tasks.readers.clips import Clip, ClipDataset, fitted

MOST_FAULTS = 20
_ROWS = 8  # of a clip, read at once
_SAMPLES = 64  # of data that have no clips


@dataclass
class Findings:
    """Of one task: the path that is read (None: nothing of it), samples per split, spec, range, notes and faults."""

    task: str
    source: str | None = None
    samples: dict[str, int] = field(default_factory=dict)
    spec: TaskSpec | None = None
    range: tuple[float, float] | None = None
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def saw(self, frames: np.ndarray) -> None:
        """Takes the values of frames into account, which are in the unit of the spec."""
        if np.isnan(frames).all():
            return
        low, high = float(np.nanmin(frames)), float(np.nanmax(frames))
        self.range = (min(low, self.range[0]), max(high, self.range[1])) if self.range else (low, high)


def check(tasks: Sequence[Task], root: Path, quick: bool, progress: Callable[[str, int, int], None]) -> list[Findings]:
    """Looks for every task below `root` and reads what is there.

    Args:
        quick: reads three frames of each recording instead of all.
        progress: is told of every recording: task, its number, how many there are.

    A task's faults are at most 20; what lies behind a fault is looked at as well.
    """
    return [_check_task(task, root, quick, progress) for task in tasks]


def _check_task(task: Task, root: Path, quick: bool, progress: Callable[[str, int, int], None]) -> Findings:
    spec = task.spec
    found = Findings(spec.name)
    try:
        path = task.find(root)
        found.source = None if path is None else str(path)
    except DataFileError as error:
        found.faults.append(str(error))
    if found.source is None:
        return found
    for split in SPLITS:
        try:
            data = build_dataset(spec, split, root=root, task=task)
        except DataFileError as error:
            if str(error) not in found.faults:
                found.faults.append(str(error))
            continue
        found.samples[split], found.spec = len(data), data.spec
        found.notes += [f"{split}: {note}" for note in getattr(data, "notes", ())]
        for number, (count, read) in enumerate(_pieces(data, quick)):
            progress(spec.name, number, count)
            try:
                found.saw(read())
            except DataFileError as error:
                found.faults.append(str(error))
            if len(found.faults) >= MOST_FAULTS:
                found.faults[MOST_FAULTS - 1 :] = ["more faults than are listed here"]
                return found
    return found


def _pieces(data: Dataset, quick: bool) -> Iterator[tuple[int, Callable[[], np.ndarray]]]:
    """Of all pieces of a data set: how many there are, and what reads this one."""
    if not isinstance(data, ClipDataset):
        count = min(len(data), _SAMPLES)
        for index in range(count):
            yield count, partial(_sample, data, index)
        return
    clips = [data.clips[number] for number in np.unique(data.windows.clip)]
    for clip in clips:
        rows = np.unique([0, clip.frames // 2, clip.frames - 1]) if quick else np.arange(clip.frames)
        yield len(clips), partial(_extremes, data, clip, rows)


def _sample(data: Dataset, index: int) -> np.ndarray:
    return np.concatenate(data[index]) * data.spec.scale + data.spec.offset


def _extremes(data: ClipDataset, clip: Clip, rows: np.ndarray) -> np.ndarray:
    """Smallest and largest value of rows of a clip, which are all read."""
    found = []
    for begin in range(0, len(rows), _ROWS):
        frames = fitted(clip, rows[begin : begin + _ROWS], data.fit, data.spec)
        if not (frames.dtype.kind == "f" and np.isnan(frames).all()):
            found += [np.nanmin(frames), np.nanmax(frames)]
    return np.array(found or [np.nan], np.float64)
