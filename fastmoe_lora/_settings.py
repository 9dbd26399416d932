"""The options that decide what a layer's numbers mean, as one small tensor of its state dict."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _checks
from .diagonal import INTERPOLATIONS
from .routing import ROUTERS

if TYPE_CHECKING:
    from .layer import RAMoELinear

_CHOICES = {"router_kind": ROUTERS, "interpolation": INTERPOLATIONS}  # stored as an index
_NAMES = ("router_kind", "top_k", "scaling", "dropout", "interpolation", "rank_window")
_OFF = 0.0  # top_k of None


def settings(layer: RAMoELinear) -> Tensor:
    """(6,) int64: the bits of float64 numbers, which no cast of a state dict to another precision touches. With splits
    of several widths (6 + S,): these follow."""
    values = {name: getattr(layer, name) for name in _NAMES}
    for name, choices in _CHOICES.items():
        values[name] = choices.index(values[name])
    values["top_k"] = values["top_k"] or _OFF
    widths = layer.widths if max(layer.units) > 1 else ()
    return torch.tensor([*values.values(), *widths], dtype=torch.float64, device="cpu").view(torch.int64)


def settings_fault(layer: RAMoELinear, value: Any, frozen: bool) -> str | None:
    """The first option that is another one than the layer's; None if none is. The rank window may be any, and so may
    the interpolation where ranks are ``frozen``."""
    own = settings(layer)
    if not isinstance(value, Tensor) or value.dtype != torch.int64 or value.shape != own.shape or value.is_meta:
        expected = f"the options of a layer, {tuple(own.shape)} of torch.int64"
        return f"_extra_state is {_checks.shown(value)}, expected {expected}"
    found, mine = _decoded(value), _decoded(own)
    widths = _numbers(value)[len(_NAMES) :]
    if widths != _numbers(own)[len(_NAMES) :]:
        return f"the widths of the splits are {_checks.shown(widths)}, the layer has {layer.widths}"
    for name in _NAMES[:-1]:
        if found[name] != mine[name] and not (frozen and name == "interpolation"):
            return f"{name} is {found[name]!r}, the layer has {mine[name]!r}"
    window = found["rank_window"]
    return None if 0 < window < math.inf else f"rank_window is {window}, expected a positive, finite number"


def rank_window(value: Tensor) -> float:
    """The rank window of `settings`."""
    window: float = _decoded(value)["rank_window"]
    return window


def _decoded(value: Tensor) -> dict[str, Any]:
    found: dict[str, Any] = dict(zip(_NAMES, _numbers(value), strict=False))
    for name, choices in _CHOICES.items():
        if found[name] in range(len(choices)):
            found[name] = choices[int(found[name])]
    if found["top_k"] == _OFF:
        found["top_k"] = None
    elif found["top_k"].is_integer():
        found["top_k"] = int(found["top_k"])
    return found


def _numbers(value: Tensor) -> list[float]:
    return value.cpu().contiguous().view(torch.float64).tolist()
