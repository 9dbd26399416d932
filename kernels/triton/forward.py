"""The whole forward pass in one launch: y = x W^T + b + t B^T, t = (x A^T) * gate * diagonal * scaling, all splits.

Producers compute t for a block of rows (and the router's gates); consumers compute a tile of x W^T and wait for the
t of their rows only after their main loop. How both are dealt out: `queue`.
"""

import triton
import triton.language as tl

from .dropout import drop, row_keys
from .low_rank import gate_low_rank, round_low_rank
from .pack import contracted_rows, load_adapter_b, pack_adapters
from .queue import HEADER, claim, leave, place, signal, wait
from .tiles import load_adapter, load_tile, row_base, store_tile

# fmt: off


@triton.jit
def _produce(
    x, lora_a, packed_a, diag, gates, router, columns, seed, low_rank, t, row_block, part,
    M, top_k, scaling, threshold, keep_scale,
    K: tl.constexpr, S: tl.constexpr, E: tl.constexpr, R: tl.constexpr, P: tl.constexpr, T: tl.constexpr,
    RANKS: tl.constexpr, TOP_K: tl.constexpr, MERGE: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
    BP: tl.constexpr, ROUTER_WIDTH: tl.constexpr, GROUPED: tl.constexpr, PACK_A: tl.constexpr, TMA: tl.constexpr,
):
    """t (M, S, T) for a block of rows and of columns: of all splits (MERGE; `part` is the column block), or of one."""
    dtype: tl.constexpr = t.dtype.element_ty
    PACKED: tl.constexpr = T == BP
    MASK: tl.constexpr = K % BK != 0
    first_row = row_block * BM
    real = first_row + tl.arange(0, BM) < M
    rows = tl.minimum(tl.arange(0, BM), M - 1 - first_row)
    base = row_base(x, first_row, K, TMA)
    if MERGE:
        split = 0
        block = part
    else:
        split = part % S
        block = part // S
    cols = block * BP + tl.arange(0, BP)
    own_router = router
    if not PACKED:
        own_router = None
    rows0, there0 = contracted_rows(lora_a, own_router, columns, packed_a, split, cols, K, E, R, P, T, PACK_A)
    product0 = tl.zeros((BM, BP), tl.float32)
    logits = product0
    if MERGE and S > 1:
        rows1, there1 = contracted_rows(lora_a, own_router, columns, packed_a, 1, cols, K, E, R, P, T, PACK_A)
        product1 = tl.zeros((BM, BP), tl.float32)
    if MERGE and S > 2:
        rows2, there2 = contracted_rows(lora_a, own_router, columns, packed_a, 2, cols, K, E, R, P, T, PACK_A)
        product2 = tl.zeros((BM, BP), tl.float32)
    if router is not None and not PACKED:
        e = tl.arange(0, ROUTER_WIDTH)
        routed = e < E
        if PACK_A:
            router_rows = packed_a + (split * T + P + tl.minimum(e, E - 1)) * K
        else:
            router_rows = router + (split * E + tl.minimum(e, E - 1)) * K
        logits = tl.zeros((BM, ROUTER_WIDTH), tl.float32)
    if seed is not None:
        keys = row_keys(seed, first_row + rows)
    for first_k in range(0, K, BK):
        ks = first_k + tl.arange(0, BK)
        x_tile = load_tile(base, rows, first_row, ks, first_k, K, K, MASK, TMA)
        if seed is not None:
            x_tile = drop(x_tile, keys, ks, threshold, keep_scale)
        a_tile = load_adapter(rows0, there0, ks, K, MASK, dtype)
        product0 = tl.dot(x_tile, a_tile.T, product0, input_precision="ieee")
        if MERGE and S > 1:
            a_tile = load_adapter(rows1, there1, ks, K, MASK, dtype)
            product1 = tl.dot(x_tile, a_tile.T, product1, input_precision="ieee")
        if MERGE and S > 2:
            a_tile = load_adapter(rows2, there2, ks, K, MASK, dtype)
            product2 = tl.dot(x_tile, a_tile.T, product2, input_precision="ieee")
        if router is not None and not PACKED:
            a_tile = load_adapter(router_rows, routed, ks, K, MASK, dtype)
            logits = tl.dot(x_tile, a_tile.T, logits, input_precision="ieee")
    s0, logits0 = round_low_rank(product0, logits, router, block, E, R, P, BP, ROUTER_WIDTH, PACKED, GROUPED, dtype)
    if MERGE and S > 1:
        s1, logits1 = round_low_rank(product1, logits, router, block, E, R, P, BP, ROUTER_WIDTH, PACKED, GROUPED, dtype)
    if MERGE and S > 2:
        s2, logits2 = round_low_rank(product2, logits, router, block, E, R, P, BP, ROUTER_WIDTH, PACKED, GROUPED, dtype)
    gates = row_base(gates, first_row, S * E, False)
    low_rank = row_base(low_rank, first_row, S * P, False)
    target = row_base(t, first_row, S * T, False) + (rows[:, None] * (S * T) + cols[None, :])
    value = gate_low_rank(
        s0, logits0, diag, gates, router, columns, low_rank, split, block, rows, real, block == 0, top_k, scaling,
        S, E, R, P, RANKS, TOP_K, BP, GROUPED)
    tl.store(target + split * T, value, mask=real[:, None])
    if MERGE and S > 1:
        value = gate_low_rank(
            s1, logits1, diag, gates, router, columns, low_rank, 1, block, rows, real, block == 0, top_k, scaling,
            S, E, R, P, RANKS, TOP_K, BP, GROUPED)
        tl.store(target + T, value, mask=real[:, None])
    if MERGE and S > 2:
        value = gate_low_rank(
            s2, logits2, diag, gates, router, columns, low_rank, 2, block, rows, real, block == 0, top_k, scaling,
            S, E, R, P, RANKS, TOP_K, BP, GROUPED)
        tl.store(target + 2 * T, value, mask=real[:, None])


