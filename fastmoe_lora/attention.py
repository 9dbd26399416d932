"""nn.MultiheadAttention with adapters: it holds its QKV weight as a bare parameter and never calls a linear layer."""

from typing import Any, Self

from torch import Tensor, nn

from .layer import RAMoELinear
from .self_attention import self_attention


class RAMoESelfAttention(nn.Module):
    """Self-attention whose fused QKV projection (three splits) and output projection are RA-MoE layers.

    Called as ``nn.MultiheadAttention`` is, with query, key and value one tensor and ``need_weights=False`` (open_clip's
    blocks do), and returns ``(output, None)``. Raises ValueError for any other call.
    """

    def __init__(self, qkv: RAMoELinear, proj: RAMoELinear, num_heads: int, batch_first: bool):
        super().__init__()
        self.qkv, self.proj = qkv, proj
        self.num_heads, self.batch_first = num_heads, batch_first

    @classmethod
    def from_attention(cls, attention: nn.MultiheadAttention, **options: Any) -> Self:
        """Shares and freezes the weights of ``attention``; ``options`` are those of `RAMoELinear` for both layers."""
        if (
            attention.in_proj_weight is None
            or attention.bias_k is not None
            or attention.add_zero_attn
            or attention.dropout
        ):
            raise ValueError("attention: separate QKV weights, bias_k, add_zero_attn and dropout are not supported")
        qkv = nn.Linear(attention.embed_dim, 3 * attention.embed_dim, device="meta")
        qkv.weight, qkv.bias = attention.in_proj_weight, attention.in_proj_bias
        layers = (
            RAMoELinear.from_linear(qkv, **{"splits": 3, **options}),
            RAMoELinear.from_linear(attention.out_proj, **{**options, "splits": 1}),
        )
        return cls(*layers, attention.num_heads, attention.batch_first).train(attention.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """``query`` (B, N, L) if batch_first else (N, B, L); ``attn_mask`` broadcastable to (B, heads, N, N)."""
        if not (query is key is value) or need_weights or key_padding_mask is not None:
            raise ValueError("attention: expected self-attention with need_weights=False and no key_padding_mask")
        x = query if self.batch_first else query.transpose(0, 1)
        mask = attn_mask if attn_mask is None or attn_mask.is_floating_point() else ~attn_mask  # theirs: True = hidden
        out = self.proj(self_attention(self.qkv(x), self.num_heads, mask, self.qkv.backend))
        return (out if self.batch_first else out.transpose(0, 1)), None
