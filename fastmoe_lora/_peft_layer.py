"""The layer that PEFT's models have in the place of a linear one."""

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ._carried import conv1d_class
from ._folding import merged_weight
from ._lora_file import features
from .layer import RAMoELinear

ADAPTERS = "ramoe_adapters"


class Experts(RAMoELinear):
    """The adapters of one layer of PEFT's, with weight and bias of the base layer, which holds them."""

    def __init__(self, base: Any, options: dict[str, Any]):
        weight = base.weight
        super().__init__(*features(base), True, device=weight.device, dtype=weight.dtype, **options)
        for name in ("weight", "bias"):
            del self._parameters[name]
        self._holder = (base,)  # in a tuple, so that it is no module of this one
        self.train(base.training)

    @property
    def weight(self) -> Tensor:  # type: ignore[override] # computed, where the layer's own is a parameter
        base = self._holder[0]
        return turned(base, base.weight)

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        bias: Tensor | None = self._holder[0].bias
        return bias


class RAMoELayer(nn.Module, BaseTunerLayer):
    """A linear layer of the model with RA-MoE adapters by name, of which one is active."""

    adapter_layer_names = (ADAPTERS,)
    other_param_names = ()

    def __init__(self, base_layer: nn.Module):
        super().__init__()
        self.base_layer: Any = base_layer  # a linear layer or a Conv1D
        self.ramoe_adapters = nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self.in_features, self.out_features = features(base_layer)
        self._unmerged: Tensor | None = None  # the base weight before a merge

    def update_layer(self, adapter_name: str, options: dict[str, Any], inference_mode: bool) -> None:
        self.ramoe_adapters[adapter_name] = Experts(self.base_layer, options)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        for experts in self.ramoe_adapters.values():
            if experts.ranks_whole:
                experts.rank.requires_grad_(False)

    @property
    def active(self) -> RAMoELinear | None:
        """The adapters that are added here, None if the active ones have none for this layer."""
        names = [name for name in self.active_adapters if name in self.ramoe_adapters]
        return self._experts(names[0]) if names else None

    def forward(self, x: Tensor, gates: Tensor | None = None) -> Tensor:
        """``(..., in) -> (..., out)``; ``gates`` as in `RAMoELinear`."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        active = None if self.disable_adapters or self.merged else self.active
        y: Tensor = self.base_layer(x) if active is None else active(x, gates)
        return y

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Adds the active adapters, of a single expert, to the base weight, in float32, rounded once."""
        names = self.active_adapters if adapter_names is None else adapter_names
        for name in names:
            if self.merged or name not in self.ramoe_adapters:
                continue
            weight = self._merged_weight(self._experts(name))
            if safe_merge and not bool(weight.isfinite().all()):
                raise ValueError(f"merge: adapter {name!r} makes a weight that is not finite")
            self._unmerged = self.base_layer.weight.data
            self.base_layer.weight.data = weight
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Gives the base layer its weight back, bit for bit."""
        if self.merged:
            self.base_layer.weight.data, self._unmerged = self._unmerged, None
            self.merged_adapters.clear()

    def _experts(self, name: str) -> Experts:
        experts = self.ramoe_adapters[name]
        assert isinstance(experts, Experts)
        return experts

    def _merged_weight(self, experts: Experts) -> Tensor:
        weight = merged_weight("of merge", experts, torch.ones(experts.splits, 1, dtype=torch.float64))
        return turned(self.base_layer, weight).contiguous()


def turned(base: nn.Module, weight: Tensor) -> Tensor:
    """A weight of ``base`` as that of an nn.Linear, or the other way round."""
    return weight.T if conv1d_class(base) else weight
