"""B laid out for the matrix units: columns of one output row side by side, padded, in the compute dtype.

Needed where B cannot be read in 16-byte pieces as it is: after compaction, with float32 masters, with small or odd R.
"""

import triton
import triton.language as tl

from .columns import load_b

# fmt: off


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
                   R: tl.constexpr, P: tl.constexpr, T: tl.constexpr, PACK: tl.constexpr, dtype: tl.constexpr):
    """Tile (BN, BP) of B in `dtype`: rows n of the split, columns `cols`; 0 where in_split is False or no column is."""
    if PACK:
        pointers = packed + (split * NS + n)[:, None] * T + cols[None, :]
        return tl.load(pointers, mask=in_split[:, None], other=0.0)
    else:
        return load_b(lora_b, columns, split, n, in_split, cols, NS, E, R, P).to(dtype)
