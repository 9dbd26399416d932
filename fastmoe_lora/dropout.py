"""Dropout by counter: the mask is a function of (seed, row, column), so it is regenerated and never stored."""

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def new_seed(device: torch.device) -> Tensor:
    """A fresh 0-d int64 seed from torch's generator of that device, without a host synchronisation."""
    return torch.randint(2**62, (), device=device, dtype=torch.int64)


def dropout(x: Tensor, p: float, seed: Tensor | None) -> Tensor:
    """``x`` (M, K) with elements dropped at rate ``p`` and the rest scaled by 1/(1-p); ``x`` itself at ``p = 0``."""
    return x * dropout_scale(x, p, seed) if p > 0 else x


def dropout_scale(x: Tensor, p: float, seed: Tensor | None) -> Tensor:
    """The factors (M, K), in x's dtype: 0 where dropped, 1/(1-p) elsewhere. 32-bit arithmetic, as in the kernels."""
    if seed is None:
        raise ValueError("seed: got None, expected a 0-d int64 tensor since dropout > 0")
    rows = torch.arange(x.shape[0], device=x.device, dtype=torch.int64)
    columns = torch.arange(x.shape[1], device=x.device, dtype=torch.int64)
    low, high = seed & _MASK, (seed >> 32) & _MASK
    row_key = _mix(low ^ _mix(rows ^ high))
    bits = _mix(row_key[:, None] ^ ((columns * 0x9E3779B9) & _MASK))
    return (bits >= int(p * 2**32)).to(x.dtype) * (1 / (1 - p))


def _mix(h: Tensor) -> Tensor:
    """A bijective 32-bit mixer of two multiplications (constants of Wellons' hash prospector), held in int64."""
    h = ((h ^ (h >> 16)) * 0x7FEB352D) & _MASK
    h = ((h ^ (h >> 15)) * 0x846CA68B) & _MASK
    return h ^ (h >> 16)
