"""Makes the layers of the trunk: frozen ones with the source's weights, or new ones that are trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastmoe_lora import FrozenLinear, RAMoELinear


@dataclass(frozen=True)
class LayerFactory:
    """The one place that decides what the trunk's layers are made of.

    Attributes:
        weights: the source's, by our names (`unistd.model.weights`); None: random ones.
        frozen: layers keep their weights. Without `weights` these are then expected from a checkpoint.
    """

    weights: Mapping[str, Tensor] | None = None
    frozen: bool = False

    def linear(self, name: str, in_features: int, out_features: int, std: float) -> nn.Linear:
        """The linear layer of that name; without weights: normal with `std`, bias zero."""
        linear = self._plain(name, in_features, out_features, std)
        return FrozenLinear.from_linear(linear) if self.frozen else linear

    def _plain(self, name: str, in_features: int, out_features: int, std: float) -> nn.Linear:
        linear = nn.utils.skip_init(nn.Linear, in_features, out_features, device=torch.get_default_device())
        with torch.no_grad():
            if self.weights is None:
                linear.weight.normal_(std=std)
                linear.bias.zero_()
            else:
                linear.weight.copy_(self.weights[f"{name}.weight"])
                linear.bias.copy_(self.weights[f"{name}.bias"])
        return linear

    def adapted(self, name: str, in_features: int, out_features: int, std: float, **options: object) -> RAMoELinear:
        """The same with routed experts beside it; `options` are those of `RAMoELinear`."""
        layer = RAMoELinear.from_linear(self._plain(name, in_features, out_features, std), **options)
        layer.weight.requires_grad_(not self.frozen)
        layer.bias.requires_grad_(not self.frozen)
        return layer

    def norm(self, name: str, width: int, eps: float) -> nn.LayerNorm:
        """The LayerNorm of that name; without weights: one and zero."""
        norm = nn.LayerNorm(width, eps=eps)
        if self.weights is not None:
            with torch.no_grad():
                norm.weight.copy_(self.weights[f"{name}.weight"])
                norm.bias.copy_(self.weights[f"{name}.bias"])
        return norm.requires_grad_(not self.frozen)
