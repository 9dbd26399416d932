"""The zip archives that `torch.save` writes, looked over before anything in them is unpacked."""

from __future__ import annotations

import os
import pickletools
import zipfile
from typing import BinaryIO


def check_archive(file: BinaryIO, crc: bool = True) -> None:
    """Raises unless all members are stored as they are, make up no more than the file, and have the CRC they had.

    `torch.load` maps members into memory and checks none of this: a compressed one would be read as numbers, and a
    flipped bit is another number. A bytearray, which no tensor is made of, takes as much as a number in the file says.

    Args:
        crc: whether to read all of it for its CRCs; for a file that has been checked otherwise.

    Raises:
        ValueError, zipfile.BadZipFile: what is wrong, without the file's name.
    """
    size = file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("it is compressed, which torch.save never does")
        if (unpacked := sum(member.file_size for member in members)) > size:
            raise ValueError(f"{size} bytes that declare {unpacked}")
        if crc and (wrong := archive.testzip()) is not None:
            raise ValueError(f"{wrong} in it has another CRC than was written")
        for member in members:
            if member.filename.endswith("data.pkl"):
                _check_pickle(archive.read(member))


def _check_pickle(data: bytes) -> None:
    for operation, argument, _ in pickletools.genops(data):
        if operation.name == "GLOBAL" and argument in ("builtins bytearray", "__builtin__ bytearray"):
            raise ValueError("it makes a bytearray, which no tensor needs")
