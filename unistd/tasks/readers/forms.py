"""A task whose files are published in several forms."""

from __future__ import annotations

from pathlib import Path

from torch.utils.data import Dataset

from unistd.tasks.files import DataFileError
from unistd.tasks.spec import TaskSpec
from unistd.tasks.task import FileReader


class Forms:
    """Reads the first of several forms that is there.

    Args:
        readers: the fastest form first: one that was prepared from another lies beside it.
    """

    def __init__(self, *readers: FileReader) -> None:
        self.readers = readers

    def find(self, root: Path) -> Path | None:
        """See `FileReader.find`: an error of one form counts only where no other is there."""
        found = self._first(root)
        return None if found is None else found[1]

    def open(self, spec: TaskSpec, split: str, root: Path, length: int | None, seed: int) -> Dataset:
        """See `Task.open`."""
        found = self._first(root)
        if found is None:
            raise DataFileError(f"{root}: found no files of task {spec.name!r}")
        return found[0].open(spec, split, root, length, seed)

    def _first(self, root: Path) -> tuple[FileReader, Path] | None:
        errors: list[DataFileError] = []
        for reader in self.readers:
            try:
                path = reader.find(root)
            except DataFileError as error:
                errors.append(error)
                continue
            if path is not None:
                return reader, path
        if errors:
            raise errors[0]
        return None
