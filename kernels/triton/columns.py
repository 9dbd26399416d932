"""The low-rank columns of a split: which expert and rank each one is, where its row of A lies, and its entry of the diagonal.

Columns 0..P-1 are the experts' (column e*R + k is rank k of expert e, unless a table says otherwise); columns P..P+E-1 are the router's logits.
"""

import triton
import triton.language as tl


@triton.jit
def column_index(columns, split, cols, P: tl.constexpr):
    """cols (BP,) -> (BP,) positions e*R + k within the split, -1 where there is no column. columns: (S, P) int32 table or None."""
    if columns is None:
        return tl.where(cols < P, cols, -1)
    else:
        return tl.load(columns + split * P + cols, mask=cols < P, other=-1)


@triton.jit
def column_expert(index, R: tl.constexpr):
    """index (BP,) of `column_index` -> (BP,) expert of each column, -1 where there is none."""
    return tl.where(index >= 0, index // R, -1)


@triton.jit
def column_diagonal(diag, split, index, E: tl.constexpr, R: tl.constexpr, RANKS: tl.constexpr):
    """index (BP,) -> (BP,) diagonal entries, 0 where there is no column.

    RANKS: diag holds continuous ranks r (S, E), whose diagonal is clamp(r - k, 0, 1); otherwise the diagonal (S, E, R) itself.
    """
    there = index >= 0
    safe = tl.maximum(index, 0)
    if RANKS:
        rank = tl.load(diag + split * E + safe // R)
        value = tl.minimum(tl.maximum(rank - (safe % R).to(tl.float32), 0.0), 1.0)
    else:
        value = tl.load(diag + split * (E * R) + safe)
    return tl.where(there, value, 0.0)


@triton.jit
def adapter_rows(
    lora_a, router, split, cols, index, K: tl.constexpr, E: tl.constexpr, R: tl.constexpr, P: tl.constexpr
):
    """Pointers (BP,) to the rows of length K that column `cols` is a product with (A's, or the router's), and which of them exist."""
    rows = lora_a + (split * (E * R) + tl.maximum(index, 0)) * K
    there = index >= 0
    if router is not None:
        routed = (cols >= P) & (cols < P + E)
        rows = tl.where(routed, router + (split * E + tl.where(routed, cols - P, 0)) * K, rows)
        there = there | routed
    return rows, there


@triton.jit
def load_b(lora_b, split, n, index, there, NS: tl.constexpr, E: tl.constexpr, R: tl.constexpr):
    """Tile (BN, BP) of B: rows `n` of the split, columns `index`; 0 where `there` (BN, BP) is False. lora_b: (S, E, NS, R)."""
    safe = tl.maximum(index, 0)
    offset = (split * E + safe // R)[None, :] * (NS * R) + n[:, None] * R + (safe % R)[None, :]
    return tl.load(lora_b + offset, mask=there, other=0.0)
