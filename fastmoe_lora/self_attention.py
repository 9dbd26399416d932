"""Self-attention on fused queries, keys and values."""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import backends, ops


def self_attention(qkv: Tensor, num_heads: int, mask: Tensor | None = None, backend: str = "auto") -> Tensor:
    """``softmax(q k^T / sqrt(D) + mask) v`` per head, for ``qkv (B, N, 3 * L)`` with L = num_heads * D -> (B, N, L).

    The forward pass is PyTorch's. So is the backward pass, but for that of bfloat16 on CPUs that the "cpu" backend
    serves: PyTorch's takes several times as long there as what it computes is worth. ``mask`` is that of
    `torch.nn.functional.scaled_dot_product_attention`, broadcastable to (B, num_heads, N, N); ``backend`` is "auto" or
    a name of `backends()`.
    """
    compiled = (
        ops.is_eager()
        and mask is None
        and qkv.dtype == torch.bfloat16
        and qkv.requires_grad
        and torch.is_grad_enabled()
        and backends.resolve(backend, qkv.device, qkv.dtype) == "cpu"
    )
    if compiled and (out := backends.load("cpu").self_attention(qkv, num_heads)) is not None:
        return out
    query, key, value = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, N, D)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)
