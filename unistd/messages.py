"""What somebody wrote, as an error message shows it: short whatever its length."""

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