@triton.jit
def _consume(
    x, weight, bias, lora_b, packed_b, columns, y, t, ready, row_block, part, M, producers,
    K: tl.constexpr, N: tl.constexpr, S: tl.constexpr, E: tl.constexpr, R: tl.constexpr, P: tl.constexpr,
    T: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BP: tl.constexpr,
    PACK_B: tl.constexpr, WAIT: tl.constexpr, TMA: tl.constexpr,
):
    """One tile (BM, BN) of y, within one split."""
    dtype: tl.constexpr = t.dtype.element_ty
    NS: tl.constexpr = N // S
    PER_SPLIT: tl.constexpr = (NS + BN - 1) // BN
    MASK: tl.constexpr = K % BK != 0
    split = part // PER_SPLIT
    in_split = part % PER_SPLIT * BN
    first_row = row_block * BM
    first_n = split * NS + in_split
    rows = tl.minimum(tl.arange(0, BM), M - 1 - first_row)
    n = tl.minimum(tl.arange(0, BN), NS - 1 - in_split)
    x_base = row_base(x, first_row, K, TMA)
    weight_base = row_base(weight, first_n, K, TMA)
    acc = tl.zeros((BM, BN), tl.float32)
    for first_k in range(0, K, BK):
        ks = first_k + tl.arange(0, BK)
        x_tile = load_tile(x_base, rows, first_row, ks, first_k, K, K, MASK, TMA)
        weight_tile = load_tile(weight_base, n, first_n, ks, first_k, K, K, MASK, TMA)
        acc = tl.dot(x_tile, weight_tile.T, acc, input_precision="ieee")
    if WAIT:
        wait(ready, producers)
    t_base = row_base(t, first_row, S * T, False) + split * T
    there = tl.arange(0, BN) < NS - in_split
    for first_col in range(0, (P + BP - 1) // BP * BP, BP):
        cols = first_col + tl.arange(0, BP)
        t_tile = tl.load(t_base + (rows[:, None] * (S * T) + cols[None, :]))
        b_tile = load_adapter_b(
            lora_b, packed_b, columns, split, in_split + n, there, cols, NS, E, R, P, T, PACK_B, dtype)
        acc = tl.dot(t_tile, b_tile.T, acc, input_precision="ieee")
    if bias is not None:
        acc += tl.load(bias + first_n + n).to(tl.float32)[None, :]
    y_base = row_base(y, first_row, N, TMA)
    if not TMA:
        y_base += first_n
    store_tile(y_base, acc.to(dtype), tl.arange(0, BM), first_row, M - first_row, tl.arange(0, BN), first_n,
               NS - in_split, N, TMA)


@triton.jit(do_not_specialize=["M", "top_k", "threshold"])
def forward(
    x, weight, bias, lora_a, lora_b, diag, gates, router, columns, seed, y, low_rank, t, flags,
    M, top_k, scaling, threshold, keep_scale,
    K: tl.constexpr, N: tl.constexpr, S: tl.constexpr, E: tl.constexpr, R: tl.constexpr, P: tl.constexpr,
    T: tl.constexpr, RANKS: tl.constexpr, TOP_K: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    BP: tl.constexpr, ROUTER_WIDTH: tl.constexpr, GROUPED: tl.constexpr, GROUP: tl.constexpr, MERGE: tl.constexpr,
    PACK_A: tl.constexpr, PACK_B: tl.constexpr, PRODUCE: tl.constexpr, CONSUME: tl.constexpr, TMA: tl.constexpr,
    FLATTEN: tl.constexpr,
):
    """x (M, K), weight (N, K), bias (N) or None, lora_a (S, E, R, K), lora_b (S, E, N/S, R), diag (S, E, R) or ranks
    (S, E), gates (M, S, E) (read, or written where router (S*E, K) is given), columns (S, P) or None, seed (1) or None
    -> y (M, N), low_rank (M, S, P).

    Workspace: t (M, S, T), then with PACK_A (S, T, K), then with PACK_B (S, N/S, T); flags (3 + ceil(M / BM)), all 0
    before and after.
    T: P, plus E with a router, rounded up to a multiple of BP. PRODUCE, CONSUME: which phases this launch does.
    MERGE: a producer does all splits at once, up to three; with a router it needs T == BP.
    TMA: x, weight and y are descriptors.
    FLATTEN: consumers' loops over tiles and over K become one, whose loads run on from tile to tile.
    """
    NS: tl.constexpr = N // S
    BLOCKS: tl.constexpr = (P + BP - 1) // BP
    TILES: tl.constexpr = S * ((NS + BN - 1) // BN)
    A_PACKERS: tl.constexpr = S * (T // BP) * ((K + BK - 1) // BK) if PACK_A and PRODUCE else 0
    PACKERS: tl.constexpr = A_PACKERS + (TILES if PACK_B and PRODUCE else 0)
    PRODUCERS: tl.constexpr = (BLOCKS if MERGE else BLOCKS * S) if PRODUCE else 0
    blocks = tl.cdiv(M, BM)
    packed_a = t + M.to(tl.int64) * (S * T)
    packed_b = packed_a + (S * T * K if PACK_A else 0)
    ready = flags + HEADER
    task = pack_adapters(
        lora_a, lora_b, router, columns, packed_a, packed_b, flags, K, NS, E, R, P, T, BN, BK, BP, A_PACKERS,
        PACKERS)
    if PRODUCE:
        while task < blocks * PRODUCERS:
            row_block = task // PRODUCERS
            if PACK_A:
                wait(flags + 2, PACKERS)
            _produce(
                x, lora_a, packed_a, diag, gates, router, columns, seed, low_rank, t, row_block, task % PRODUCERS,
                M, top_k, scaling, threshold, keep_scale,
                K, S, E, R, P, T, RANKS, TOP_K, MERGE, BM, BK, BP, ROUTER_WIDTH, GROUPED, PACK_A, TMA)
            if PACK_B and not PACK_A:
                wait(flags + 2, PACKERS)
            if CONSUME:
                signal(ready + row_block)
            task = claim(flags) - PACKERS
    if CONSUME:
        first = task - blocks * PRODUCERS
        for tile in tl.range(first, blocks * TILES, tl.num_programs(0), flatten=FLATTEN):
            row_block, part = place(tile, blocks, TILES, GROUP)
            _consume(
                x, weight, bias, lora_b, packed_b, columns, y, t, ready + row_block, row_block, part, M, PRODUCERS,
                K, N, S, E, R, P, T, BM, BN, BK, BP, PACK_B, PRODUCE, TMA)
    leave(flags, blocks)
