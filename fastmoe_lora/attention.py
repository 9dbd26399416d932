"""nn.MultiheadAttention with adapters: it holds its QKV weight as a bare parameter and never calls a linear layer."""

from typing import Any, Self

import torch
from torch import Tensor, nn

from . import _checks
from .layer import RAMoELinear
from .self_attention import self_attention


class RAMoESelfAttention(nn.Module):
    """Self-attention whose fused QKV projection (three splits) and output projection are RA-MoE layers.

    Called as ``nn.MultiheadAttention`` is, with query, key and value one tensor and ``need_weights=False`` (open_clip's
    blocks do), and returns ``(output, None)``. ``qkv`` maps L features to 3 L, ``proj`` L to L, and ``num_heads``
    divides L. Raises ValueError or TypeError for anything else, and for any other call.
    """

    def __init__(self, qkv: RAMoELinear, proj: RAMoELinear, num_heads: int, batch_first: bool):
        super().__init__()
        for name, layer in (("qkv", qkv), ("proj", proj)):
            _checks.instance(name, layer, RAMoELinear, "a RAMoELinear")
        width = proj.in_features
        for name, layer, parts in (("qkv", qkv, 3), ("proj", proj, 1)):
            got, expected = (layer.in_features, layer.out_features), (width, parts * width)
            if got != expected:
                raise ValueError(f"{name}: got {got} features, in and out, expected {expected}")
        expected = f"a divisor of the width {width}"
        self.num_heads = _checks.whole("num_heads", num_heads, lambda h: h >= 1 and width % h == 0, expected)
        self.batch_first = _checks.instance("batch_first", batch_first, bool, "True or False")
        self.qkv, self.proj = qkv, proj

    @classmethod
    def from_attention(cls, attention: nn.MultiheadAttention, **options: Any) -> Self:
        """Shares and freezes the weights of ``attention``; ``options`` are those of `RAMoELinear` for both layers.

        Raises ValueError or TypeError naming what is wrong, before anything is frozen.
        """
        module = cls.sharing(attention, **options)
        for layer in (module.qkv, module.proj):
            layer.freeze_base_()
        return module

    @classmethod
    def sharing(cls, attention: nn.MultiheadAttention, **options: Any) -> Self:
        """As `from_attention`, with nothing frozen yet."""
        _checks.instance("attention", attention, nn.MultiheadAttention, "an nn.MultiheadAttention")
        unsupported = {
            "separate QKV weights (kdim, vdim)": attention.in_proj_weight is None,
            "add_bias_kv": attention.bias_k is not None,
            "add_zero_attn": attention.add_zero_attn,
            f"dropout = {attention.dropout}": attention.dropout != 0,
        }
        for name, present in unsupported.items():
            if present:
                raise ValueError(f"attention: got one with {name}, expected one without")
        qkv = nn.Linear(attention.embed_dim, 3 * attention.embed_dim, device="meta")
        qkv.weight, qkv.bias = attention.in_proj_weight, attention.in_proj_bias
        layers = (
            RAMoELinear.sharing(qkv, **{"splits": 3, **options}),
            RAMoELinear.sharing(attention.out_proj, **{**options, "splits": 1}),
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
        if not isinstance(query, Tensor) or query.dim() != 3:
            raise ValueError(f"query: got {_checks.shown(query)}, expected 3 dimensions: batch, tokens, features")
        if attn_mask is not None and not (
            isinstance(attn_mask, Tensor) and (attn_mask.dtype == torch.bool or attn_mask.is_floating_point())
        ):
            raise TypeError(f"attn_mask: got {_checks.shown(attn_mask)}, expected a tensor of bool or of floats")
        x = query if self.batch_first else query.transpose(0, 1)
        mask = attn_mask if attn_mask is None or attn_mask.is_floating_point() else ~attn_mask  # theirs: True = hidden
        out = self.proj(self_attention(self.qkv(x), self.num_heads, mask, self.qkv.backend))
        return (out if self.batch_first else out.transpose(0, 1)), None
