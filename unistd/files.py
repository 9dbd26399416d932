"""Files that are read and written whole: never a pipe that hangs, never half of one, UTF-8 whatever the locale."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

_TEMPORARY = ".unistd-{}.tmp"  # short: a temporary name fits wherever the file's own does
_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def kind(path: str | os.PathLike) -> str:
    """What is at `path`, links followed: "a file", "a folder", "a named pipe", "nothing", "a link to nothing", ..."""
    try:
        return _KINDS.get(stat.S_IFMT(os.stat(path).st_mode), "something else")
    except (OSError, ValueError):  # ValueError: a name with NUL in it
        return "a link to nothing" if os.path.islink(path) else "nothing"


def require(path: str | os.PathLike, *kinds: str) -> None:
    """Raises OSError naming `path` unless it is one of these `kinds` (see `kind`)."""
    if (found := kind(path)) not in kinds:
        raise OSError(f"{path}: expected {' or '.join(kinds)}, found {found}")


def open_file(path: str | os.PathLike) -> BinaryIO:
    """Opens a file to read it. Raises OSError: not there (FileNotFoundError), or a folder, a pipe or the like."""
    require(path, "a file", "nothing")
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # exchanged since the look at it
        file.close()
        require(path, "a file")
    return file


def read_text(path: str | os.PathLike, most: int = 1 << 24) -> str:
    """A UTF-8 file of at most `most` bytes as text; raises as `open_file`, and ValueError naming it for other bytes."""
    with open_file(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"{path}: {os.stat(path).st_size} bytes, expected at most {most}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start} is {data[error.start]:#04x})") from None


def write_text(path: Path, text: str) -> None:
    """`text` as a UTF-8 file, as `write_atomically` writes."""
    write_atomically(path, lambda file: file.write_bytes(text.encode("utf-8")))


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Calls `write` on a temporary file beside `path` and puts it in place; a crash leaves the old file whole.

    Raises OSError naming `path`: no space, no permission, or what is there is no file; nothing is changed then.
    """
    require(path, "a file", "nothing")
    temporary = path.with_name(_TEMPORARY.format(f"{os.getpid()}-{secrets.token_hex(4)}"))
    try:
        write(temporary)
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, f"cannot be written: {error.strerror}", str(path)) from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files that killed processes left in `folder`; nobody else may be writing there."""
    for name in os.listdir(folder):
        start, end = _TEMPORARY.split("{}")
        if name.startswith(start) and name.endswith(end):
            (folder / name).unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Has what was written to a file, or the names in a folder, reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
