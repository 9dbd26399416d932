"""The low-rank columns of a split: which expert and rank each one is, its row of A, its entry of the diagonal.

Columns 0..P-1 are the experts' (column e*R + k is rank k of expert e, unless a table says otherwise), columns P..P+E-1
the router's logits.
"""

import triton
import triton.language as tl


@triton.jit
def column_index(columns, split, cols, P: tl.constexpr, WIDTH: tl.constexpr):
    """cols (BP,) -> their positions e*R + k within the split, any where there is no column, and whether there is one.

    columns: (S, P) int32 table, or None: then the positions are `cols` themselves, known to be contiguous. A position
    that is not below WIDTH = E*R, which must not be, is taken for none: the memory behind it is somebody else's.
    """
    if columns is None:
        return cols, cols < P
    else:
        index = tl.load(columns + split * P + cols, mask=cols < P, other=-1)
        index = tl.where(index < WIDTH, index, -1)
        return index, index >= 0


@triton.jit
def column_expert(index, there, R: tl.constexpr):
    """The expert of each column (BP,), -1 where there is none."""
    return tl.where(there, index // R, -1)


@triton.jit
def column_diagonal(diag, split, index, there, E: tl.constexpr, R: tl.constexpr, RANKS: tl.constexpr):
    """The diagonal's entry of each column (BP,), 0 where there is none.

    RANKS: diag holds continuous ranks r (S, E), whose diagonal is clamp(r - k, 0, 1); else the
    diagonal (S, E, R) itself.
    """
    if RANKS:
        rank = tl.load(diag + split * E + index // R, mask=there, other=0.0)
        return tl.minimum(tl.maximum(rank - (index % R).to(tl.float32), 0.0), 1.0)
    else:
        return tl.load(diag + split * (E * R) + index, mask=there, other=0.0)


@triton.jit
def adapter_rows(
    lora_a, router, columns, split, cols, K: tl.constexpr, E: tl.constexpr, R: tl.constexpr, P: tl.constexpr
):
    """Pointers (BP,) to the rows of A (or the router) of length K that columns `cols` multiply, and which exist."""
    index, there = column_index(columns, split, cols, P, E * R)
    rows = lora_a + (split * (E * R) + tl.where(there, index, 0)) * K
    if router is not None:
        routed = (cols >= P) & (cols < P + E)
        router_rows = router + (split * E + tl.where(routed, cols - P, 0)) * K
        rows = _choose(routed, router_rows, rows, K)
        there = there | routed
    return rows, there


@triton.jit
def _choose(condition, rows, others, K: tl.constexpr):
    """tl.where for pointers to rows of length K of two tensors.

    AMD's compiler takes the pointers into a tensor of up to 2 GB for one base and offsets of 32 bits, and fails where
    bases differ. So there addresses are chosen, and that rows begin at multiples of 16 bytes is said anew: else they
    would be loaded in the smallest pieces. For tensors that do not it is wrong, but AMD loads 16 bytes from anywhere.
    """
    if tl.target_info.is_hip():
        chosen = tl.where(condition, rows.to(tl.int64), others.to(tl.int64)).to(rows.dtype)
        if K * rows.dtype.element_ty.primitive_bitwidth % 128 == 0:
            chosen = tl.multiple_of(chosen, 16)
        return chosen
    else:
        return tl.where(condition, rows, others)


@triton.jit
def load_b(
    lora_b, columns, split, n, in_split, cols, NS: tl.constexpr, E: tl.constexpr, R: tl.constexpr, P: tl.constexpr
):
    """Tile (BN, BP) of B: rows `n` of the split, columns `cols`; 0 where in_split is False or no column is."""
    index, there = column_index(columns, split, cols, P, E * R)
    offset = (split * E + index // R)[None, :] * (NS * R) + n[:, None] * R + (index % R)[None, :]
    return tl.load(lora_b + offset, mask=in_split[:, None] & there[None, :], other=0.0)
