"""The low-rank product of a block of rows with the experts of a split, after its contraction: gates, diagonal, scaling."""

import triton
import triton.language as tl

from .columns import column_diagonal, column_expert, column_index
from .gating import load_gates, softmax_gates, spread_gates

# fmt: off


@triton.jit
def gate_low_rank(
    product, logits, diag, gates, router, columns, low_rank, split, block, rows, real, writes_gates, top_k, scaling,
    S: tl.constexpr, E: tl.constexpr, R: tl.constexpr, P: tl.constexpr, RANKS: tl.constexpr, TOP_K: tl.constexpr,
    BP: tl.constexpr, ROUTER_WIDTH: tl.constexpr, PACKED_ROUTER: tl.constexpr,
):
    """From s = x A^T to t = s * gate * diagonal * scaling; writes low_rank (M, S, P) and, with a router, gates (M, S, E).

    product: (BM, BP) fp32, column block `block` of the split; with PACKED_ROUTER its columns P..P+E-1 are the logits.
    logits: (BM, ROUTER_WIDTH) fp32, used where there is a router that is not packed.
    gates, low_rank: pointers to the block's first row. rows: (BM,) within the block, clamped to the last real one.
    real: (BM,) rows to be written. Returns t (BM, BP) in low_rank's dtype, 0 in columns that do not exist.
    """
    dtype: tl.constexpr = low_rank.dtype.element_ty
    cols = block * BP + tl.arange(0, BP)
    index = column_index(columns, split, cols, P)
    expert = column_expert(index, R)
    rounded = tl.where((cols < P)[None, :], product, 0.0).to(dtype)
    there = real[:, None] & (cols < P)[None, :]
    tl.store(low_rank + rows[:, None] * (S * P) + (split * P + cols)[None, :], rounded, mask=there)
    if router is None:
        gate = load_gates(gates, rows, split, expert, S, E)
    else:
        if PACKED_ROUTER:
            e = cols - P
            own = softmax_gates(product, e, top_k, E, TOP_K)
        else:
            e = tl.arange(0, ROUTER_WIDTH)
            own = softmax_gates(logits, e, top_k, E, TOP_K)
        gate = spread_gates(own, e, expert, E)
        there = ((e >= 0) & (e < E))[None, :] & (real & writes_gates)[:, None]
        tl.store(gates + rows[:, None] * (S * E) + (split * E + e)[None, :], own, mask=there)
    weight = column_diagonal(diag, split, index, E, R, RANKS) * scaling
    return (rounded.to(tl.float32) * gate * weight[None, :]).to(dtype)
