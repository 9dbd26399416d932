"""Kernels of other projects that need a GPU; each prints why where it cannot be imported."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.harness.problem import Weights
from bench.peers.base import Peer, frozen, learning


class _GpuPeer(Peer):
    module: str

    @classmethod
    def unavailable(cls, device: torch.device, weights: Weights) -> str:
        if device.type != "cuda":
            return f"its kernels need a GPU, this is {device.type}"
        try:
            __import__(cls.module)
        except Exception as error:  # these packages raise all kinds of errors at import on a GPU they do not know
            return f"{cls.module} cannot be imported: {error}"
        return ""


class _SingleLoRA(_GpuPeer):
    """One LoRA of rank E·R a split: no gates, no router."""

    gated = False
    note = "no gates: one LoRA of rank E·R, which is less work"

    def __init__(self, weights: Weights):
        super().__init__()
        splits, experts = weights.lora_A.shape[:2]
        self.scale = 1 / experts
        self.weight = nn.ParameterList(frozen(w) for w in weights.weight.chunk(splits))
        self.bias = nn.ParameterList(frozen(b) for b in weights.bias.chunk(splits))
        self.lora_A = nn.ParameterList(learning(a.flatten(0, 1)) for a in weights.lora_A)  # (E·R, K)
        self.lora_B = nn.ParameterList(learning(b.transpose(0, 1).flatten(1)) for b in weights.lora_B)  # (N/S, E·R)
        self.shape = weights.lora_B.shape

    def trainable(self) -> dict[str, list[Tensor]]:
        return {"lora_A": list(self.lora_A), "up": list(self.lora_B)}

    def canonical(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        splits, experts, _, max_rank = self.shape
        up = gradients["up"].reshape(splits, -1, experts, max_rank).transpose(1, 2)
        return {"lora_A": gradients["lora_A"], "lora_B": up}


class Unsloth(_SingleLoRA):
    """unsloth's `LoRA_W`. Its fast path has no bias, so the bias is added in place afterwards."""

    name, title, module = "unsloth", "unsloth LoRA_W", "unsloth"

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        from unsloth.kernels.fast_lora import LoRA_W

        operands = zip(self.weight, self.lora_A, self.lora_B, self.bias, strict=True)
        return tuple(LoRA_W.apply(x[None], w, None, a, b, self.scale)[0] + bias for w, a, b, bias in operands)


class LoRAFusion(_SingleLoRA):
    """LoRAFusion's `fused_linear_lora`, without dropout. Its kernels want a rank that is a power of two: padded."""

    name, title, module = "lorafusion", "LoRAFusion fused_linear_lora", "lorafusion"

    def __init__(self, weights: Weights):
        super().__init__(weights)
        rank = self.lora_A[0].shape[0]
        self.padding = (1 << (rank - 1).bit_length()) - rank

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        from lorafusion.ops.lora_v1 import fused_linear_lora

        operands = zip(self.weight, self.lora_A, self.lora_B, self.bias, strict=True)
        return tuple(
            fused_linear_lora(
                x[None], w, F.pad(a, (0, 0, 0, self.padding)), F.pad(b, (0, self.padding)), self.scale, linear_bias=bias
            )[0]
            for w, a, b, bias in operands
        )


class ScatterMoE(_GpuPeer):
    """ScatterMoE's `ParallelExperts` as its example `molora.py` uses them, every token to all experts."""

    name, title, module = "scattermoe", "ScatterMoE mixture of LoRA", "scattermoe"

    def __init__(self, weights: Weights):
        super().__init__()
        from scattermoe.parallel_experts import ParallelExperts

        splits, experts, max_rank, width = weights.lora_A.shape
        self.experts = experts
        self.weight, self.bias = frozen(weights.weight), frozen(weights.bias)
        self.down = nn.ModuleList(ParallelExperts(experts, width, max_rank) for _ in range(splits))
        self.up = nn.ModuleList(ParallelExperts(experts, max_rank, weights.lora_B.shape[2]) for _ in range(splits))
        for split in range(splits):
            self.down[split].weight = learning(weights.lora_A[split])
            self.up[split].weight = learning(weights.lora_B[split])
        self.routers = nn.ParameterList(learning(w) for w in weights.router_weight.chunk(splits))

    @classmethod
    def roundings(cls, weights: Weights) -> int:
        return 2

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        from scattermoe.parallel_experts import flatten_sort_count

        parts = F.linear(x, self.weight, self.bias).chunk(len(self.down), dim=1)
        outputs = []
        for part, down, up, router in zip(parts, self.down, self.up, self.routers, strict=True):
            gates, chosen = F.linear(x, router).float().softmax(-1).topk(self.experts, dim=-1)
            order = flatten_sort_count(chosen, self.experts)
            s = down(x, self.experts, *order, grouped_out=True)
            outputs.append(part + up(s, 1, *order, gates=gates.to(x.dtype), grouped_in=True))
        return tuple(outputs)

    def trainable(self) -> dict[str, list[Tensor]]:
        return {
            "lora_A": [experts.weight for experts in self.down],
            "lora_B": [experts.weight for experts in self.up],
            "router_weight": list(self.routers),
        }
