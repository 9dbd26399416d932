"""A task: its spec, its generator and the reader of its files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from torch.utils.data import Dataset

from unistd.tasks.files import DataFileError, data_folder
from unistd.tasks.spec import TaskSpec

SPLITS = ("train", "val", "test")


class FileReader(Protocol):
    """Reader of the published files of one task."""

    def find(self, root: Path) -> Path | None:
        """The file or folder below `root` that `open` would read, or None where nothing there is meant as such.

        Raises:
            DataFileError: something is meant as the task's files and is not as they are published.
        """

    def open(self, spec: TaskSpec, split: str, root: Path, length: int | None, seed: int) -> Dataset:
        """A map-style dataset of (inputs, targets); see `Task.open`."""


@dataclass(frozen=True)
class Task:
    """One of the ten tasks, or one of somebody's own.

    Args:
        spec: the shapes of the published protocol, or of the files.
        generator: see `generate`; None where there are files alone.
        reader: reader of the published files, or of one's own.
    """

    spec: TaskSpec
    generator: Callable[[TaskSpec, int, int], np.ndarray] | None
    reader: FileReader

    def check(self, spec: TaskSpec) -> None:
        """Raise a ValueError for a spec of other channels; resolution and frame counts are free."""
        if spec.channels != self.spec.channels:
            raise ValueError(f"task {spec.name}: channels is {spec.channels}, expected {self.spec.channels}")

    def generate(self, spec: TaskSpec, seed: int, index: int) -> np.ndarray:
        """Sequence `index` under `seed`: float32 (Tin + Tout, C, H, W) in [0, 1].

        The same arguments give the same bits; another seed or index gives another sequence of one and the same world.

        Raises:
            ValueError: another number of channels than the task's, or a task of files alone.
        """
        self.check(spec)
        if self.generator is None:
            raise ValueError(f"task {spec.name}: has no generator, its data are files")
        return self.generator(spec, seed, index)

    def find(self, root: str | Path | None) -> Path | None:
        """The task's file or folder below `root`; None where there is none.

        Raises:
            DataFileError: no such root, or what lies there is meant as the task's files and is not as published.
        """
        if root is None:
            return None
        return self.reader.find(data_folder(root))

    def open(
        self, spec: TaskSpec, split: str, root: str | Path, *, length: int | None = None, seed: int = 0
    ) -> Dataset:
        """Dataset of the real files below `root`.

        Items are (inputs (Tin, C, H, W), targets (Tout, C, H, W)), float32 in [0, 1]; `dataset.spec` is the spec with
        the scale that the files were divided by, `dataset.source` the path that is read.

        Args:
            length: at most this many samples, spread evenly over the split; None: all.
            seed: of the samples that are put together on the fly (Moving MNIST).

        Raises:
            DataFileError: no files, or files that are truncated, of another shape, or hold values that cannot be.
            ValueError: another number of channels than the task's.
        """
        if self.find(root) is None:
            raise DataFileError(f"{root}: found no files of task {spec.name!r}")
        self.check(spec)
        return self.reader.open(spec, split, Path(root), length, seed)
