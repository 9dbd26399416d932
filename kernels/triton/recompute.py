"""The forward pass for few rows: every tile computes the low-rank product of its rows itself and none waits."""

import triton
import triton.language as tl

from .columns import adapter_rows, load_b
from .dropout import drop, row_keys
from .low_rank import gate_low_rank, round_low_rank
from .tiles import load_adapter, load_tile, row_base, store_tile

# fmt: off


@triton.jit(do_not_specialize=["M", "top_k", "threshold"])
def recompute(
    x, weight, bias, lora_a, lora_b, diag, gates, router, columns, seed, y, low_rank,
    M, top_k, scaling, threshold, keep_scale,
    K: tl.constexpr, N: tl.constexpr, S: tl.constexpr, E: tl.constexpr, R: tl.constexpr, P: tl.constexpr,
    RANKS: tl.constexpr, TOP_K: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BP: tl.constexpr,
    ROUTER_WIDTH: tl.constexpr, GROUPED: tl.constexpr,
):
    """As `forward`, one program per tile (BM, BN) of y. The columns of a split, router included, must fit BP."""
    dtype: tl.constexpr = low_rank.dtype.element_ty
    NS: tl.constexpr = N // S
    PER_SPLIT: tl.constexpr = (NS + BN - 1) // BN
    MASK: tl.constexpr = K % BK != 0
    row_block = tl.program_id(0) // (S * PER_SPLIT)
    part = tl.program_id(0) % (S * PER_SPLIT)
    split = part // PER_SPLIT
    in_split = part % PER_SPLIT * BN
    first_row = row_block * BM
    first_n = split * NS + in_split
    real = first_row + tl.arange(0, BM) < M
    rows = tl.minimum(tl.arange(0, BM), M - 1 - first_row)
    n = tl.minimum(tl.arange(0, BN), NS - 1 - in_split)
    x_base = row_base(x, first_row, K, False)
    weight_base = row_base(weight, first_n, K, False)
    cols = tl.arange(0, BP)
    a_rows, a_there = adapter_rows(lora_a, router, columns, split, cols, K, E, R, P)
    if seed is not None:
        keys = row_keys(seed, first_row + rows)
    acc = tl.zeros((BM, BN), tl.float32)
    product = tl.zeros((BM, BP), tl.float32)
    for first_k in range(0, K, BK):
        ks = first_k + tl.arange(0, BK)
        x_tile = load_tile(x_base, rows, 0, ks, 0, K, K, MASK, False)
        weight_tile = load_tile(weight_base, n, 0, ks, 0, K, K, MASK, False)
        acc = tl.dot(x_tile, weight_tile.T, acc, input_precision="ieee")
        if seed is not None:
            x_tile = drop(x_tile, keys, ks, threshold, keep_scale)
        a_tile = load_adapter(a_rows, a_there, ks, K, MASK, dtype)
        product = tl.dot(x_tile, a_tile.T, product, input_precision="ieee")
    # Every tile of a split finds the same t; the first one writes what the backward pass keeps.
    writes = real & (in_split == 0)
    gates = row_base(gates, first_row, S * E, False)
    low_rank = row_base(low_rank, first_row, S * P, False)
    s, logits = round_low_rank(product, product, router, 0, E, R, P, BP, ROUTER_WIDTH, True, GROUPED, dtype)
    t = gate_low_rank(
        s, logits, diag, gates, router, columns, low_rank, split, 0, rows, writes, True, top_k, scaling,
        S, E, R, P, RANKS, TOP_K, BP, GROUPED)
    there = tl.arange(0, BN) < NS - in_split
    b_tile = load_b(lora_b, columns, split, in_split + n, there, cols, NS, E, R, P).to(dtype)
    acc = tl.dot(t, b_tile.T, acc, input_precision="ieee")
    if bias is not None:
        acc += tl.load(bias + first_n + n).to(tl.float32)[None, :]
    store_tile(row_base(y, first_row, N, False) + first_n, acc.to(dtype), tl.arange(0, BM), 0, M - first_row,
               tl.arange(0, BN), 0, NS - in_split, N, False)
