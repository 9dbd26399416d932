"""Matrix instructions: which lane holds which element, and where wgmma finds its operands in shared memory."""

from functools import cache

import numpy as np

from .arithmetic import LANES
from .fault import Unknown

SWIZZLES = {1: 128, 2: 64, 3: 32}  # bytes, by a descriptor's number
GROUP, INSIDE = LANES // 4, LANES % 4
# Row of 8x8 matrices a lane holds two neighbours of, and their columns.
ROWS8, COLUMNS8 = GROUP[:, None], 2 * INSIDE[:, None] + np.arange(2)


@cache
def places_of_16(n: int):
    """Rows (32, n/2) and columns (32, n/2) of a lane's elements of a 16 x n matrix: an accumulator's, or A's."""
    i = np.arange(n // 2)
    rows = GROUP[:, None] + 8 * (i // 2 % 2)[None, :]
    columns = (i // 4 * 8 + i % 2)[None, :] + 2 * INSIDE[:, None]
    return rows, columns


def fragment(registers: list[np.ndarray], transposed: bool = False) -> np.ndarray:
    """16-bit elements of A (16, 16) from four registers, or of B (16, 8), transposed (8, 16), from two."""
    halves = np.stack(registers, 1).view(np.uint16)  # (32, 2 * registers)
    if transposed:
        matrix = np.empty((8, 16), np.uint16)
        i = np.arange(4)
        matrix[np.broadcast_to(GROUP[:, None], (32, 4)), (i // 2 * 8 + i % 2)[None, :] + 2 * INSIDE[:, None]] = halves
        return matrix
    matrix = np.empty((16, 16), np.uint16)
    matrix[places_of_16(16)] = halves
    return matrix


@cache
def operand_offsets(rows: int, transposed: bool, swizzle: int, leading: int, stride: int):
    """Byte offsets (rows, 16) of an operand tile before swizzling: rows of A or of B^T, 16 steps of the contraction.

    swizzle: width in bytes of the pattern. leading, stride: of the descriptor, in bytes.
    """
    row, k = np.arange(rows)[:, None], np.arange(16)[None, :]
    if transposed:
        # Rows lie side by side, swizzle / 2 of them in a line; a line a step of the contraction, 8 lines in a block.
        across = swizzle // 2
        return row % across * 2 + row // across * leading + k % 8 * swizzle + k // 8 * stride
    return row % 8 * swizzle + row // 8 * stride + k * 2


def swizzled(addresses, swizzle: int):
    """Addresses after the pattern of `swizzle` bytes, 32, 64 or 128: 16-byte pieces exchanged within a line."""
    mask = swizzle // 16 - 1
    return addresses ^ ((addresses >> 7 & mask) << 4)


def operand_addresses(descriptor: int, rows: int, transposed: bool) -> np.ndarray:
    """Addresses (rows, 16) of the 16-bit elements of an operand that a wgmma descriptor stands for."""
    start = (descriptor & 0x3FFF) << 4
    leading = (descriptor >> 16 & 0x3FFF) << 4
    stride = (descriptor >> 32 & 0x3FFF) << 4
    if descriptor >> 62 not in SWIZZLES:
        raise Unknown("an operand of wgmma without a swizzle")
    swizzle = SWIZZLES[descriptor >> 62]
    return swizzled(start + operand_offsets(rows, transposed, swizzle, leading, stride), swizzle)
