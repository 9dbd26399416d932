"""The two dataclasses that describe a UniSTD model beside its tasks: the Transformer and the adapters in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu")


@dataclass(frozen=True)
class TrunkConfig:
    """Sizes of a pre-norm Vision Transformer; the defaults are ViT-B.

    Attributes:
        width: channels of a token; a multiple of `heads` and of 4 (the sinusoidal positions need four equal parts).
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: hidden width of the MLP, as a multiple of `width`.
        activation: of the MLP: "gelu", "gelu_tanh" (its tanh approximation) or "quick_gelu" (x·sigmoid(1.702x), as in
            OpenAI's CLIP).
        norm_eps: epsilon of every LayerNorm.
        input_norm: a LayerNorm in front of the first block, as CLIP has.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    activation: str = "gelu"
    norm_eps: float = 1e-5
    input_norm: bool = False

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"TrunkConfig.{name}: expected at least 1, found {getattr(self, name)}")
        if self.width % self.heads:
            raise ValueError(f"TrunkConfig.width: expected a multiple of heads={self.heads}, found {self.width}")
        if self.width % 4:
            raise ValueError(f"TrunkConfig.width: expected a multiple of 4, found {self.width}")
        if self.mlp_hidden < 1:
            raise ValueError(f"TrunkConfig.mlp_ratio: expected a positive number, found {self.mlp_ratio}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"TrunkConfig.activation: expected one of {', '.join(ACTIVATIONS)}, found {self.activation!r}"
            )

    @property
    def mlp_hidden(self) -> int:
        return int(self.width * self.mlp_ratio)


@dataclass(frozen=True)
class AdapterConfig:
    """Routed experts of learned rank in every block; the defaults are the paper's.

    Attributes:
        qkv_experts: experts of Q, of K and of V (one fused layer, three splits).
        proj_experts: experts of the attention's output projection.
        temporal_experts: experts of the temporal module's second layer.
        temporal_width: hidden width of the temporal module.
        router: "token" (gates per token) or "sample" (one set of gates for all tokens of a sample).
        top_k: keep this many gates; at most the number of experts of a layer counts.
        max_rank, init_rank, scaling, interpolation, dropout, backend: as in `fastmoe_lora.RAMoELinear`.
    """

    qkv_experts: int = 6
    proj_experts: int = 2
    temporal_experts: int = 2
    temporal_width: int = 128
    max_rank: int = 8
    init_rank: float = 4.5
    router: str = "token"
    top_k: int | None = None
    scaling: float = 1.0
    interpolation: str = "linear"
    dropout: float = 0.0
    backend: str = "auto"

    def __post_init__(self) -> None:
        if self.router not in ("token", "sample"):
            raise ValueError(f"AdapterConfig.router: expected 'token' or 'sample', found {self.router!r}")

    def options(self, num_experts: int) -> dict[str, Any]:
        """Keyword arguments of a `RAMoELinear` with `num_experts` experts."""
        return {
            "num_experts": num_experts,
            "max_rank": self.max_rank,
            "init_rank": self.init_rank,
            "router": self.router,
            "top_k": None if self.top_k is None else min(self.top_k, num_experts),
            "scaling": self.scaling,
            "interpolation": self.interpolation,
            "dropout": self.dropout,
            "backend": self.backend,
        }
