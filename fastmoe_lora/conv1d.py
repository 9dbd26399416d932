"""The linear layer of GPT-2 and its kin, transformers' ``Conv1D``, with adapters."""

from typing import Any, Self

import torch
from torch import Tensor, nn

from . import _checks
from ._carried import conv1d_class
from .layer import RAMoELinear


class RAMoEConv1D(RAMoELinear):
    """Drop-in ``Conv1D`` of transformers with RA-MoE adapters: ``(..., nx) -> (..., nf)``.

    It computes with the weight as ``(nf, nx)``, a copy, which is its parameter. Its state dict holds the weight as that
    of a ``Conv1D`` does, ``(nx, nf)``: the checkpoint of a model that is not adapted fits. All else is as in
    `RAMoELinear`.
    """

    other_form = ("weight",)  # see `original_parameter`

    @classmethod
    def sharing(cls, linear: Any, **options: Any) -> Self:
        """As `from_linear`, with nothing frozen yet but the weight, of which this has a copy."""
        if conv1d_class(linear) is None:
            raise TypeError(f"linear: got {_checks.shown(linear)}, expected a Conv1D of transformers")
        for name in ("weight", "bias"):
            if not isinstance(getattr(linear, name), nn.Parameter):
                raise ValueError(f"linear: its {name} is computed, expected a parameter that is there")
        if linear.weight.shape != (linear.nx, linear.nf):
            expected = (linear.nx, linear.nf)
            raise ValueError(f"linear: its weight has shape {tuple(linear.weight.shape)}, expected {expected}")
        turned = nn.Linear(linear.nx, linear.nf, device="meta")
        turned.weight, turned.bias = _turned(linear.weight), linear.bias
        return super().sharing(turned.train(linear.training), **options)

    @property
    def nx(self) -> int:
        return self.in_features

    @property
    def nf(self) -> int:
        return self.out_features

    def original_parameter(self, name: str) -> nn.Parameter:
        """What a parameter of the layer that this stands in for is by now, which here has another form."""
        return _turned(getattr(self, name))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = destination[f"{prefix}weight"].T

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        weight = state_dict.get(f"{prefix}weight")
        if isinstance(weight, Tensor) and weight.dim() == 2:
            with torch.no_grad():
                state_dict[f"{prefix}weight"] = weight.T.contiguous()
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _turned(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach().T.contiguous(), requires_grad=False)
