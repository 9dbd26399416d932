"""The adapters laid out for the matrix units: padded, in the compute dtype. A first task of the launches that need it.

B, the columns of one output row side by side: where it cannot be read in 16-byte pieces as it is, which is after
compaction, with float32 masters, with small or odd R. A, with the router's rows: float32 masters, which would otherwise
be converted for every row block, between two visits to shared memory.
"""

import triton
import triton.language as tl

from .columns import adapter_rows, load_b
from .queue import claim, signal
from .tiles import load_adapter

# fmt: off


@triton.jit
def pack_adapters(
    lora_a, lora_b, router, columns, packed_a, packed_b, flags, K: tl.constexpr, NS: tl.constexpr, E: tl.constexpr,
    R: tl.constexpr, P: tl.constexpr, T: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BP: tl.constexpr,
    A_TASKS: tl.constexpr, TASKS: tl.constexpr,
):
    """Claims packing tasks as long as there are any, first A's, then B's; returns its first claim of something else."""
    task = claim(flags)
    if TASKS > 0:
        while task < TASKS:
            if task < A_TASKS:
                pack_a(lora_a, router, columns, packed_a, task, K, E, R, P, T, BK, BP)
            else:
                pack_b(lora_b, columns, packed_b, task - A_TASKS, NS, E, R, P, T, BN)
            signal(flags + 2)
            task = claim(flags)
    return task - TASKS


@triton.jit
def pack_a(lora_a, router, columns, packed, task, K: tl.constexpr, E: tl.constexpr, R: tl.constexpr, P: tl.constexpr,
           T: tl.constexpr, BK: tl.constexpr, BP: tl.constexpr):
    """Task `task` of S * T/BP * ceil(K/BK). lora_a (S, E, R, K), router (S*E, K) -> packed (S, T, K), padded by 0."""
    per_split: tl.constexpr = T // BP * ((K + BK - 1) // BK)
    split = task // per_split
    cols = task % (T // BP) * BP + tl.arange(0, BP)
    k = task % per_split // (T // BP) * BK + tl.arange(0, BK)
    rows, there = adapter_rows(lora_a, router, columns, split, cols, K, E, R, P)
    value = load_adapter(rows, there, k, K, K % BK != 0, packed.dtype.element_ty)
    tl.store(packed + (split * T + cols)[:, None] * K + k[None, :], value, mask=(k < K)[None, :])


@triton.jit
def contracted_rows(lora_a, router, columns, packed_a, split, cols, K: tl.constexpr, E: tl.constexpr, R: tl.constexpr,
                    P: tl.constexpr, T: tl.constexpr, PACK_A: tl.constexpr):
    """`adapter_rows`, of the packed A if there is one: that has all rows."""
    if PACK_A:
        return packed_a + (split * T + cols) * K, cols < T
    else:
        return adapter_rows(lora_a, router, columns, split, cols, K, E, R, P)


@triton.jit
def pack_b(lora_b, columns, packed, task, NS: tl.constexpr, E: tl.constexpr, R: tl.constexpr, P: tl.constexpr,
           T: tl.constexpr, BN: tl.constexpr):
    """Task `task` of S * ceil(NS / BN): BN rows of a split. lora_b (S, E, NS, R) -> packed (S, NS, T), padded by 0."""
    per_split: tl.constexpr = (NS + BN - 1) // BN
    split = task // per_split
    n = task % per_split * BN + tl.arange(0, BN)
    for first in tl.range(0, T, 16, num_stages=1):  # few at a time: each element is loaded by its own pointer
        cols = first + tl.arange(0, 16)
        value = load_b(lora_b, columns, split, n, n < NS, cols, NS, E, R, P).to(packed.dtype.element_ty)
        tl.store(packed + (split * NS + n)[:, None] * T + cols[None, :], value, mask=(n < NS)[:, None])


@triton.jit
def load_adapter_b(lora_b, packed, columns, split, n, in_split, cols, NS: tl.constexpr, E: tl.constexpr,
                   R: tl.constexpr, P: tl.constexpr, T: tl.constexpr, PACK_B: tl.constexpr, dtype: tl.constexpr):
    """Tile (BN, BP) of B in `dtype`: rows n of the split, columns `cols`; 0 where in_split is False or no column is."""
    if PACK_B:
        pointers = packed + (split * NS + n)[:, None] * T + cols[None, :]
        return tl.load(pointers, mask=in_split[:, None], other=0.0)
    else:
        return load_b(lora_b, columns, split, n, in_split, cols, NS, E, R, P).to(dtype)
