"""One process at a time in the folder of a run."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from unistd.files import read_text, require

NAME = ".lock"


class RunInUse(OSError):
    """Another process writes into the folder. One line: the folder, and which process."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside `with`, no other process that asks for it gets the lock of `folder`, which is made if need be.

    The lock is the kernel's (`flock` of `.lock` in the folder) and goes with the process, however it ends; the file
    that stays behind locks nothing. Its lines say who holds it: process, host, since when. On a shared file system it
    holds between hosts as far as `flock` does there (NFS: yes; Lustre: if mounted with `flock`); where there is none,
    filelock falls back to the file's existence, and warns.

    Raises RunInUse at once where another process holds it, and OSError naming the folder where it cannot be written.
    """
    require(folder, "a folder", "nothing")
    path = folder / NAME
    require(path, "a file", "nothing")
    lock = FileLock(path, timeout=0)
    try:
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise RunInUse(f"{folder}: in use by {_holder(path)}; try again when it has ended") from None
    except OSError as error:
        raise OSError(error.errno, f"the folder of the run cannot be locked: {error.strerror}", str(folder)) from None
    try:
        _write_holder(
            lock, f"{os.getpid()}\n{socket.gethostname()}\n{datetime.now().astimezone():%Y-%m-%d %H:%M:%S%z}\n"
        )
        yield
    finally:
        _write_holder(lock, "")
        with suppress(OSError):  # the folder may be gone
            if made and os.listdir(folder) == [NAME]:  # nothing came of it
                path.unlink()
                for empty in made:
                    empty.rmdir()
        lock.release()


def _write_holder(lock: FileLock, text: str) -> None:
    """Says in the lock file who holds it; where the disk is full, the lock holds all the same."""
    if not isinstance(lock, SoftFileLock):  # which has its own record there
        with suppress(OSError):
            Path(lock.lock_file).write_text(text, encoding="utf-8")


def _holder(path: Path) -> str:
    """Whoever wrote the lock file, in words."""
    try:
        process, host, since = [*read_text(path, 1000).split("\n"), "", "", ""][:3]
    except (OSError, ValueError):
        process, host, since = "", "", ""
    if not process:  # the lock is taken, and its file not yet written
        return "another process"
    return f"process {process} on {host}" + (f" since {since}" if ":" in since else "")
