"""The forms of files that a description may be of: a module a form, by the endings of the files' names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from unistd.tasks.own.description import OwnTask
from unistd.tasks.own.records import Record

ENDINGS = {
    "frames": (".png", ".jpg", ".jpeg", ".pgm", ".ppm", ".tif", ".tiff"),
    "video": (".avi", ".mp4", ".mkv", ".mov", ".webm", ".mpg", ".mpeg", ".m4v"),
    "npy": (".npy", ".npz"),
    "hdf5": (".h5", ".hdf5", ".hdf"),
    "xarray": (".nc", ".nc4", ".cdf", ".zarr"),
}
SAME_ENDINGS = {"strips": "frames", "well": "hdf5"}


def form_of(path: Path) -> str | None:
    """The form that files of such a name are of; None: none that is known."""
    name = path.name.lower().removesuffix(".gz")
    return next((form for form, endings in ENDINGS.items() if name.endswith(endings)), None)


def records_of(paths: Sequence[Path], root: Path, task: OwnTask) -> list[Record]:
    """The recordings in files of `task.form`, in the order of their names.

    Raises:
        DataFileError: a file that is not of the form, or not what the description says.
    """
    module = import_module(f"unistd.tasks.own.forms.{task.form}")  # some need libraries that take long to import
    read: Callable[[Sequence[Path], Path, OwnTask], list[Record]] = module.records
    return read(paths, root, task)
