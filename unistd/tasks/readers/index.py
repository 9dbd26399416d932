"""What was found out about slow files, kept from one run to the next: never beside the data, which may be read-only."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np

from unistd.files import write_atomically
from unistd.tasks.files import Stamp

Arrays = dict[str, np.ndarray]
_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)  # or none there: made anew


def cache_folder() -> Path:
    """`UNISTD_CACHE` if set, else `unistd` in the user's folder for caches."""
    own = os.environ.get("UNISTD_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unistd"


def indexed(kind: str, files: Iterable[tuple[Path, Stamp]], make: Callable[[], Arrays]) -> Arrays:
    """Arrays that `make` finds out about files: those of an earlier call if the files are the same ones, unchanged.

    Args:
        kind: name and version of what is kept.
        files: paths, and their size and time of change.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path, stamp in files:
        digest.update(f"{os.path.abspath(path)}\0{stamp}\0".encode("utf-8", "surrogateescape"))
    kept = cache_folder() / f"{kind}-{digest.hexdigest()}.npz"
    with suppress(*_DAMAGED), np.load(kept, allow_pickle=False) as archive:
        return dict(archive)
    arrays = make()
    with suppress(OSError):  # no room, no permission: then it is made again next time
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, lambda path: _save(path, arrays))
    return arrays


def _save(path: Path, arrays: Arrays) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)
