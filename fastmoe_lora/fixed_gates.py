"""One mixture of the experts for all inputs, instead of the router's."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from . import _checks
from .layer import RAMoELinear
from .ranks import named_layers


@contextmanager
def fixed_gates(model: nn.Module, gates: Sequence[float] | Tensor) -> Iterator[None]:
    """In this context every RA-MoE layer mixes its experts by ``gates``, whatever the input is.

    ``gates``: E numbers, or (S, E) for layers of S splits. ``[0, 1, 0]`` is the second of three experts alone. Raises
    ValueError or TypeError for a model without RA-MoE layers, and naming the layer that the gates do not fit.
    """
    layers = named_layers(model)
    fixed = {layer: layer_gates(name, layer, gates).float() for name, layer in layers.items()}

    def hand_in(layer: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        names = ("x", "gates", "part")
        given = {**dict(zip(names, arguments, strict=False)), **options}
        first, last = given.get("part") or (0, layer.splits)
        return (), {**given, "gates": fixed[layer].to(layer.lora_A.device)[first:last]}

    with ExitStack() as stack:
        for layer in layers.values():
            stack.enter_context(layer.register_forward_pre_hook(hand_in, with_kwargs=True))
        yield


def chosen_gates(name: str, layer: RAMoELinear, expert: Any, gates: Any, instead: str) -> Tensor:
    """(S, E) of this layer for what stands for one ``expert`` or a mixture by ``gates``: by neither only where there is
    one expert. ``instead`` ends the refusal of gates that depend on the input or are the caller's."""
    if gates is not None:
        if expert is not None:
            raise ValueError("expert: got one beside gates, expected one of the two")
        return layer_gates(name, layer, gates)
    count = layer.num_experts
    if expert is None and (count > 1 or layer.router_kind is None):
        by = "its router decides by the input" if layer.router_kind else "its gates are the caller's"
        raise ValueError(f"gates: got none for layer {name!r}, expected expert=... or gates=[...]: {by}, {instead}")
    if expert is not None:
        _checks.whole("expert", expert, lambda e: 0 <= e < count, f"0 to {count - 1}, an expert of layer {name!r}")
    return layer_gates(name, layer, [float(place == (expert or 0)) for place in range(count)])


def layer_gates(name: str, layer: RAMoELinear, gates: Any) -> Tensor:
    """``gates`` as those of this layer: (S, E), float64."""
    shape = (layer.splits, layer.num_experts)
    expected = f"{shape[1]} numbers, or {shape}, for layer {name!r}"
    if isinstance(gates, (str, Mapping)) or not isinstance(gates, (Tensor, Sequence)):
        raise TypeError(f"gates: got {_checks.shown(gates)}, expected {expected}")
    try:
        found = torch.as_tensor(gates, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(f"gates: got {_checks.shown(gates)}, expected {expected}") from None
    if found.dtype == torch.bool or found.is_complex():
        raise TypeError(f"gates: got {found.dtype}, expected {expected}")
    if tuple(found.shape) not in (shape[1:], shape):
        raise ValueError(f"gates: got shape {tuple(found.shape)}, expected {expected}")
    found = found.double().expand(shape)
    if fault := _checks.element_fault("gates", found, found.isfinite(), "a finite number"):
        raise ValueError(f"gates: {fault}")
    return found
