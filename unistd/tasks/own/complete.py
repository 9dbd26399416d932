"""What a description leaves open, found out from the files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unistd.tasks.files import DataFileError
from unistd.tasks.own.description import OwnTask
from unistd.tasks.own.find import find_files
from unistd.tasks.own.forms import records_of
from unistd.tasks.own.records import Record
from unistd.tasks.own.split import split_pieces
from unistd.tasks.own.survey import survey

_LARGEST_SIDE = 4096
_TOKENS = 320  # of a sample, at most, where nobody says the patch


def complete(task: OwnTask, root: Path) -> OwnTask:
    """The description with its form, sizes, patch and range; as it is where it has them.

    Raises:
        DataFileError: no such files, or such as cannot be read or do not fit the description.
    """
    if task.is_complete:
        return task
    form, paths, _ = find_files(task, root)
    task = task.model_copy(update={"form": form})
    records = records_of(paths, root, task)
    frame = records[0].read(np.array([0]))[0]
    channels, height, width = frame.shape
    found: dict[str, object] = {"channels": task.channels or channels}
    if task.height is None:
        found |= {"height": height, "width": width}
        if max(height, width) > _LARGEST_SIDE:
            raise DataFileError(
                f"{records[0].name}: frames of {height} x {width} pixels, expected at most {_LARGEST_SIDE} a side; "
                "height and width say to which size they are brought"
            )
    task = task.model_copy(update=found)
    if task.patch is None:
        task = task.model_copy(update={"patch": _patch(task.height, task.width)})
    if task.range is None and frame.dtype == np.uint8:
        task = task.model_copy(update={"range": [0.0, 255.0]})
    if not isinstance(task.range, list):
        task = task.model_copy(update={"range": _train_range(records, task, root)})
    return task


def _train_range(records: Sequence[Record], task: OwnTask, root: Path) -> list[float]:
    """The smallest and the largest value of the train split."""
    seen, name = survey(records, task), records[0].name
    parts, _ = split_pieces(records, task, root)
    low, high = (
        np.concatenate([getattr(seen[number], bound)[first:end] for number, first, end in parts["train"]] or [[]])
        for bound in ("low", "high")
    )
    low, high = low[~np.isnan(low)], high[~np.isnan(high)]
    if not len(low):
        raise DataFileError(f"{name}: nothing is measured in the train split, expected frames to take the range from")
    least, most = float(low.min()), float(high.max())
    if not (np.isfinite([least, most]).all() and most - least > 0 and np.isfinite(most - least)):
        raise DataFileError(
            f"{name}: the train split has values from {least:g} to {most:g}, expected numbers that change"
        )
    return [least, most]


def _patch(height: int, width: int) -> int:
    patch = 2 if min(height, width) > 3 else 1
    while -(-height // patch) * -(-width // patch) > _TOKENS and 2 * patch <= min(height, width, 256):
        patch *= 2
    return patch
