"""The concatenation trick: [x | t] [W | B]^T, one GEMM with a longer contraction."""

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.harness.problem import Weights
from bench.peers.base import frozen
from bench.peers.three_gemm import ThreeGemm


class ConcatK(ThreeGemm):
    """x lies in a buffer whose last S·E·R columns are free, as if the layer before had written it there: no copy.

    A fused QKV has a block of B per split, zero elsewhere.
    """

    name = "concat-k"
    title = "concat-K in torch"
    note = "inference only: autograd would compute a gradient of the frozen W along with B's"
    trains = False

    def __init__(self, weights: Weights):
        super().__init__(weights)
        blocks = torch.block_diag(*(up.T for up in self.up.detach()))  # (N, S·E·R)
        self.wide_weight = frozen(torch.cat([weights.weight, blocks], dim=1))

    def prepare(self, x: Tensor) -> Tensor:
        wide = x.new_empty(x.shape[0], self.wide_weight.shape[1])
        wide[:, : x.shape[1]] = x
        return wide

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        t = self.low_rank(x[:, : self.weight.shape[1]])
        x[:, self.weight.shape[1] :] = t.flatten(1)
        return (F.linear(x, self.wide_weight, self.bias),)
