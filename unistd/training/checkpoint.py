"""Checkpoints: one file a run, replaced as a whole or not at all, whose end says what its bytes must be.

The file is the zip archive that `torch.save` writes; the archive's comment is the SHA-256 of all bytes before it. Any
reader of zip archives, torch among them, passes over the comment; files of earlier releases have none.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, BinaryIO

import torch

from unistd.archives import check_archive
from unistd.files import open_file, write_atomically
from unistd.messages import first_line

_MARK = b"unistd sha256 "
_COMMENT = len(_MARK) + 64
_END = b"PK\x05\x06"  # the archive's last record: 22 bytes, in the last two of them the length of the comment
_BLOCK = 1 << 20


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, damaged or of another run. One line, names the file."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes `state` (tensors and plain values) as a file that `load_checkpoint` reads without unpickling code.

    Raises OSError naming `path`; what was there before is whole then.
    """

    def write(temporary: Path) -> None:
        with temporary.open("w+b") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # torch's own, in the place of what the file's write raised
                raise error.__context__ if isinstance(error.__context__, OSError) else error from None
            file.seek(-2, os.SEEK_END)
            file.write(_COMMENT.to_bytes(2, "little"))
            size = file.tell()
            file.write(_MARK + _digest(file, size))

    write_atomically(path, write)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state that `save_checkpoint` wrote, on the CPU; its keys are unchecked (see `state`).

    Raises CheckpointError where the file is missing or not, byte for byte, what was written; OSError where it is a
    folder, a pipe or the like.
    """
    try:
        file = open_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no checkpoint here") from None
    with file:
        try:
            _check_bytes(file)
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # what the readers raise depends on where the bytes went wrong
            raise CheckpointError(f"{path}: damaged checkpoint ({first_line(error)})") from None


def _check_bytes(file: BinaryIO) -> None:
    """Raises where the bytes are not those that were written, or unpack to more than they are."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _COMMENT))
    tail = file.read()
    sealed = tail.startswith(_MARK)
    if sealed and tail != _MARK + _digest(file, size - _COMMENT):
        raise ValueError("its bytes are not those that were written: their SHA-256 differs")
    if not sealed and (tail[-22:-18] != _END or tail[-2:] != b"\0\0"):
        raise ValueError("its end is missing, or it never was a checkpoint")
    check_archive(file, crc=not sealed)


def _digest(file: BinaryIO, size: int) -> bytes:
    """SHA-256 of the first `size` bytes, as 64 hexadecimal digits; leaves the file behind them."""
    file.seek(0)
    digest = hashlib.sha256()
    while size > 0:
        block = file.read(min(size, _BLOCK))
        if not block:
            raise ValueError("it became shorter while it was read")
        digest.update(block)
        size -= len(block)
    return digest.hexdigest().encode()
