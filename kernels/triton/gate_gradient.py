"""From u, the gradient of t, to the gradients of the low-rank product, the gates, the logits and the diagonal."""

import triton
import triton.language as tl

from .columns import column_diagonal, column_expert, column_index
from .gating import load_gates, load_grouped

# fmt: off
# ruff: noqa: SIM108


@triton.jit
def split_gradient(
    u, diag, gates, columns, low_rank, ds, t, ddiag, split, block, rows, real, scaling,
    S: tl.constexpr, E: tl.constexpr, R: tl.constexpr, P: tl.constexpr, T: tl.constexpr, RANKS: tl.constexpr,
    BP: tl.constexpr, WIDTH: tl.constexpr, GROUPED: tl.constexpr,
):
    """u (BM, BP) fp32 of column block `block` -> the gradient of the gates that comes from it, (BM, WIDTH) fp32.

    Writes ds = u * c and t = s * c with c = gate * diagonal * scaling, (M, S, T) both, in x's dtype, and this row
    block's part of the diagonal's gradient, ddiag (S, T). gates, low_rank, ds, t point to the row block's first row.
    rows: (BM,) within the row block, clamped; real: (BM,) rows that exist. Columns that are no expert's get 0.
    """
    dtype: tl.constexpr = low_rank.dtype.element_ty
    cols = block * BP + tl.arange(0, BP)
    index, exists = column_index(columns, split, cols, P, E * R)
    expert = column_expert(index, exists, R)
    pointers = low_rank + rows[:, None] * (S * P) + (split * P + cols)[None, :]
    s = tl.load(pointers, mask=(cols < P)[None, :], other=0.0).to(tl.float32)
    if GROUPED:
        gate = load_grouped(gates, rows, split, S, E, R, BP)
    else:
        gate = load_gates(gates, rows, split, expert, S, E)
    weight = column_diagonal(diag, split, index, exists, E, R, RANKS) * scaling
    c = gate * weight[None, :]
    target = rows[:, None] * (S * T) + (split * T + cols)[None, :]
    tl.store(t + target, (s * c).to(dtype), mask=real[:, None])
    tl.store(ds + target, (u * c).to(dtype), mask=real[:, None])
    us = tl.where(real[:, None], u * s, 0.0)
    there = tl.where(exists, scaling, 0.0)
    tl.store(ddiag + split * T + cols, tl.sum(us * gate, 0) * there)
    by_rank = us * weight[None, :]
    if GROUPED:
        return tl.sum(tl.reshape(by_rank, (u.shape[0], BP // R, R)), 2)
    else:
        e = tl.arange(0, WIDTH)
        dgate = tl.zeros((u.shape[0], WIDTH), tl.float32)
        for one in tl.range(0, E, num_stages=1):
            tl.debug_barrier()  # see `gating`
            of_one = tl.sum(tl.where((expert == one)[None, :], by_rank, 0.0), 1)
            dgate = tl.where((e == one)[None, :], of_one[:, None], dgate)
        return dgate


@triton.jit
def logit_gradient(
    dgate, gates, ds, split, rows, real, S: tl.constexpr, E: tl.constexpr, P: tl.constexpr, T: tl.constexpr,
):
    """Softmax backwards: dlogit = g * (dg - sum_e g dg), (BM, WIDTH), into columns P.. of ds."""
    e = tl.arange(0, dgate.shape[1])
    there = (e < E)[None, :]
    gate = tl.load(gates + rows[:, None] * (S * E) + (split * E + e)[None, :], mask=there, other=0.0)
    dlogit = gate * (dgate - tl.sum(gate * dgate, 1)[:, None])
    pointers = ds + rows[:, None] * (S * T) + (split * T + P + e)[None, :]
    tl.debug_barrier()  # `split_gradient` has stored zeros there, in 16-byte pieces and by other threads
    tl.store(pointers, dlogit.to(ds.dtype.element_ty), mask=there & real[:, None])
