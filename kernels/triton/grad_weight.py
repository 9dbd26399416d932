"""Backward, second launch: dA = ds^T x~ and dB = dY^T t, both narrow and long: split over the tokens.

Each program owns a tile and a part of the tokens and writes a partial sum of its own; `reduce` adds the parts in order.
"""

import triton
import triton.language as tl

from .dropout import drop, row_keys
from .tiles import row_base

# fmt: off
# ruff: noqa: SIM102


@triton.jit
def _contract(
    wide, narrow, seed, target, first_col, cols_end, first_row, rows_end, threshold, keep_scale,
    WIDE: tl.constexpr, NARROW: tl.constexpr, TARGET: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, BP: tl.constexpr, MASK: tl.constexpr,
):
    """wide (M, WIDE)^T narrow (M, NARROW) over rows first_row..rows_end, BN columns of wide from first_col on, BP of
    narrow -> target (.., TARGET) fp32. `wide`, `narrow` and `target` point to the tile's first column."""
    dtype: tl.constexpr = narrow.dtype.element_ty
    cols = tl.arange(0, BN)
    acc = tl.zeros((BN, BP), tl.float32)
    wide = row_base(wide, first_row, WIDE, False)
    narrow = row_base(narrow, first_row, NARROW, False)
    for row in range(first_row, rows_end, BK):
        inside = tl.arange(0, BK) < rows_end - row
        rows = tl.minimum(tl.arange(0, BK), rows_end - 1 - row)
        wide_pointers = wide + rows[:, None] * WIDE + cols[None, :]
        if MASK:
            wide_tile = tl.load(wide_pointers, mask=(cols < cols_end - first_col)[None, :], other=0.0)
        else:
            wide_tile = tl.load(wide_pointers)
        if seed is not None:
            wide_tile = drop(wide_tile, row_keys(seed, row + rows), first_col + cols, threshold, keep_scale)
        narrow_pointers = narrow + rows[:, None] * NARROW + tl.arange(0, BP)[None, :]
        narrow_tile = tl.load(narrow_pointers, mask=inside[:, None], other=0.0).to(dtype)
        acc = tl.dot(wide_tile.T, narrow_tile, acc, input_precision="ieee")
        wide += BK * WIDE
        narrow += BK * NARROW
    pointers = target + cols[:, None] * TARGET + tl.arange(0, BP)[None, :]
    tl.store(pointers, acc, mask=(cols < cols_end - first_col)[:, None])


@triton.jit(do_not_specialize=["M", "parts", "threshold"])
def grad_weight(
    x, grad_y, seed, ds, t, partial_a, partial_b, M, parts, threshold, keep_scale,
    K: tl.constexpr, N: tl.constexpr, S: tl.constexpr, P: tl.constexpr, T: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, BP: tl.constexpr,
):
    """ds, t (M, S, T) -> partial_a (parts, K, S*T) = x~^T ds and partial_b (parts, N, T) = dY^T t, fp32; either may be
    None. One program per tile (BN, BP) and part of the tokens, parts fastest: programs that read the same rows differ.
    """
    NS: tl.constexpr = N // S
    BLOCKS: tl.constexpr = (P + BP - 1) // BP
    A_TILES: tl.constexpr = (K + BN - 1) // BN * (S * T // BP) if partial_a is not None else 0
    part = tl.program_id(0) % parts
    tile = tl.program_id(0) // parts
    length = tl.cdiv(tl.cdiv(M, BK), parts) * BK
    first_row = part * length
    rows_end = tl.minimum(first_row + length, M)
    if partial_a is not None:
        if tile < A_TILES:
            block = tile % (S * T // BP)
            first_k = tile // (S * T // BP) * BN
            target = partial_a + part.to(tl.int64) * (K * S * T) + first_k * (S * T) + block * BP
            _contract(x + first_k, ds + block * BP, seed, target, first_k, K, first_row, rows_end,
                      threshold, keep_scale, K, S * T, S * T, BN, BK, BP, K % BN != 0)
    if partial_b is not None:
        if tile >= A_TILES:
            number = tile - A_TILES
            per_split: tl.constexpr = (NS + BN - 1) // BN * BLOCKS
            split = number // per_split
            block = number % BLOCKS
            first_n = number % per_split // BLOCKS * BN
            target = partial_b + part.to(tl.int64) * (N * T) + (split * NS + first_n) * T + block * BP
            _contract(grad_y + split * NS + first_n, t + split * T + block * BP, None, target, first_n, NS,
                      first_row, rows_end, threshold, keep_scale, N, S * T, T, BN, BK, BP, NS % BN != 0)
