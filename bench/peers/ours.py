"""This package's backends."""

import torch
from torch import Tensor, nn

from bench.harness.problem import Weights
from bench.peers.base import Peer, frozen_linear
from fastmoe_lora import RAMoELinear, backends


class Ours(Peer):
    """`RAMoELinear` with one of its backends, as a user builds it: nothing is prepared beforehand."""

    ours = True
    learns_ranks = True

    def __init__(self, weights: Weights):
        super().__init__()
        splits, experts, max_rank, _ = weights.lora_A.shape
        linear = frozen_linear(weights.weight, weights.bias)
        self.layer = RAMoELinear.from_linear(
            linear, num_experts=experts, max_rank=max_rank, init_rank=0, splits=splits, backend=self.name
        )
        with torch.no_grad():
            self.layer.lora_A.copy_(weights.lora_A)
            self.layer.lora_B.copy_(weights.lora_B)
            self.layer.router.weight.copy_(weights.router_weight)
        # The ranks keep the weights' precision: float64 where float64 is checked.
        self.layer.rank = nn.Parameter(weights.rank.clone())

    @classmethod
    def unavailable(cls, device: torch.device, weights: Weights) -> str:
        reason = backends()[cls.name]
        if reason is not True:
            return reason
        only = {"cpu": "cpu", "triton": "cuda"}.get(cls.name, device.type)
        return "" if only == device.type else f"does not run on {device.type}"

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.layer(x),)

    def trainable(self) -> dict[str, list[Tensor]]:
        layer = self.layer
        return {
            "lora_A": [layer.lora_A],
            "lora_B": [layer.lora_B],
            "rank": [layer.rank],
            "router_weight": [layer.router.weight],
        }


def _backend(backend: str, note: str) -> type[Ours]:
    title = f"fastmoe_lora, {backend}"
    return type(f"Ours_{backend}", (Ours,), {"name": backend, "title": title, "note": note})


OURS = (
    _backend("reference", "the definition, written to be read"),
    _backend("packed", "plain PyTorch"),
    _backend("cpu", "compiled C++; keeps a prepacked copy of the frozen weight"),
    _backend("triton", "GPU kernels"),
)
