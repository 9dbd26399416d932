"""A socket in the place of a file."""

import os
import socket
from pathlib import Path
from tempfile import TemporaryDirectory


def make_socket(path: Path) -> None:
    """Leaves a socket at `path`, however long that is: a socket is bound under a hundred characters at most."""
    with socket.socket(socket.AF_UNIX) as end, TemporaryDirectory() as folder:
        end.bind(f"{folder}/socket")
        os.rename(f"{folder}/socket", path)
