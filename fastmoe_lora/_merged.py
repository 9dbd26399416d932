"""The weight that a layer has in the place of its own and its adapters, while they are merged."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import _checks
from ._folding import merged_weight

if TYPE_CHECKING:
    from .layer import RAMoELinear

_OPTIONS = ("scaling", "interpolation", "rank_window", "ranks_whole")


class Merged:
    """``weight`` (out, in) of the layer called ``name``, made with ``gates`` (S, E). Nothing of the layer is changed by
    making it; `do` and `undo` are."""

    def __init__(self, name: str, layer: "RAMoELinear", gates: Tensor):
        self.name, self.gates, self.weight = name, gates, merged_weight(name, layer, gates)
        finite = self.weight.isfinite()
        if fault := _checks.element_fault("weight with experts", self.weight, finite, f"finite in {self.weight.dtype}"):
            raise ValueError(f"model: layer {name!r}: {fault}")

    def do(self, layer: "RAMoELinear") -> None:
        """From now on the layer computes with this weight, and nothing of it learns."""
        self.learned = [name for name, parameter in layer.named_parameters() if parameter.requires_grad]
        _set_learning(layer, self.learned, False)
        layer.merged = self
        self.renew(layer)

    def undo(self, layer: "RAMoELinear") -> None:
        _set_learning(layer, self.learned, True)
        layer.merged = None

    def checked(self, layer: "RAMoELinear", gates: Tensor | None, part: tuple[int, int] | None) -> Tensor:
        """The weight, if the call is one that it stands for; ValueError else."""
        if torch.is_grad_enabled() and (layer.training or any(p.requires_grad for p in layer.parameters())):
            raise ValueError(f"{self._named}, expected unmerge(model) before it is trained, or eval() and frozen")
        if gates is not None and not self._are_mine(gates, part):
            raise ValueError(f"gates: {self._named} with others, expected these or none")
        if not torch.compiler.is_compiling() and self._state != _state(layer):
            raise ValueError(f"{self._named}, and has changed since, expected unmerge(model) and merge anew")
        return self.weight

    def apply(self, layer: "RAMoELinear", function: Callable[[Tensor], Tensor]) -> None:
        """``function``, which was applied to the layer's tensors, on the weight."""
        self.weight = function(self.weight)
        self.renew(layer)

    def renew(self, layer: "RAMoELinear") -> None:
        """Takes the layer as it is now for the one that was merged."""
        self._state = _state(layer)

    @property
    def _named(self) -> str:
        return f"layer {self.name!r} is merged"

    def _are_mine(self, gates: Tensor, part: tuple[int, int] | None) -> bool:
        if torch.compiler.is_compiling():
            return False
        mine = self.gates if part is None else self.gates[slice(*part)]
        mine = mine.to(gates.device, gates.dtype)
        return gates.shape[-2:] == mine.shape and bool((gates == mine).all())


def check_unmerged(layers: dict[str, "RAMoELinear"]) -> None:
    """ValueError naming the first layer that is merged."""
    for name, layer in layers.items():
        if layer.merged is not None:
            raise ValueError(f"model: layer {name!r} is merged, expected unmerge(model) first")


def _set_learning(layer: nn.Module, names: list[str], learns: bool) -> None:
    for name in names:
        layer.get_parameter(name).requires_grad_(learns)


def _state(layer: "RAMoELinear") -> tuple[Any, ...]:
    """Differs once the numbers or options differ that a merged weight is made of."""
    tensors = (layer.weight, layer.lora_A, layer.lora_B, layer.rank)
    versions = [(id(tensor), 0 if tensor.is_inference() else tensor._version) for tensor in tensors]
    return (*versions, *(getattr(layer, name) for name in _OPTIONS))
