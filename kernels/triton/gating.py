"""Gates: softmax or top-k over the router's columns, and their spreading over the experts' columns. All in float32.

Two ways, same values. Grouped: the columns of a block are (group, rank) = (BP/R, R), expert e is group e and the logits
are group E, so that a reshape and a few sums within a thread do it. General: one pass over the block per expert, which
also serves ragged columns (compaction) and any E and R. Its passes are kept apart by barriers: the compiler unrolls the
loop and would otherwise overlap the passes until it runs out of registers.
"""

import triton
import triton.language as tl


@triton.jit
def grouped_logits(product, E: tl.constexpr, R: tl.constexpr):
    """product (BM, BP), logits in columns E*R.. -> (BM, R), expert e in column e; needs E <= R and (E+1) R <= BP."""
    GROUPS: tl.constexpr = product.shape[1] // R
    by_group = tl.reshape(product, (product.shape[0], GROUPS, R))
    return tl.sum(tl.where((tl.arange(0, GROUPS) == E)[None, :, None], by_group, 0.0), 1)


@triton.jit
def spread_grouped(gates, BP: tl.constexpr):
    """gates (BM, R), expert e in column e, 0 beyond them -> (BM, BP): column e*R + k gets the gate of expert e."""
    R: tl.constexpr = gates.shape[1]
    GROUPS: tl.constexpr = BP // R
    own = tl.arange(0, R)[None, None, :] == tl.arange(0, GROUPS)[None, :, None]
    of_group = tl.sum(tl.where(own, gates[:, None, :], 0.0), 2)
    return tl.reshape(tl.broadcast_to(of_group[:, :, None], (gates.shape[0], GROUPS, R)), (gates.shape[0], BP))


@triton.jit
def load_grouped(gates, rows, split, S: tl.constexpr, E: tl.constexpr, R: tl.constexpr, BP: tl.constexpr):
    """gates: pointer to (rows, S, E) -> (BM, BP): column e*R + k gets the gate of expert e, 0 beyond the experts."""
    GROUPS: tl.constexpr = BP // R
    e = tl.arange(0, GROUPS)
    of_group = tl.load(gates + rows[:, None] * (S * E) + (split * E + e)[None, :], mask=(e < E)[None, :], other=0.0)
    return tl.reshape(tl.broadcast_to(of_group[:, :, None], (rows.shape[0], GROUPS, R)), (rows.shape[0], BP))


@triton.jit
def packed_logits(product, cols, P: tl.constexpr, E: tl.constexpr, WIDTH: tl.constexpr):
    """Columns P..P+E-1 of product (BM, BP) -> (BM, WIDTH), 0 from E on."""
    e = tl.arange(0, WIDTH)
    logits = tl.zeros((product.shape[0], WIDTH), tl.float32)
    for one in tl.range(0, E, num_stages=1):
        tl.debug_barrier()
        logit = tl.sum(tl.where((cols == P + one)[None, :], product, 0.0), 1)
        logits = tl.where((e == one)[None, :], logit[:, None], logits)
    return logits


@triton.jit
def softmax_gates(logits, top_k, E: tl.constexpr, TOP_K: tl.constexpr):
    """logits (BM, W) of E experts -> their softmax, 0 from column E on.

    TOP_K: softmax over the top_k largest only (of equal ones the lower index), the others get 0.
    """
    e = tl.arange(0, logits.shape[1])
    masked = tl.where((e < E)[None, :], logits, float("-inf"))
    if TOP_K:
        better = tl.zeros(logits.shape, tl.float32)  # of integers LLVM makes a popcount that goes through local memory
        for rival in tl.range(0, E, num_stages=1):
            tl.debug_barrier()
            other = tl.max(tl.where((e == rival)[None, :], masked, float("-inf")), 1)[:, None]
            better += tl.where((other > masked) | ((other == masked) & (e > rival)[None, :]), 1.0, 0.0)
        masked = tl.where(better < top_k, masked, float("-inf"))
    weight = tl.exp(masked - tl.max(masked, 1)[:, None])
    return weight / tl.sum(weight, 1)[:, None]


@triton.jit
def spread_gates(gates, expert, E: tl.constexpr):
    """gates (BM, W) of `softmax_gates`, expert (BP,) -> (BM, BP): each column's expert's gate, 0 if it has none."""
    e = tl.arange(0, gates.shape[1])
    spread = tl.zeros((gates.shape[0], expert.shape[0]), tl.float32)
    for one in tl.range(0, E, num_stages=1):
        tl.debug_barrier()
        gate = tl.sum(tl.where((e == one)[None, :], gates, 0.0), 1)
        spread = tl.where((expert == one)[None, :], gate[:, None], spread)
    return spread


@triton.jit
def load_gates(gates, rows, split, expert, S: tl.constexpr, E: tl.constexpr):
    """gates: pointer to (rows, S, E); expert (BP,) -> (BM, BP): for each column its expert's gate, 0 if it has none."""
    spread = tl.zeros((rows.shape[0], expert.shape[0]), tl.float32)
    for one in tl.range(0, E, num_stages=1):
        tl.debug_barrier()
        gate = tl.load(gates + rows * (S * E) + (split * E + one))
        spread = tl.where((expert == one)[None, :], gate[:, None], spread)
    return spread
