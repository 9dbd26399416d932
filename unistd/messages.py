"""What somebody wrote, as a message shows it: short whatever its length, and on one line."""

from __future__ import annotations

import reprlib

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80


def shown(value: object, width: int = 80) -> str:
    """`repr` of a value in at most `width` characters."""
    return cut(repr(value) if isinstance(value, str) else _REPR.repr(value), width)


def cut(text: str, width: int) -> str:
    """`text` on one line, in at most `width` characters: its middle is left out where it has more."""
    line = " ".join(text.splitlines())
    return line if len(line) <= width else f"{line[: width // 2]}...{line[len(line) - width + width // 2 + 3 :]}"


def printable(text: str) -> str:
    """Text whose line breaks, control characters and halves of characters are escaped: one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_line(error: Exception) -> str:
    """What an error of a library says first, or its kind where it says nothing."""
    return str(error).split("\n")[0] or type(error).__name__
