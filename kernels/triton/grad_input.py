"""Backward, first launch: dX = dY W + ds A (+ dlogits W_g), and on the way everything that is narrow.

Built like `forward`: producers own a block of rows of one split and contract dY with B over the whole split, so that no
sum crosses programs; consumers compute a tile of dY W and wait for ds only after their main loop.
"""

import triton
import triton.language as tl

from .dropout import kept, row_keys
from .gate_gradient import logit_gradient, split_gradient
from .pack import contracted_rows, load_adapter_b, pack_adapters
from .queue import HEADER, claim, leave, place, signal, wait
from .tiles import load_adapter, load_tile, row_base, store_tile

# fmt: off


@triton.jit
def _produce(
    grad_y, lora_b, packed_b, diag, gates, router, columns, low_rank, ds, t, dgates, ddiag, row_block, split, M,
    scaling,
    N: tl.constexpr, S: tl.constexpr, E: tl.constexpr, R: tl.constexpr, P: tl.constexpr, T: tl.constexpr,
    RANKS: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, BP: tl.constexpr, WIDTH: tl.constexpr,
    GROUPED: tl.constexpr, PACK_B: tl.constexpr, TMA: tl.constexpr,
):
    """u = dY B of one block of rows and one split, column block by column block, and what follows from it."""
    dtype: tl.constexpr = low_rank.dtype.element_ty
    NS: tl.constexpr = N // S
    MASK: tl.constexpr = NS % BK != 0
    GATE_WIDTH: tl.constexpr = BP // R if GROUPED else WIDTH
    first_row = row_block * BM
    real = first_row + tl.arange(0, BM) < M
    rows = tl.minimum(tl.arange(0, BM), M - 1 - first_row)
    base = row_base(grad_y, first_row, N, TMA)
    if not TMA:
        base += split * NS
    gates = row_base(gates, first_row, S * E, False)
    low_rank = row_base(low_rank, first_row, S * P, False)
    ds = row_base(ds, first_row, S * T, False)
    t = row_base(t, first_row, S * T, False)
    ddiag += row_block * (S * T)
    dgate = tl.zeros((BM, GATE_WIDTH), tl.float32)
    # Adds 0, but the compiler does not know: else it computes all that depends on the columns alone once for all tasks,
    # and keeps it in registers.
    first_block = tl.minimum(row_block, 0)
    for number in tl.range(0, (P + BP - 1) // BP, num_stages=1):
        block = first_block + number
        cols = block * BP + tl.arange(0, BP)
        u = tl.zeros((BM, BP), tl.float32)
        for first_n in range(0, NS, BK):
            n = first_n + tl.arange(0, BK)
            dy_tile = load_tile(base, rows, first_row, n, split * NS + first_n, N, NS, MASK, TMA)
            b_tile = load_adapter_b(
                lora_b, packed_b, columns, split, n, n < NS, cols, NS, E, R, P, T, PACK_B, dtype)
            u = tl.dot(dy_tile, b_tile, u, input_precision="ieee")
        dgate += split_gradient(
            u, diag, gates, columns, low_rank, ds, t, ddiag, split, block, rows, real, scaling,
            S, E, R, P, T, RANKS, BP, WIDTH, GROUPED)
    if dgates is not None:
        e = tl.arange(0, GATE_WIDTH)
        target = row_base(dgates, first_row, S * E, False) + rows[:, None] * (S * E) + (split * E + e)[None, :]
        tl.store(target, dgate, mask=real[:, None] & (e < E)[None, :])
    if router is not None:
        logit_gradient(dgate, gates, ds, split, rows, real, S, E, P, T)
        if T > (P + BP - 1) // BP * BP:
            cols = T - BP + tl.arange(0, BP)
            pointers = ds + rows[:, None] * (S * T) + (split * T + cols)[None, :]
            nothing = tl.zeros((BM, BP), dtype)
            tl.store(pointers, nothing, mask=real[:, None] & (cols >= P + E)[None, :])


@triton.jit
def _add_adapter(
    acc, lora_a, packed_a, router, columns, ds, rows, k, K: tl.constexpr, S: tl.constexpr, E: tl.constexpr,
    R: tl.constexpr, P: tl.constexpr, T: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr, PACK_A: tl.constexpr,
):
    """acc (BM, BN) + ds A (+ dlogits W_g) of all splits, for output columns k (BN,)."""
    for step in tl.range(0, S * (T // BP), num_stages=3):
        split = step // (T // BP)
        cols = step % (T // BP) * BP + tl.arange(0, BP)
        ds_tile = tl.load(ds + rows[:, None] * (S * T) + (split * T + cols)[None, :])
        a_rows, there = contracted_rows(lora_a, router, columns, packed_a, split, cols, K, E, R, P, T, PACK_A)
        a_tile = load_adapter(a_rows, there, k, K, K % BN != 0, ds.dtype.element_ty)
        acc = tl.dot(ds_tile, a_tile, acc, input_precision="ieee")
    return acc


@triton.jit
def _consume(
    grad_y, weight, lora_a, packed_a, router, columns, seed, ds, dx, ready, row_block, part, M, producers,
    threshold, keep_scale, K: tl.constexpr, N: tl.constexpr, S: tl.constexpr, E: tl.constexpr, R: tl.constexpr,
    P: tl.constexpr, T: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BP: tl.constexpr,
    PACK_A: tl.constexpr, WAIT: tl.constexpr, TMA: tl.constexpr,
):
    """One tile (BM, BN) of dX. Without WAIT the adapter's part comes first: dropout can be applied to it alone."""
    first_row = row_block * BM
    first_k = part * BN
    rows = tl.minimum(tl.arange(0, BM), M - 1 - first_row)
    k = first_k + tl.arange(0, BN)
    dy_base = row_base(grad_y, first_row, N, TMA)
    ds_base = row_base(ds, first_row, S * T, False)
    acc = tl.zeros((BM, BN), tl.float32)
    if not WAIT:
        acc = _add_adapter(
            acc, lora_a, packed_a, router, columns, ds_base, rows, k, K, S, E, R, P, T, BN, BP, PACK_A)
        if seed is not None:
            acc = tl.where(kept(row_keys(seed, first_row + rows), k, threshold), acc * keep_scale, 0.0)
    for first_n in range(0, N, BK):
        n = first_n + tl.arange(0, BK)
        dy_tile = load_tile(dy_base, rows, first_row, n, first_n, N, N, N % BK != 0, TMA)
        weight_rows = tl.minimum(tl.arange(0, BK), N - 1 - first_n)
        weight_tile = load_tile(weight, weight_rows, first_n, k, first_k, K, K, K % BN != 0, TMA)
        acc = tl.dot(dy_tile, weight_tile, acc, input_precision="ieee")
        if not TMA:
            weight += BK * K
    if WAIT:
        wait(ready, producers)
        acc = _add_adapter(
            acc, lora_a, packed_a, router, columns, ds_base, rows, k, K, S, E, R, P, T, BN, BP, PACK_A)
    store_tile(row_base(dx, first_row, K, TMA), acc.to(ds.dtype.element_ty), tl.arange(0, BM), first_row, M - first_row,
               k, first_k, K, K, TMA)


@triton.jit(do_not_specialize=["M", "threshold"])
def grad_input(
    grad_y, weight, lora_a, lora_b, diag, gates, router, columns, seed, low_rank, dx, dgates, ds, t, packed, ddiag,
    flags, M, scaling, threshold, keep_scale,
    K: tl.constexpr, N: tl.constexpr, S: tl.constexpr, E: tl.constexpr, R: tl.constexpr, P: tl.constexpr,
    T: tl.constexpr, RANKS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BP: tl.constexpr,
    ROUTER_WIDTH: tl.constexpr, GROUPED: tl.constexpr, GROUP: tl.constexpr, PACK_A: tl.constexpr,
    PACK_B: tl.constexpr, PRODUCE: tl.constexpr, CONSUME: tl.constexpr, TMA: tl.constexpr,
):
    """grad_y (M, N) and what `forward` had and kept -> dx (M, K) and, unless None, dgates (M, S, E) fp32.

    Workspace, read by `grad_weight` and `reduce`: ds (the gradients of the low-rank product and of the logits) and
    t, (M, S, T) in x's dtype; ddiag (ceil(M / BM), S, T) fp32, the diagonal's gradient by row block. Besides packed,
    with PACK_A (S, T, K), then with PACK_B (S, N/S, T), and flags (3 + ceil(M / BM)), all 0 before and after.
    With dropout (seed given) PRODUCE and CONSUME have to be two launches. TMA: grad_y, weight and dx are descriptors.
    """
    NS: tl.constexpr = N // S
    TILES: tl.constexpr = (K + BN - 1) // BN
    A_PACKERS: tl.constexpr = S * (T // BP) * ((K + BK - 1) // BK) if PACK_A and PRODUCE else 0
    PACKERS: tl.constexpr = A_PACKERS + (S * ((NS + BN - 1) // BN) if PACK_B and PRODUCE else 0)
    PRODUCERS: tl.constexpr = S if PRODUCE else 0
    blocks = tl.cdiv(M, BM)
    ready = flags + HEADER
    packed_a = packed
    packed_b = packed
    if PACK_A:
        packed_b += S * T * K
    task = pack_adapters(
        lora_a, lora_b, router, columns, packed_a, packed_b, flags, K, NS, E, R, P, T, BN, BK, BP, A_PACKERS,
        PACKERS)
    if PRODUCE:
        while task < blocks * PRODUCERS:
            row_block = task // PRODUCERS
            if PACKERS > 0:
                wait(flags + 2, PACKERS)
            _produce(
                grad_y, lora_b, packed_b, diag, gates, router, columns, low_rank, ds, t, dgates, ddiag,
                row_block, task % PRODUCERS, M, scaling,
                N, S, E, R, P, T, RANKS, BM, BK, BP, ROUTER_WIDTH, GROUPED, PACK_B, TMA)
            if CONSUME:
                signal(ready + row_block)
            task = claim(flags) - PACKERS
    if CONSUME:
        first = task - blocks * PRODUCERS
        for tile in tl.range(first, blocks * TILES, tl.num_programs(0)):
            row_block, part = place(tile, blocks, TILES, GROUP)
            _consume(
                grad_y, weight, lora_a, packed_a, router, columns, seed, ds, dx, ready + row_block, row_block, part, M,
                PRODUCERS, threshold, keep_scale, K, N, S, E, R, P, T, BM, BN, BK, BP, PACK_A, PRODUCE, TMA)
    leave(flags, blocks)
