"""A Python loop over experts, as the published mixture-of-LoRA code bases have it, written after their structure."""

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.harness.problem import Weights
from bench.peers.base import Peer, frozen_linear, learning


class _Loop(Peer):
    """One pair of factors an expert, one router a split."""

    def __init__(self, weights: Weights):
        super().__init__()
        self.base = frozen_linear(weights.weight, weights.bias)
        self.splits, self.experts = weights.lora_A.shape[:2]
        self.lora_A = nn.ParameterList(learning(a) for a in weights.lora_A.flatten(0, 1))
        self.lora_B = nn.ParameterList(learning(b) for b in weights.lora_B.flatten(0, 1))
        self.routers = nn.ParameterList(learning(w) for w in weights.router_weight.chunk(self.splits))

    @classmethod
    def roundings(cls, weights: Weights) -> int:
        return weights.lora_A.shape[1] + 1

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        parts = self.base(x).chunk(self.splits, dim=1)
        return tuple(self.mix(x, part, split) for split, part in enumerate(parts))

    def gates(self, x: Tensor, split: int) -> Tensor:
        """(M, E), softmax in float32 (float64 for float64 x)."""
        logits = F.linear(x, self.routers[split])
        return logits.to(torch.promote_types(x.dtype, torch.float32)).softmax(-1)

    def expert(self, x: Tensor, split: int, e: int) -> Tensor:
        index = split * self.experts + e
        return F.linear(F.linear(x, self.lora_A[index]), self.lora_B[index])

    @abstractmethod
    def mix(self, x: Tensor, base: Tensor, split: int) -> Tensor:
        """base (M, N/S), the frozen product of one split -> with what the experts add."""

    def trainable(self) -> dict[str, list[Tensor]]:
        return {"lora_A": list(self.lora_A), "lora_B": list(self.lora_B), "router_weight": list(self.routers)}


class HydraLoRA(_Loop):
    """HydraLoRA's loop: every expert on every token, its output times its gate, added up. Each expert has its own A."""

    name = "hydralora"
    title = "loop over experts as HydraLoRA"

    def mix(self, x: Tensor, base: Tensor, split: int) -> Tensor:
        gates = self.gates(x, split).to(x.dtype)
        for e in range(self.experts):
            base = base + gates[:, e, None] * self.expert(x, split, e)
        return base


class MixLoRA(_Loop):
    """The loop of MixLoRA / MoE-PEFT: one-hot mask of the chosen experts, `torch.where`, gather, `index_add_`.

    All experts are chosen (top-k of all), as the function asks. It runs in the compute dtype; MoE-PEFT itself runs the
    adapters in float32 and asserts dropout > 0, which would only slow it down.
    """

    name = "mixlora"
    title = "loop over experts as MixLoRA / MoE-PEFT"

    def mix(self, x: Tensor, base: Tensor, split: int) -> Tensor:
        gates, chosen = self.gates(x, split).topk(self.experts, dim=-1)
        mask = F.one_hot(chosen, self.experts).permute(2, 1, 0)  # (E, k, M)
        update = torch.zeros_like(base)
        for e in range(self.experts):
            place, token = torch.where(mask[e])
            output = self.expert(x[token], split, e) * gates[token, place, None].to(x.dtype)
            update = update.index_add(0, token, output)
        return base + update
