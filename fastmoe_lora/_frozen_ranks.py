"""Frozen ranks in a training that goes on: no optimizer moves them, whoever still waits for their gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakSet

import torch.distributed as dist
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

if TYPE_CHECKING:
    from .layer import RAMoELinear

_layers: WeakSet[RAMoELinear] = WeakSet()
_hooks: list = []


def hold(layer: RAMoELinear) -> None:
    """From now on no optimizer of torch's kind moves ``layer.rank``, by moments and weight decay neither.

    In a process group the ranks go on asking for a gradient, which is zero: a data-parallel wrapper that was built
    while they learned waits for one.
    """
    layer.rank.grad = None
    awaited = dist.is_available() and dist.is_initialized() and layer.rank.requires_grad
    layer.rank.requires_grad_(awaited)
    _layers.add(layer)
    if not _hooks:
        _hooks.append(register_optimizer_step_pre_hook(_drop_gradients))


def still(rank: Tensor) -> Tensor:
    """``rank`` with a gradient of zero, where one is asked for."""
    return rank.detach() + 0.0 * rank if rank.requires_grad else rank


def _drop_gradients(optimizer: Optimizer, arguments: tuple, options: dict) -> None:
    for layer in _layers:
        if layer.ranks_whole:
            layer.rank.grad = None
