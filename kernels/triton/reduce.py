"""Backward, last launch: sums of the parts in a fixed order, and every gradient in its parameter's layout and dtype."""

import triton
import triton.language as tl

# fmt: off
# ruff: noqa: SIM102


@triton.jit
def _column_of(columns, split, position, P: tl.constexpr, P2: tl.constexpr):
    """position (BR,) = e*R + k within a split -> (BR,) the column that computes it, -1 if none does."""
    if columns is None:
        return position
    else:
        p = tl.arange(0, P2)
        table = tl.load(columns + split * P + p, mask=p < P, other=-1)
        return tl.max(tl.where(table[None, :] == position[:, None], p[None, :], -1), 1)


@triton.jit
def _sum_parts(partial, offset, there, parts, STRIDE: tl.constexpr):
    total = tl.zeros(offset.shape, tl.float32)
    for _ in tl.range(0, parts, num_stages=1):
        total += tl.load(partial + offset, mask=there, other=0.0)
        partial += STRIDE
    return total


@triton.jit
def _reduce_a(columns, partial_a, da, drouter, number, parts, K: tl.constexpr, S: tl.constexpr, E: tl.constexpr,
              R: tl.constexpr, P: tl.constexpr, T: tl.constexpr, P2: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr):
    """BR rows and BC columns of one split's dA, or of its rows of drouter, which follow."""
    ROWS: tl.constexpr = (E * R + E + BR - 1) // BR
    k = number // (S * ROWS) * BC + tl.arange(0, BC)
    split = number // ROWS % S
    row = number % ROWS * BR + tl.arange(0, BR)
    expert_row = row < E * R
    column = _column_of(columns, split, tl.where(expert_row, row, 0), P, P2)
    column = tl.where(expert_row, column, P + row - E * R)
    inside = (k < K)[None, :]
    there = (column >= 0) & (row < E * R + E)
    if drouter is None:
        there = there & expert_row
    offset = k[None, :] * (S * T) + (split * T + column)[:, None]
    total = _sum_parts(partial_a, offset, there[:, None] & inside, parts, K * S * T)
    if da is not None:
        pointers = da + (split * (E * R) + row)[:, None] * K + k[None, :]
        tl.store(pointers, total.to(da.dtype.element_ty), mask=expert_row[:, None] & inside)
    if drouter is not None:
        pointers = drouter + (split * E + row - E * R)[:, None] * K + k[None, :]
        routed = (row >= E * R) & (row < E * R + E)
        tl.store(pointers, total.to(drouter.dtype.element_ty), mask=routed[:, None] & inside)


@triton.jit
def _reduce_b(columns, partial_b, db, number, parts, N: tl.constexpr, S: tl.constexpr, E: tl.constexpr, R: tl.constexpr,
              P: tl.constexpr, T: tl.constexpr, P2: tl.constexpr, R2: tl.constexpr, BR: tl.constexpr):
    """BR rows of dB of one expert: all its R columns."""
    NS: tl.constexpr = N // S
    ROWS: tl.constexpr = (NS + BR - 1) // BR
    n = number % ROWS * BR + tl.arange(0, BR)
    split = number // ROWS // E
    expert = number // ROWS % E
    k = tl.arange(0, R2)
    column = _column_of(columns, split, expert * R + k, P, P2)
    inside = (n < NS)[:, None] & (k < R)[None, :]
    offset = (split * NS + n)[:, None] * T + column[None, :]
    total = _sum_parts(partial_b, offset, inside & (column >= 0)[None, :], parts, N * T)
    pointers = db + ((split * E + expert) * NS + n)[:, None] * R + k[None, :]
    tl.store(pointers, total.to(db.dtype.element_ty), mask=inside)


@triton.jit
def _reduce_diag(columns, partial_d, diag, ddiag, number, blocks, S: tl.constexpr, E: tl.constexpr, R: tl.constexpr,
                 P: tl.constexpr, T: tl.constexpr, P2: tl.constexpr, R2: tl.constexpr, RANKS: tl.constexpr,
                 BR: tl.constexpr):
    """The diagonal's gradient of one expert, or its rank's: d[floor(r)]'s, at r = R d[R-1]'s, 0 outside [0, R]."""
    split = number // E
    k = tl.arange(0, R2)
    column = _column_of(columns, split, number % E * R + k, P, P2)
    there = (k < R) & (column >= 0)
    offset = (split * T + column)[None, :]
    total = tl.zeros((R2,), tl.float32)
    for first in tl.range(0, blocks, BR, num_stages=1):
        block = first + tl.arange(0, BR)
        mask = (block < blocks)[:, None] & there[None, :]
        total += tl.sum(tl.load(partial_d + block[:, None] * (S * T) + offset, mask=mask, other=0.0), 0)
    if RANKS:
        rank = tl.load(diag + number)
        moving = tl.minimum(tl.floor(rank), R - 1.0)
        slope = tl.sum(tl.where(k.to(tl.float32) == moving, total, 0.0), 0)
        tl.store(ddiag + number, tl.where((rank >= 0.0) & (rank <= R), slope, 0.0))
    else:
        tl.store(ddiag + number * R + k, total, mask=k < R)


@triton.jit(do_not_specialize=["parts", "blocks"])
def reduce(
    columns, diag, partial_a, partial_b, partial_d, da, db, drouter, ddiag, parts, blocks,
    K: tl.constexpr, N: tl.constexpr, S: tl.constexpr, E: tl.constexpr, R: tl.constexpr, P: tl.constexpr,
    T: tl.constexpr, RANKS: tl.constexpr, P2: tl.constexpr, R2: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):
    """partial_a, partial_b of `grad_weight`, partial_d = ddiag of `grad_input` -> da (S, E, R, K), db (S, E, N/S, R),
    drouter (S*E, K), ddiag like diag; None where not needed. Columns that are off get 0. P2, R2: powers of two >= P, R.
    """
    WITH_A: tl.constexpr = da is not None or drouter is not None
    A_PROGRAMS: tl.constexpr = S * ((E * R + E + BR - 1) // BR) * ((K + BC - 1) // BC) if WITH_A else 0
    B_PROGRAMS: tl.constexpr = S * E * ((N // S + BR - 1) // BR) if db is not None else 0
    number = tl.program_id(0)
    if WITH_A:
        if number < A_PROGRAMS:
            _reduce_a(columns, partial_a, da, drouter, number, parts, K, S, E, R, P, T, P2, BR, BC)
    if db is not None:
        if (number >= A_PROGRAMS) & (number < A_PROGRAMS + B_PROGRAMS):
            _reduce_b(columns, partial_b, db, number - A_PROGRAMS, parts, N, S, E, R, P, T, P2, R2, BR)
    if ddiag is not None:
        if number >= A_PROGRAMS + B_PROGRAMS:
            _reduce_diag(columns, partial_d, diag, ddiag, number - A_PROGRAMS - B_PROGRAMS, blocks,
                         S, E, R, P, T, P2, R2, RANKS, BR)
