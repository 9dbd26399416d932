"""Hugging Face PEFT, the installed package: E LoRA adapters on one Linear with gates, and its X-LoRA layer."""

from functools import partial
from types import ModuleType, SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.harness.problem import Weights
from bench.peers.base import Peer, frozen_linear, learning


def _import_peft() -> ModuleType:
    from unistd.model.torchvision_ops import define_missing_ops  # here: it needs all that UniSTD does

    define_missing_ops()  # peft imports transformers, which imports torchvision
    import peft

    return peft


class _Peft(Peer):
    """One `peft.tuners.lora.Linear` a split (a user of PEFT has Q, K and V apart), E adapters active on each."""

    def __init__(self, weights: Weights):
        super().__init__()
        peft = _import_peft()
        splits, experts, max_rank, _ = weights.lora_A.shape
        names = [f"expert{e}" for e in range(experts)]
        self.layers = nn.ModuleList()
        bases = zip(weights.weight.chunk(splits), weights.bias.chunk(splits), strict=True)
        for split, (weight, bias) in enumerate(bases):
            holder = nn.ModuleDict({"base": frozen_linear(weight, bias)})
            config = peft.LoraConfig(r=max_rank, lora_alpha=max_rank, target_modules=["base"])
            for name in names:
                # Cast to float32, its default, the adapters would only be slower.
                peft.inject_adapter_in_model(config, holder, adapter_name=name, low_cpu_mem_usage=True)
            layer = holder["base"]
            layer.set_adapter(names)
            for e, name in enumerate(names):
                layer.lora_A[name].weight = learning(weights.lora_A[split, e])
                layer.lora_B[name].weight = learning(weights.lora_B[split, e])
            self.layers.append(layer)
        self.routers = nn.ParameterList(learning(w) for w in weights.router_weight.chunk(splits))
        self.names = names

    @classmethod
    def unavailable(cls, device: torch.device, weights: Weights) -> str:
        try:
            _import_peft()
        except ImportError as error:
            return f"peft cannot be imported: {error}"
        return ""

    @classmethod
    def roundings(cls, weights: Weights) -> int:
        return weights.lora_A.shape[1] + 1

    def gates(self, x: Tensor, split: int) -> Tensor:
        logits = F.linear(x, self.routers[split])
        return logits.to(torch.promote_types(x.dtype, torch.float32)).softmax(-1).to(x.dtype)

    def trainable(self) -> dict[str, list[Tensor]]:
        layers, names = self.layers, self.names
        return {
            "lora_A": [layer.lora_A[name].weight for layer in layers for name in names],
            "lora_B": [layer.lora_B[name].weight for layer in layers for name in names],
            "router_weight": list(self.routers),
        }


class PeftLoRA(_Peft):
    """PEFT sums its active adapters ungated; a hook before each ``lora_B`` scales the narrow product by the gate."""

    name = "peft-lora"
    title = "PEFT: E LoRA adapters, gated"

    def __init__(self, weights: Weights):
        super().__init__(weights)
        self._gates: Tensor | None = None
        for layer in self.layers:
            for e, name in enumerate(self.names):
                layer.lora_B[name].register_forward_pre_hook(partial(self._gate, e))

    def _gate(self, e: int, _module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0] * self._gates[:, e, None],)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        parts = []
        for split, layer in enumerate(self.layers):
            self._gates = self.gates(x, split)
            parts.append(layer(x))
        self._gates = None
        return tuple(parts)


class PeftXLoRA(_Peft):
    """PEFT's `XLoraLinearLayer`, with the router's gates as its scalings.

    X-LoRA's own classifier, which needs a second pass of the whole model, is left out.
    """

    name = "peft-xlora"
    title = "PEFT: X-LoRA layer"

    def __init__(self, weights: Weights):
        super().__init__(weights)
        from peft.tuners.xlora.config import XLoraConfig
        from peft.tuners.xlora.layer import XLoraLinearLayer

        config = XLoraConfig(task_type="CAUSAL_LM", hidden_size=weights.x.shape[1], adapters=dict.fromkeys(self.names))
        enabled = SimpleNamespace(disabled=False)
        self._mixers = [XLoraLinearLayer(enabled, layer, layer.forward, 0, config) for layer in self.layers]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        parts = []
        for split, mixer in enumerate(self._mixers):
            scalings = self.gates(x, split)[None, :, None]  # (batch 1, M, layers 1, E)
            parts.append(mixer.forward(x[None], scalings=scalings)[0])
        return tuple(parts)
