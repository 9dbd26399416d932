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
    """(6,) int64: the bits of float64 numbers, which no cast of a state dict to another precision touches."""
    values = {name: getattr(layer, name) for name in _NAMES}
    for name, choices in _CHOICES.items():
        values[name] = choices.index(values[name])
    values["top_k"] = values["top_k"] or _OFF
    return torch.tensor(list(values.values()), dtype=torch.float64, device="cpu").view(torch.int64)


def settings_fault(layer: RAMoELinear, value: Any, frozen: bool) -> str | None:
    """The first option that is another one than the layer's; None if none is. The rank window may be any, and so may
    the interpolation where ranks are ``frozen``."""
    if not isinstance(value, Tensor) or value.dtype != torch.int64 or value.shape != (len(_NAMES),) or value.is_meta:
        return f"_extra_state is {_checks.shown(value)}, expected the options of a layer, (6,) of torch.int64"
    found, mine = _decoded(value), _decoded(settings(layer))
    for name in _NAMES[:-1]:
        if found[name] != mine[name] and not (frozen and name == "interpolation"):
            return f"{name} is {found[name]!r}, the layer has {mine[name]!r}"
    window = found["rank_window"]
    return None if 0 < window < math.inf else f"rank_window is {window}, expected a positive, finite number"


def rank_window(value: Tensor) -> float:
    """The rank window of `settings`."""
    return _decoded(value)["rank_window"]


def _decoded(value: Tensor) -> dict[str, Any]:
    found: dict[str, Any] = dict(zip(_NAMES, value.cpu().contiguous().view(torch.float64).tolist(), strict=True))
    for name, choices in _CHOICES.items():
        if found[name] in range(len(choices)):
            found[name] = choices[int(found[name])]
    if found["top_k"] == _OFF:
        found["top_k"] = None
    elif found["top_k"].is_integer():
        found["top_k"] = int(found["top_k"])
    return found
