"""The honest rival: what somebody who knows PyTorch writes, eager and under torch.compile."""

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.harness.problem import Weights
from bench.peers.base import Peer, frozen, learning


class ThreeGemm(Peer):
    """``s = x A^T`` for all experts and router logits in one product, ``t = s * gate * d``, ``y = x W^T + b + t B^T``.

    Parameters lie stacked as the products want them: `down` (S·E·R + S·E, K), `up` (S, E·R, N/S).
    """

    name = "three-gemm"
    title = "three GEMMs in torch, eager"
    learns_ranks = True

    def __init__(self, weights: Weights):
        super().__init__()
        self.splits, self.experts, self.max_rank, _ = weights.lora_A.shape
        self.width = self.experts * self.max_rank
        self.weight, self.bias = frozen(weights.weight), frozen(weights.bias)
        self.down = learning(torch.cat([weights.lora_A.flatten(0, 2), weights.router_weight]))
        self.up = learning(weights.lora_B.transpose(2, 3).flatten(1, 2))
        self.rank = learning(weights.rank)
        self.register_buffer("column", torch.arange(self.max_rank, device=weights.x.device), persistent=False)

    def coefficients(self, logits: Tensor) -> Tensor:
        """Router logits (M, S·E) -> gate·d of every column, (M, S, E, R)."""
        wide = torch.promote_types(logits.dtype, torch.float32)
        gates = logits.unflatten(1, (self.splits, self.experts)).to(wide).softmax(-1)
        return gates[..., None] * (self.rank[..., None] - self.column).clamp(0, 1)

    def low_rank(self, x: Tensor) -> Tensor:
        """(M, S, E·R)"""
        product = F.linear(x, self.down)
        s, logits = product.tensor_split([self.splits * self.width], dim=1)
        t = s.unflatten(1, (self.splits, self.experts, self.max_rank)) * self.coefficients(logits)
        return t.to(x.dtype).flatten(2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        t = self.low_rank(x)
        parts = F.linear(x, self.weight, self.bias).unflatten(1, (self.splits, -1)).unbind(1)
        if torch.is_grad_enabled():
            return tuple(torch.addmm(part, t[:, s], self.up[s]) for s, part in enumerate(parts))
        return tuple(part.addmm_(t[:, s], self.up[s]) for s, part in enumerate(parts))

    def trainable(self) -> dict[str, list[Tensor]]:
        return {"down": [self.down], "up": [self.up], "rank": [self.rank]}

    def canonical(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gradients of `down` and `up` as those of the operands they are made of."""
        rows = self.splits * self.width
        shape = (self.splits, self.experts, self.max_rank, -1)
        down = gradients["down"].view_as(self.down)
        return {
            "lora_A": down[:rows].reshape(shape),
            "lora_B": gradients["up"].reshape(shape).transpose(2, 3),
            "rank": gradients["rank"],
            "router_weight": down[rows:],
        }


class Compiled(Peer):
    """The three GEMMs under torch.compile, for this one shape (``dynamic=False``)."""

    learns_ranks = True
    compiles = True
    arguments: dict

    def __init__(self, weights: Weights):
        super().__init__()
        self.module = ThreeGemm(weights)
        self._compiled = None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if self._compiled is None:
            self._compiled = torch.compile(self.module, dynamic=False, fullgraph=True, **self.arguments)
        return self._compiled(x)

    def trainable(self) -> dict[str, list[Tensor]]:
        return self.module.trainable()

    def canonical(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.module.canonical(gradients)


class CompiledDefault(Compiled):
    name = "compile"
    title = "three GEMMs, torch.compile"
    arguments: dict = {}  # noqa: RUF012


class CompiledAutotune(Compiled):
    name = "compile-max-autotune"
    title = "three GEMMs, torch.compile max-autotune"
    # Without graphs of its own: on a GPU the timing makes one of any entrant, and graphs cannot be captured in another.
    arguments: dict = {"mode": "max-autotune-no-cudagraphs"}  # noqa: RUF012


class CompiledFreezing(Compiled):
    """Inference on a CPU: weights become constants, which Inductor packs beforehand."""

    name = "compile-freezing"
    title = "three GEMMs, torch.compile max-autotune + freezing"
    note = "inference only: its weights are constants"
    trains = False
    arguments: dict = {"options": {"freezing": True, "max_autotune": True}}  # noqa: RUF012

    def __init__(self, weights: Weights):
        super().__init__(weights)
        self.eval().requires_grad_(False)
