"""Dropout that is never stored: the mask of element (m, k) is a hash of the seed, m and k, made wherever it is needed.

The integer mixer is "lowbias32" (Chris Wellons, "Prospecting for Hash Functions", 2018).
"""

import triton
import triton.language as tl


@triton.jit
def _mix(h):
    h = h ^ (h >> 16)
    h = h * 0x7FEB352D
    h = h ^ (h >> 15)
    h = h * 0x846CA68B
    return h ^ (h >> 16)


@triton.jit
def row_keys(seed, rows):
    """seed: pointer to one int64; rows (BM,) integers below 2^32 -> (BM,) uint32, one key per row of x."""
    value = tl.load(seed)
    low = (value & 0xFFFFFFFF).to(tl.uint32)
    high = ((value >> 32) & 0xFFFFFFFF).to(tl.uint32)
    return _mix(low ^ _mix(rows.to(tl.uint32) ^ high))


@triton.jit
def kept(keys, ks, threshold):
    """keys (BM,) uint32, ks (BK,) columns of x, threshold: 32 bits of floor(p 2^32) -> (BM, BK), True where kept."""
    columns = ks.to(tl.uint32) * 0x9E3779B9
    return _mix(keys[:, None] ^ columns[None, :]) >= threshold.to(tl.uint32, bitcast=True)


@triton.jit
def drop(x, keys, ks, threshold, keep_scale):
    """x (BM, BK) -> x * keep / (1 - p) in x's dtype; keep_scale = 1 / (1 - p)."""
    return tl.where(kept(keys, ks, threshold), x.to(tl.float32) * keep_scale, 0.0).to(x.dtype)
