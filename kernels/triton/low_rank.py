"""The low-rank product of a block of rows with a split's experts, after its contraction: gates, diagonal, scaling."""

import triton
import triton.language as tl

from .columns import column_diagonal, column_expert, column_index
from .gating import (
    grouped_logits,
    load_gates,
    load_grouped,
    packed_logits,
    softmax_gates,
    spread_gates,
    spread_grouped,
)

# fmt: off
# ruff: noqa: SIM108


@triton.jit
def round_low_rank(product, logits, router, block, E: tl.constexpr, R: tl.constexpr, P: tl.constexpr, BP: tl.constexpr,
                   ROUTER_WIDTH: tl.constexpr, PACKED_ROUTER: tl.constexpr, GROUPED: tl.constexpr, dtype: tl.constexpr):
    """Column block `block` (BM, BP) fp32 of [x A^T | x W_g^T] -> s in `dtype`, 0 from P on, and the router's logits.

    logits: (BM, ROUTER_WIDTH) fp32, returned as they are unless PACKED_ROUTER: then they are columns P.. of the block.
    """
    cols = block * BP + tl.arange(0, BP)
    if PACKED_ROUTER and router is not None:
        if GROUPED:
            logits = grouped_logits(product, E, R)
        else:
            logits = packed_logits(product, cols, P, E, ROUTER_WIDTH)
    return tl.where((cols < P)[None, :], product, 0.0).to(dtype), logits


@triton.jit
def gate_low_rank(
    low_rank, logits, diag, gates, router, columns, low_rank_out, split, block, rows, real, writes_gates, top_k,
    scaling, S: tl.constexpr, E: tl.constexpr, R: tl.constexpr, P: tl.constexpr, RANKS: tl.constexpr,
    TOP_K: tl.constexpr, BP: tl.constexpr, GROUPED: tl.constexpr,
):
    """t = s * gate * diagonal * scaling; writes low_rank_out (M, S, P) and, with a router, gates (M, S, E).

    low_rank, logits: of `round_low_rank`. GROUPED: see `gating`.
    gates, low_rank_out: pointers to the block's first row. rows: (BM,) within the block, clamped to the last real one.
    real: (BM,) rows to be written. Returns t (BM, BP) in low_rank's dtype, 0 in columns that do not exist.
    """
    cols = block * BP + tl.arange(0, BP)
    there = real[:, None] & (cols < P)[None, :]
    tl.store(low_rank_out + rows[:, None] * (S * P) + (split * P + cols)[None, :], low_rank, mask=there)
    index, exists = column_index(columns, split, cols, P, E * R)
    expert = column_expert(index, exists, R)
    if router is None:
        if GROUPED:
            gate = load_grouped(gates, rows, split, S, E, R, BP)
        else:
            gate = load_gates(gates, rows, split, expert, S, E)
    else:
        own = softmax_gates(logits, top_k, E, TOP_K)
        if GROUPED:
            gate = spread_grouped(own, BP)
        else:
            gate = spread_gates(own, expert, E)
        e = tl.arange(0, own.shape[1])
        there = (e < E)[None, :] & (real & writes_gates)[:, None]
        tl.store(gates + rows[:, None] * (S * E) + (split * E + e)[None, :], own, mask=there)
    weight = column_diagonal(diag, split, index, exists, E, R, RANKS) * scaling
    return (low_rank.to(tl.float32) * gate * weight[None, :]).to(low_rank.dtype)
