"""The Transformer shared by all tasks."""

from __future__ import annotations

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unistd.model.block import Block
from unistd.model.config import AdapterConfig, TrunkConfig
from unistd.model.layers import LayerFactory
from unistd.model.packing import Layout


class Trunk(nn.Module):
    """LayerNorm in front (where the source has one) -> blocks -> final LayerNorm.

    Of a source model just these are kept: its patch embedding, class token, positions, pooling and heads are not. The
    LayerNorm in front is CLIP's `ln_pre`: it brings tokens to the scale that the frozen blocks were trained on.

    Args:
        config: sizes.
        adapter: experts and ranks.
        layers: makes the layers, frozen or trained.
        checkpointing: recompute each block in the backward pass instead of keeping its activations.
    """

    def __init__(
        self, config: TrunkConfig, adapter: AdapterConfig, layers: LayerFactory, checkpointing: bool = False
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        width, eps = config.width, config.norm_eps
        self.norm_in = layers.norm("norm_in", width, eps) if config.input_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(config, adapter, layers, index) for index in range(config.depth))
        self.norm_out = layers.norm("norm_out", width, eps)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Packed tokens (M, width) -> (M, width)."""
        x = self.norm_in(x)
        for block in self.blocks:
            if self.checkpointing and self.training:
                x = checkpoint(block, x, layout, use_reentrant=False)
            else:
                x = block(x, layout)
        return self.norm_out(x)
