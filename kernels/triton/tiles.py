"""Loads and stores of tiles. The pointer to a tile's first row is made once, in 64 bits; offsets within it have 32.

Row and output-column indices are clamped by the caller, so that only the contracted index needs a mask.
"""

import triton
import triton.language as tl

# fmt: off


@triton.jit
def row_base(source, first_row, STRIDE: tl.constexpr, TMA: tl.constexpr):
    """Pointer to row `first_row` of a row-major matrix; of a descriptor, the descriptor itself."""
    if TMA:
        return source
    else:
        return source + first_row.to(tl.int64) * STRIDE


@triton.jit
def load_tile(base, rows, first_row, ks, first_k,
              STRIDE: tl.constexpr, LIMIT: tl.constexpr, MASK: tl.constexpr, TMA: tl.constexpr):
    """Tile (rows, ks) of a row-major matrix, 0 where ks >= LIMIT (MASK: that can happen).

    base: of `row_base`; `rows` count from there. first_row, first_k: the tile's corner, for TMA.
    """
    if TMA:
        return base.load([first_row, first_k])
    else:
        pointers = base + rows[:, None] * STRIDE + ks[None, :]
        if MASK:
            return tl.load(pointers, mask=(ks < LIMIT)[None, :], other=0.0)
        else:
            return tl.load(pointers)


@triton.jit
def load_adapter(rows, there, ks, LIMIT: tl.constexpr, MASK: tl.constexpr, dtype: tl.constexpr):
    """Tile (BP, BK) of the rows `adapter_rows` found, in `dtype` (masters may be float32); 0 where there is none."""
    if MASK:
        return tl.load(rows[:, None] + ks[None, :], mask=there[:, None] & (ks < LIMIT)[None, :], other=0.0).to(dtype)
    else:
        return tl.load(rows[:, None] + ks[None, :], mask=there[:, None], other=0.0).to(dtype)


@triton.jit
def store_tile(base, value, rows, first_row, rows_end, cols, first_col, cols_end,
               STRIDE: tl.constexpr, TMA: tl.constexpr):
    """Stores `value` into a row-major matrix; rows >= rows_end (from `base`) and cols >= cols_end are left alone.

    A descriptor's block is half a tile: its copy in shared memory stays beside the operands of the next tile.
    """
    if TMA:
        HALF: tl.constexpr = value.shape[1] // 2
        left, right = tl.split(tl.permute(tl.reshape(value, (value.shape[0], 2, HALF)), (0, 2, 1)))
        base.store([first_row, first_col], left)
        base.store([first_row, first_col + HALF], right)
    else:
        there = (rows < rows_end)[:, None] & (cols < cols_end)[None, :]
        tl.store(base + rows[:, None] * STRIDE + cols[None, :], value, mask=there)
