"""Splits of published files: kept apart from one another, and a val split where none is published."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from unistd.tasks.files import DataFileError
from unistd.tasks.readers.clips import ClipDataset
from unistd.tasks.readers.tree import Tree
from unistd.tasks.spec import TaskSpec

Recording = TypeVar("Recording")
_SHARE = 20  # one recording of so many is held out
_BEFORE = {"train": ("val", "test"), "val": ("test",), "test": ()}  # splits that a window is left to


@dataclass(frozen=True)
class TreeReader:
    """Reads one form of a task's files (a `FileReader`); no window of a split shares a frame with val or test.

    Args:
        tree: where the files lie.
        dataset: (spec, top of the tree, split) -> all windows of a split.
    """

    tree: Tree
    dataset: Callable[[TaskSpec, Path, str], ClipDataset]

    def find(self, root: Path) -> Path | None:
        """The top of the tree; see `Tree.find`."""
        return self.tree.find(root)

    def open(self, spec: TaskSpec, split: str, root: Path, length: int | None, seed: int) -> ClipDataset:
        """See `Task.open`; `seed` has no effect."""
        make = partial(self.dataset, spec, self.find(root))
        data = make(split)
        if not len(data):
            raise DataFileError(f"{data.source}: too few recordings for a {split} split, expected at least 3")
        return data.apart(*map(make, _BEFORE[split])).limited(length)


def held_out(split: str, recordings: Sequence[Recording], source: object) -> list[Recording]:
    """Those of the published train recordings that serve "val", the last twentieth and at least one, or else "train".

    Raises DataFileError, naming `source`, where there is only one.
    """
    if len(recordings) < 2:
        raise DataFileError(
            f"{source}: {len(recordings)} recordings to train on, expected at least 2: one is held out to validate on"
        )
    count = max(1, len(recordings) // _SHARE)
    return list(recordings[-count:] if split == "val" else recordings[:-count])


def tenths(split: str, recordings: Sequence[Recording]) -> list[Recording]:
    """Those of a split where none is published: the last tenth is "test", the tenth before it "val", at least one each.

    Two recordings serve train and test, a single one train; there is nothing else then.
    """
    count, total = max(1, len(recordings) // 10), len(recordings)
    test = total - count if total > 1 else total
    val = test - count if total > 2 else test
    first, last = {"train": (0, val), "val": (val, test), "test": (test, total)}[split]
    return list(recordings[first:last])
