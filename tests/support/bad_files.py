"""Files that are not what a reader expects: how they come about, and how they are to be refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from unistd.tasks import DataFileError

KINDS_OF_DAMAGE = ["flip", "random", "zero", "ones", "cut", "extend", "shift"]


def refusal(path: object, function: Callable, *arguments: object) -> str:
    """The message of the DataFileError of ``function(*arguments)``: one line, of bounded length, that begins with
    `path`."""
    with pytest.raises(DataFileError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert message.startswith(str(path)), message
    assert "\n" not in message
    assert len(message) < 600, message
    return message


def right_or_refused(read: Callable[[Path], object], path: Path) -> object | None:
    """What `read` makes of a file; None where it is refused as it should be."""
    result = []
    try:
        result.append(read(path))
    except DataFileError:
        refusal(f"{path}: ", read, path)
    return result[0] if result else None


def damaged(content: bytes, kind: str, place: int, step: int) -> bytes:
    """`content` with something else at `place`: one of KINDS_OF_DAMAGE."""
    content = bytearray(content)
    if kind == "flip":
        content[place] ^= 1 << step % 8
    elif kind == "random":
        content[place : place + 4] = np.random.default_rng(step).bytes(4)[: len(content) - place]
    elif kind in ("zero", "ones"):
        content[place : place + 8] = (b"\0" if kind == "zero" else b"\xff") * min(8, len(content) - place)
    elif kind == "cut":
        del content[place:]
    elif kind == "extend":
        content += bytes(1 + place)
    else:  # a piece is missing in the middle
        del content[place : place + 8]
    return bytes(content)
