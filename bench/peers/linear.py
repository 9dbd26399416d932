"""The floor: the frozen linear layer without any adapter."""

from torch import Tensor

from bench.harness.problem import Weights
from bench.peers.base import Peer, frozen_linear


class FrozenLinear(Peer):
    """``nn.Linear`` alone: what the adapters are paid on top of. It computes less, and so can not be a peer."""

    name = "linear"
    title = "frozen nn.Linear (no adapters)"
    complete = False

    def __init__(self, weights: Weights):
        super().__init__()
        self.linear = frozen_linear(weights.weight, weights.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.linear(x),)

    def trainable(self) -> dict[str, list[Tensor]]:
        return {}
