"""Self-attention on fused queries, keys and values."""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _checks, _operands, backends, ops
from ._tracing import untraced


def self_attention(qkv: Tensor, num_heads: int, mask: Tensor | None = None, backend: str = "auto") -> Tensor:
    """``softmax(q k^T / sqrt(D) + mask) v`` per head, for ``qkv (B, N, 3 * L)`` with L = num_heads * D -> (B, N, L).

    The forward pass is PyTorch's. So is the backward pass, but for that of bfloat16 on CPUs that the "cpu" backend
    serves: PyTorch's takes several times as long there as what it computes is worth. ``mask`` is that of
    `torch.nn.functional.scaled_dot_product_attention`, broadcastable to (B, num_heads, N, N); ``backend`` is "auto" or
    a name of `backends()`. Raises ValueError or TypeError naming the argument, what it got and what it wants.
    """
    _check(qkv, num_heads, mask)
    compiled = (
        ops.is_eager((qkv,))
        and mask is None
        and qkv.dtype == torch.bfloat16
        and qkv.requires_grad
        and torch.is_grad_enabled()
        and backends.resolve(backend, qkv.device, qkv.dtype) == "cpu"
    )
    if compiled:
        out: Tensor | None = backends.load("cpu").self_attention(qkv, num_heads)
        if out is not None:
            return out
    depth = qkv.shape[2] // (3 * num_heads)
    query, key, value = qkv.unflatten(-1, (3, num_heads, depth)).permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, N, D)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)


@untraced
def _check(qkv: Tensor, num_heads: int, mask: Tensor | None) -> None:
    _operands.check_dense("qkv", qkv)
    if not isinstance(num_heads, (int, torch.SymInt)) or isinstance(num_heads, bool) or num_heads < 1:
        raise ValueError(f"num_heads: got {_checks.shown(num_heads)}, expected a whole number of at least 1")
    if qkv.dim() != 3 or qkv.shape[2] % (3 * num_heads) or not qkv.shape[2]:
        expected = f"(B, N, 3 * width) with width a multiple of num_heads = {num_heads}"
        raise ValueError(f"qkv: got shape {tuple(qkv.shape)}, expected {expected}")
    if qkv.dtype not in _operands.DTYPES:
        raise TypeError(f"qkv: got {qkv.dtype}, expected one of {_operands.DTYPES}")
    if mask is None:
        return
    _operands.check_dense("mask", mask)
    full = (qkv.shape[0], num_heads, qkv.shape[1], qkv.shape[1])
    if mask.device != qkv.device:
        raise ValueError(f"mask: got a tensor on {mask.device}, expected qkv's {qkv.device}")
    if mask.dtype not in (torch.bool, qkv.dtype) and not ops.is_autocast(qkv.device.type):
        raise TypeError(f"mask: got {mask.dtype}, expected torch.bool or qkv's {qkv.dtype}")
    if mask.dim() < 2 or not _operands.expandable(mask.shape, full):
        raise ValueError(f"mask: got shape {tuple(mask.shape)}, expected one broadcastable to {full}")
