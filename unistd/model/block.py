"""One pre-norm Transformer block with routed experts on its attention (UniSTD, section 3)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmoe_lora import RAMoELinear, self_attention
from unistd.model.config import AdapterConfig, TrunkConfig
from unistd.model.layers import LayerFactory
from unistd.model.packing import Layout, groups, join
from unistd.model.temporal import TemporalModule


def quick_gelu(x: Tensor) -> Tensor:
    """x·sigmoid(1.702x), the activation of OpenAI's CLIP."""
    return x * torch.sigmoid(1.702 * x)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
}


class Attention(nn.Module):
    """Self-attention with RA-MoE on the fused QKV (three splits) and on the output projection."""

    def __init__(self, config: TrunkConfig, adapter: AdapterConfig, layers: LayerFactory, prefix: str) -> None:
        super().__init__()
        width, experts = config.width, adapter.options
        self.heads = config.heads
        self.qkv = layers.adapted(
            f"{prefix}.qkv", width, 3 * width, width**-0.5, splits=3, **experts(adapter.qkv_experts)
        )
        self.proj = layers.adapted(
            f"{prefix}.proj", width, width, (2 * config.depth * width) ** -0.5, **experts(adapter.proj_experts)
        )

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Packed tokens (M, width) -> (M, width); a token attends to the tokens of its own sample."""
        qkv = _routed(self.qkv, x, layout)
        return _routed(self.proj, join([self._attend(group) for group in groups(qkv, layout)]), layout)

    def _attend(self, qkv: Tensor) -> Tensor:
        """(samples, tokens, 3·width) -> (samples, tokens, width)."""
        return self_attention(qkv, self.heads, backend=self.qkv.backend)


def _routed(layer: RAMoELinear, x: Tensor, layout: Layout) -> Tensor:
    """`layer` on packed tokens: a router per sample needs to know which rows of the matrix are one sample."""
    if layer.router_kind != "sample":
        return layer(x)
    gates = [layer.router_gates(group).expand(*group.shape[:2], -1, -1) for group in groups(x, layout)]
    return layer(x, join(gates))


class Mlp(nn.Module):
    """width -> mlp_hidden -> width, without adapters."""

    def __init__(self, config: TrunkConfig, layers: LayerFactory, prefix: str) -> None:
        super().__init__()
        width, hidden = config.width, config.mlp_hidden
        self.fc1 = layers.linear(f"{prefix}.fc1", width, hidden, std=(2 * width) ** -0.5)
        self.fc2 = layers.linear(f"{prefix}.fc2", hidden, width, std=(2 * config.depth * width) ** -0.5)
        self.activation = _ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class Block(nn.Module):
    """x + attention(norm1(x)), then the temporal module, then x + mlp(norm2(x)).

    Args:
        config: sizes of the Transformer. Random weights have the scale of CLIP's (Radford et al. 2021).
        adapter: experts and ranks.
        layers: makes the layers.
        index: position in the trunk, from 0.
    """

    def __init__(self, config: TrunkConfig, adapter: AdapterConfig, layers: LayerFactory, index: int) -> None:
        super().__init__()
        prefix = f"blocks.{index}"
        self.norm1 = layers.norm(f"{prefix}.norm1", config.width, config.norm_eps)
        self.attention = Attention(config, adapter, layers, f"{prefix}.attention")
        self.temporal = TemporalModule(config.width, adapter)
        self.norm2 = layers.norm(f"{prefix}.norm2", config.width, config.norm_eps)
        self.mlp = Mlp(config, layers, f"{prefix}.mlp")

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Packed tokens (M, width) -> (M, width)."""
        x = x + self.attention(self.norm1(x), layout)
        x = self.temporal(x, layout)
        return x + self.mlp(self.norm2(x))
