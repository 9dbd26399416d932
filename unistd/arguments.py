"""Types of the command line's arguments, for argparse: each takes a word and says what was expected."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def whole_number(most: int) -> Callable[[str], int]:
    """A whole number from 1 to `most`."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit() and 1 <= int(text[: len(str(most)) + 1]) <= most):
            raise argparse.ArgumentTypeError(f"expected a whole number from 1 to {most}, found {text[:60]!r}")
        return int(text)

    return read


def share(text: str) -> float:
    """A number from 0.01 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.01 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0.01 to 1, found {text[:60]!r}")
    return value
