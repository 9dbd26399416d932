"""What can be the count of something in a cell and an interval, and what must be other bytes taken for a number."""

from __future__ import annotations

import numpy as np

SMALLEST = 1e-30  # but 0
LARGEST = 1 << 24  # float32 holds each whole number up to it; more in one cell and interval is no count


def no_counts(values: np.ndarray) -> np.ndarray:
    """Mask of those that are negative, NaN, above 2^24 or, but for 0, below 1e-30."""
    exact = values.astype(np.float64, copy=False)  # in half precision the largest count is infinity
    return ~((exact == 0) | (exact >= SMALLEST) & (exact <= LARGEST))  # NaN compares false
