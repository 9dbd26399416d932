"""nn.MultiheadAttention with adapters: it holds its QKV weight as a bare parameter and never calls a linear layer."""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from . import _carried, _checks, _heads
from .layer import RAMoELinear
from .self_attention import self_attention


class _Attention(nn.Module):
    """nn.MultiheadAttention's call, around the projections that a subclass names in ``inputs``."""

    inputs: tuple[str, ...]  # the layers that queries, keys and values come from
    proj: RAMoELinear
    kdim: int
    vdim: int
    # nn.MultiheadAttention's attributes that are the same here for all. With the last, the fused inference path of
    # nn.TransformerEncoderLayer, which reads the weights and would pass the adapters by, leaves this attention alone.
    bias_k = bias_v = None
    add_zero_attn = False
    _qkv_same_embed_dim = False

    def __init__(
        self, layers: Mapping[str, RAMoELinear], parts: int, num_heads: int, batch_first: bool, dropout: float
    ):
        super().__init__()
        for name, layer in layers.items():
            _checks.instance(name, layer, RAMoELinear, "a RAMoELinear")
        width = layers["proj"].in_features
        for name, layer in layers.items():
            outputs = parts * width if name in self.inputs else width
            features = width if name in ("qkv", "q", "proj") else layer.in_features
            got, right = (layer.in_features, layer.out_features), (features, outputs)
            if got != right:
                raise ValueError(f"{name}: got {got} features, in and out, expected {right}")
            if layer.router_kind is None:
                raise ValueError(f"{name}: got a layer with router=None, expected a router: nobody hands in gates")
        expected = f"a divisor of the width {width}"
        self.num_heads = _checks.whole("num_heads", num_heads, lambda h: h >= 1 and width % h == 0, expected)
        self.batch_first = _checks.instance("batch_first", batch_first, bool, "True or False")
        self.dropout = _checks.number("dropout", dropout, lambda rate: 0 <= rate <= 1, "0 to 1")
        self.embed_dim, self.head_dim = width, width // self.num_heads
        for name, layer in layers.items():
            self.add_module(name, layer)

    @classmethod
    def from_attention(cls, attention: nn.MultiheadAttention, **options: Any) -> Self:
        """Shares and freezes the weights of ``attention``; ``options`` are those of `RAMoELinear` for all layers.

        Raises ValueError or TypeError naming what is wrong, before anything is frozen.
        """
        module = cls.sharing(attention, **options)
        for name in (*cls.inputs, "proj"):
            getattr(module, name).freeze_base_()
        return module

    @classmethod
    def sharing(cls, attention: nn.MultiheadAttention, **options: Any) -> Self:
        """As `from_attention`, with nothing frozen yet."""
        raise NotImplementedError

    @property
    def out_proj(self) -> RAMoELinear:
        return self.proj

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As ``nn.MultiheadAttention``: (output, weights), the weights None unless ``need_weights``.

        ``query`` (B, N, L) and ``key``, ``value`` (B, M, ·) if batch_first, else (N, B, L) and (M, B, ·), or without B.
        ``key_padding_mask`` (B, M) and ``attn_mask`` (N, M) or (B * heads, N, M) hide where they are True, or are added
        if of floats. The weights are (B, N, M), of each head (B, heads, N, M) if not ``average_attn_weights``.
        ``is_causal`` says that ``attn_mask``, which is what counts, is causal. Raises ValueError or TypeError naming
        the argument.
        """
        _heads.check_call(query, key, value, (self.embed_dim, self.kdim, self.vdim), self.batch_first)
        if is_causal and attn_mask is None:
            raise ValueError("attn_mask: got None with is_causal=True, expected the causal mask that this hints at")
        batched = query.dim() == 3
        q = self._batch_first(query)
        k = q if key is query else self._batch_first(key)
        v = q if value is query else k if value is key else self._batch_first(value)
        mask = _heads.merged_mask(q, k.shape[1], self.num_heads, attn_mask, key_padding_mask, batched)
        dropout, weights = self.dropout if self.training else 0.0, None
        if need_weights:
            out, weights = _heads.attend_with_weights(*self._projected(q, k, v), self.num_heads, mask, dropout)
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        else:
            out = self._attended(q, k, v, mask, dropout)
        out = self.proj(out)
        if batched:
            return (out if self.batch_first else out.transpose(0, 1)), weights
        return out.squeeze(0), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of all heads."""
        raise NotImplementedError

    def _batch_first(self, x: Tensor) -> Tensor:
        if x.dim() == 2:
            return x.unsqueeze(0)
        return x if self.batch_first else x.transpose(0, 1)

    def _attended(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
        return _heads.attend(*self._projected(query, key, value), self.num_heads, mask, dropout)


class RAMoESelfAttention(_Attention):
    """Attention whose fused QKV projection (three splits) and output projection are RA-MoE layers.

    Called as ``nn.MultiheadAttention`` is, and computes what it computes, masks, weights and dropout alike. The QKV
    layer is one call where query, key and value are one tensor; of other keys and values it computes what is needed.
    ``qkv`` maps L features to 3 L, ``proj`` L to L, and ``num_heads`` divides L; ``dropout`` is that of the attention's
    weights, in training. Raises ValueError or TypeError for anything else.
    """

    inputs = ("qkv",)
    qkv: RAMoELinear
    q_proj_weight = k_proj_weight = v_proj_weight = None

    def __init__(self, qkv: RAMoELinear, proj: RAMoELinear, num_heads: int, batch_first: bool, dropout: float = 0.0):
        super().__init__({"qkv": qkv, "proj": proj}, 3, num_heads, batch_first, dropout)
        self.kdim = self.vdim = self.embed_dim

    @classmethod
    def sharing(cls, attention: nn.MultiheadAttention, **options: Any) -> Self:
        """As `from_attention`, with nothing frozen yet."""
        _check_attention(attention)
        if attention.in_proj_weight is None:
            raise ValueError("attention: got one with separate QKV weights (kdim, vdim), expected RAMoECrossAttention")
        qkv = nn.Linear(attention.embed_dim, 3 * attention.embed_dim, device="meta")
        qkv.weight, qkv.bias = attention.in_proj_weight, attention.in_proj_bias
        layers = (
            RAMoELinear.sharing(qkv, **{"splits": 3, **options}),
            RAMoELinear.sharing(attention.out_proj, **{**options, "splits": 1}),
        )
        settings = (attention.num_heads, attention.batch_first, attention.dropout)
        return cls(*layers, *settings).train(attention.training)

    @property
    def in_proj_weight(self) -> nn.Parameter:
        return self.qkv.weight

    @property
    def in_proj_bias(self) -> nn.Parameter | None:
        return self.qkv.bias

    def _attended(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
        if query is key is value and not dropout:
            return self_attention(self.qkv(query), self.num_heads, mask, self.qkv.backend)
        return super()._attended(query, key, value, mask, dropout)

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if query is key is value:
            q, k, v = self.qkv(query).chunk(3, -1)
            return q, k, v
        if key is value:
            k, v = self._thirds(key, 1, 3).chunk(2, -1)
            return self._thirds(query, 0, 1), k, v
        if query is key:  # a position was added to both
            q, k = self._thirds(query, 0, 2).chunk(2, -1)
            return q, k, self._thirds(value, 2, 3)
        return self._thirds(query, 0, 1), self._thirds(key, 1, 2), self._thirds(value, 2, 3)

    def _thirds(self, x: Tensor, first: int, last: int) -> Tensor:
        """Thirds first to last - 1 of the layer's output: queries, keys, values."""
        splits, odd = divmod(self.qkv.splits, 3)
        if not odd:
            part: Tensor = self.qkv(x, part=(first * splits, last * splits))
            return part
        whole: Tensor = self.qkv(x)
        return whole[..., first * self.embed_dim : last * self.embed_dim]


class RAMoECrossAttention(_Attention):
    """Attention to keys and values of other widths: projections of queries, keys, values and outputs of its own each.

    Called as ``nn.MultiheadAttention(..., kdim, vdim)`` is, and computes what it computes. ``q`` and ``proj`` map L
    features to L, ``k`` and ``v`` any number to L; all else is as in `RAMoESelfAttention`.
    """

    inputs = ("q", "k", "v")
    q: RAMoELinear
    k: RAMoELinear
    v: RAMoELinear
    in_proj_weight = in_proj_bias = None

    def __init__(
        self,
        q: RAMoELinear,
        k: RAMoELinear,
        v: RAMoELinear,
        proj: RAMoELinear,
        num_heads: int,
        batch_first: bool,
        dropout: float = 0.0,
    ):
        super().__init__({"q": q, "k": k, "v": v, "proj": proj}, 1, num_heads, batch_first, dropout)
        self.kdim, self.vdim = k.in_features, v.in_features

    @classmethod
    def sharing(cls, attention: nn.MultiheadAttention, **options: Any) -> Self:
        """As `from_attention`, with nothing frozen yet, but for the three parts of the bias, which are always."""
        _check_attention(attention)
        if attention.in_proj_weight is not None:
            raise ValueError("attention: got one with a fused QKV weight, expected RAMoESelfAttention")
        biases: list[Any] = [None] * 3
        if attention.in_proj_bias is not None:
            biases = [nn.Parameter(b, requires_grad=False) for b in attention.in_proj_bias.detach().chunk(3)]
        weights: tuple[Any, ...] = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
        options = {**options, "splits": 1}
        layers = []
        for weight, bias in zip(weights, biases, strict=True):
            linear = nn.Linear(*weight.shape[::-1], device="meta")
            linear.weight, linear.bias = weight, bias
            layers.append(RAMoELinear.sharing(linear, **options))
        layers.append(RAMoELinear.sharing(attention.out_proj, **options))
        settings = (attention.num_heads, attention.batch_first, attention.dropout)
        return cls(*layers, *settings).train(attention.training)

    def given_back(self) -> dict[str, Tensor]:
        """Parameters of ``nn.MultiheadAttention`` that are here in parts."""
        biases = [layer.bias.detach() for layer in (self.q, self.k, self.v) if layer.bias is not None]
        return {"in_proj_bias": torch.cat(biases)} if len(biases) == 3 else {}

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.q(query), self.k(key), self.v(value)


def attention_class(attention: nn.MultiheadAttention) -> type[_Attention]:
    """The one that stands in for it."""
    return RAMoECrossAttention if attention.in_proj_weight is None else RAMoESelfAttention


def _check_attention(attention: nn.MultiheadAttention) -> None:
    _checks.instance("attention", attention, nn.MultiheadAttention, "an nn.MultiheadAttention")
    try:
        _carried.check_forward(attention)
    except ValueError as error:
        raise ValueError(f"attention: {error}") from None
    for name, present in {
        "add_bias_kv": attention.bias_k is not None,
        "add_zero_attn": attention.add_zero_attn,
    }.items():
        if present:
            raise ValueError(f"attention: got one with {name}, expected one without")
    for name in ("in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
        tensor = getattr(attention, name)
        if not (tensor is None or isinstance(tensor, nn.Parameter)):
            raise ValueError(f"attention: its {name} is computed, expected a parameter that is there")
