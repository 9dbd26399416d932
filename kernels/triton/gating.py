"""Gates: softmax or top-k over the router's columns, and their spreading over the experts' columns. All in float32.

Loops over the experts are not unrolled: unrolled, the compiler overlaps them and runs out of registers.
"""

import triton
import triton.language as tl


@triton.jit
def softmax_gates(logits, e, top_k, E: tl.constexpr, TOP_K: tl.constexpr):
    """logits (BM, W); e (W,): the expert whose logit a column holds, outside 0..E-1 if none -> their softmax, 0 elsewhere.

    TOP_K: softmax over the top_k largest only (of equal ones the lower index), the others get 0.
    """
    inside = (e >= 0) & (e < E)
    masked = tl.where(inside[None, :], logits, float("-inf"))
    if TOP_K:
        better = tl.zeros(logits.shape, tl.int32)
        for rival in tl.range(0, E, num_stages=1):
            other = tl.max(tl.where((e == rival)[None, :], masked, float("-inf")), 1)[:, None]
            better += ((other > masked) | ((other == masked) & (e > rival)[None, :])).to(tl.int32)
        masked = tl.where(better < top_k, masked, float("-inf"))
    weight = tl.exp(masked - tl.max(masked, 1)[:, None])
    return weight / tl.sum(weight, 1)[:, None]


@triton.jit
def spread_gates(gates, e, expert, E: tl.constexpr):
    """gates (BM, W) of `softmax_gates`, expert (BP,) -> (BM, BP): for each column its expert's gate, 0 if it has none."""
    spread = tl.zeros((gates.shape[0], expert.shape[0]), tl.float32)
    for one in tl.range(0, E, num_stages=1):
        gate = tl.sum(tl.where((e == one)[None, :], gates, 0.0), 1)
        spread = tl.where((expert == one)[None, :], gate[:, None], spread)
    return spread


@triton.jit
def load_gates(gates, rows, split, expert, S: tl.constexpr, E: tl.constexpr):
    """gates: pointer to (rows, S, E); expert (BP,) -> (BM, BP): for each column its expert's gate, 0 if it has none."""
    spread = tl.zeros((rows.shape[0], expert.shape[0]), tl.float32)
    for one in tl.range(0, E, num_stages=1):
        gate = tl.load(gates + rows * (S * E) + (split * E + one))
        spread = tl.where((expert == one)[None, :], gate[:, None], spread)
    return spread
