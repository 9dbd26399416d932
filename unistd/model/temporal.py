"""The temporal module: one gate per sample and channel, from what the whole sequence of frames looks like."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastmoe_lora import RAMoELinear
from unistd.model.config import AdapterConfig
from unistd.model.packing import Layout, groups, join


class TemporalModule(nn.Module):
    """x · 2σ(u(mean of x over its tokens)), u = RA-MoE linear after GELU after linear; the identity at the start.

    Time lies folded in the channels of a token, so a gate on the channels weighs the frames' features against one
    another (squeeze and excitation over time). Both layers are new and trained; weight, bias and experts of the second
    one start at zero, and 2σ(0) = 1.
    """

    def __init__(self, width: int, adapter: AdapterConfig) -> None:
        super().__init__()
        self.down = nn.Linear(width, adapter.temporal_width)
        self.up = RAMoELinear(adapter.temporal_width, width, **adapter.options(adapter.temporal_experts))
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Packed tokens (M, width) -> (M, width)."""
        sequences = groups(x, layout)
        means = [sequence.mean(dim=1) for sequence in sequences]
        hidden = nn.functional.gelu(self.down(torch.cat(means)))  # one launch for the samples of all groups
        change = self.up(hidden[:, None])[:, 0]  # as sequences of one token: a router per sample sees one sample each
        gates = (2 * torch.sigmoid(change)).to(x.dtype).split([samples for samples, _ in layout])
        return join([sequence * gate[:, None] for sequence, gate in zip(sequences, gates, strict=True)])
