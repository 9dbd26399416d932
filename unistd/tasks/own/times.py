"""When frames are: stamps and numbers as times, in seconds where they are dates."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

_DATES = {8: "%Y%m%d", 10: "%Y%m%d%H", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
_EPOCH = datetime.datetime(1970, 1, 1)
_PARTS = {"Y": r"\d{4}", "y": r"\d\d", "m": r"\d\d?", "d": r"\d\d?", "H": r"\d\d?", "M": r"\d\d?", "S": r"\d\d?"}
_PARTS |= {"j": r"\d{1,3}", "f": r"\d{1,6}", "b": "[A-Za-z]{3}", "B": "[A-Za-z]+", "%": "%"}
_YEARS = range(1800, 2200)  # a counter that is a date of another year is a counter


def dates_of(digits: Sequence[str]) -> np.ndarray | None:
    """Texts of digits, YYYYMMDD to YYYYMMDDhhmmss, as seconds since 1970, float64; None unless each is such a date."""
    pattern = _DATES.get(len(digits[0])) if digits else None
    if pattern is None:
        return None
    found = [date_of(text, pattern) if len(text) == len(digits[0]) and text.isdigit() else None for text in digits]
    return None if None in found else np.array(found, np.float64)


def date_of(text: str, pattern: str) -> float | None:
    """A date as seconds since 1970; None where it is none of that pattern (of `datetime.strptime`)."""
    try:
        date = datetime.datetime.strptime(text, pattern)
    except ValueError:
        return None
    return (date.replace(tzinfo=None) - _EPOCH).total_seconds() if date.year in _YEARS else None


def expression_of(pattern: str) -> re.Pattern[str]:
    """Finds a date of a pattern of `datetime.strptime` in a text; raises ValueError for a part that is not known."""
    text = ""
    for part in re.findall(r"%.?|[^%]+", pattern):
        if part[0] == "%" and part[1:] not in _PARTS:
            raise ValueError(f"time {pattern!r}: found {part!r}, expected parts like %Y, %m, %d, %H, %M, %S")
        text += _PARTS[part[1:]] if part[0] == "%" else re.escape(part)
    if text == re.escape(pattern):
        raise ValueError(f"time {pattern!r}: expected how names say a date, as %Y-%m-%d_%H%M")
    return re.compile(text)


def usual_step(times: np.ndarray) -> float:
    """The median of the steps ahead, 1 where there are none."""
    steps = np.diff(times)
    steps = steps[steps > 0]
    return float(np.median(steps)) if len(steps) else 1.0


def pieces(times: np.ndarray, step: float) -> list[tuple[int, int]]:
    """(first, end) of the rows between breaks: steps of less than half of `step` or more than one and a half times it.

    Months and leap years are no breaks; a missing frame, a repeated stamp and a jump back are.
    """
    steps = np.diff(times)
    breaks = np.flatnonzero(~((steps > 0.5 * step) & (steps < 1.5 * step))) + 1
    borders = [0, *breaks.tolist(), len(times)]
    return [(first, end) for first, end in pairwise(borders) if first < end]
