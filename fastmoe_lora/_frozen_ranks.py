"""Frozen ranks: which columns they leave on, and a training that goes on, in which no optimizer moves them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

if TYPE_CHECKING:
    from .layer import RAMoELinear

_layers: WeakSet[RAMoELinear] = WeakSet()
_hooks: list[RemovableHandle] = []


def active_column_table(ranks: Tensor, max_rank: int) -> Tensor | None:
    """Whole ranks (S, E) -> the active columns ``e*R + k`` of each split, (S, P) int32; None if that saves nothing.

    P is the largest number of active columns of a split, rounded up to a multiple of 8; -1 pads.
    """
    splits, experts = ranks.shape
    k = torch.arange(max_rank, device=ranks.device)
    active = (k < ranks[..., None]).flatten(1)  # (S, E*R)
    width = max(8, -(-int(active.sum(1).max()) // 8) * 8)
    if width >= experts * max_rank:
        return None
    column = torch.arange(experts * max_rank, device=ranks.device).expand(splits, -1)
    ordered = torch.where(active, column, experts * max_rank).sort(dim=1).values[:, :width]
    return torch.where(ordered < experts * max_rank, ordered, -1).to(torch.int32)


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


def _drop_gradients(optimizer: Optimizer, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    for layer in _layers:
        if layer.ranks_whole:
            layer.rank.grad = None
