"""What somebody wrote, as an error message shows it: short whatever its length."""

from __future__ import annotations

import reprlib

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80


def shown(value: object, width: int = 80) -> str:
    """`repr` of a value in at most `width` characters, its middle left out where it is longer."""
    text = _REPR.repr(value)
    return text if len(text) <= width else f"{text[: width - 20]}...{text[-17:]}"
