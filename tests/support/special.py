"""What is no file, in the place of one."""

import os
from pathlib import Path

from support.sockets import make_socket

NO_FILES = ["a named pipe", "a socket", "a device", "a folder", "a link to nothing", "a link to itself"]


def special(kind: str, path: Path) -> None:
    """Something that is no file, at `path`; or an empty file, or nothing."""
    if kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        make_socket(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a file":
        path.write_bytes(b"")
    elif kind == "a link to nothing":
        path.symlink_to("nowhere.npy")
    elif kind == "a link to itself":
        path.symlink_to(path.name)
