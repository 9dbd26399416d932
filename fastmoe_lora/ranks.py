"""The life of the ranks over a whole model: a budget while they learn, then rounding, freezing and compaction."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .layer import RAMoELinear


def ramoe_layers(model: nn.Module) -> Iterator[tuple[str, RAMoELinear]]:
    """(name, layer) of every RA-MoE layer of the model."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, RAMoELinear))


def ranks_frozen(model: nn.Module) -> bool:
    """Whether every RA-MoE layer's ranks are whole and fixed."""
    return all(not layer.rank.requires_grad for layer in _layers(model))


def set_rank_window(model: nn.Module, window: float) -> None:
    """Sets ``rank_window`` of every RA-MoE layer: the width of the rank interpolation (`rank_diagonal`)."""
    if window <= 0:
        raise ValueError(f"window: got {window}, expected a positive number")
    for layer in _layers(model):
        layer.rank_window = window


def rank_window(progress: float, start: float = 3.0, share: float = 0.6) -> float:
    """Window of sampled ranks at ``progress`` (0 to 1) of the rank phase: from ``start`` to 1 over its first ``share``.

    A wide window lets every rank within reach be drawn, so that the data says which are worth having.
    """
    return start + (1.0 - start) * min(progress / share, 1.0)


def initial_budget(model: nn.Module) -> float:
    """C, the sum of all ranks at initialisation."""
    return sum(layer.init_rank * layer.rank.numel() for layer in _layers(model))


def rank_budget_loss(model: nn.Module, budget: float | None = None) -> Tensor:
    """``|C - sum of all ranks|``, a scalar (UniSTD's rank penalty, with beta = 1); C defaults to the initial sum."""
    budget = initial_budget(model) if budget is None else budget
    return (budget - torch.stack([layer.rank.sum() for layer in _layers(model)]).sum()).abs()


@torch.no_grad()
def project_ranks_(model: nn.Module, budget: float | None = None) -> None:
    """Moves all ranks, in place, to the nearest point with ``sum = budget`` and ``0 <= r <= max_rank``.

    That is one shift for all ranks of the model, clamped: the proximal step of the penalty with a large weight.
    Raises ValueError where no ranks in range have that sum.
    """
    layers = _layers(model)
    budget = initial_budget(model) if budget is None else budget
    ranks, limits = _gather(layers)
    _check_budget(budget, limits)
    _assign(layers, _project(ranks, limits, budget))


@torch.no_grad()
def freeze_ranks(model: nn.Module, budget: int | None = None) -> None:
    """Rounds all ranks to whole numbers of the same sum (largest remainder), fixes them and compacts the layers.

    ``budget`` is that sum; by default the present one, rounded. Output changes by the rounding alone.
    """
    layers = _layers(model)
    ranks, limits = _gather(layers)
    if budget is None:
        budget = round(float(ranks.sum()))
    elif abs(budget - float(ranks.sum())) > 0.5:
        _check_budget(budget, limits)
        ranks = _project(ranks, limits, budget)
    for layer, whole in zip(layers, _split(layers, _largest_remainder(ranks, limits, int(budget))), strict=True):
        layer.fix_ranks_(whole)


@dataclass(frozen=True)
class RankRow:
    """The ranks of one split of one layer."""

    layer: str
    split: int
    ranks: tuple[float, ...]
    max_rank: int
    frozen: bool


class RankReport(tuple[RankRow, ...]):
    """Rows of `rank_report`; prints as a table."""

    def __str__(self) -> str:
        width = max((len(row.layer) for row in self), default=5)
        lines = [f"{'layer':<{width}}  split    sum  of   ranks"]
        for row in self:
            ranks = " ".join(f"{rank:.0f}" if row.frozen else f"{rank:.2f}" for rank in row.ranks)
            limit = row.max_rank * len(row.ranks)
            lines.append(f"{row.layer:<{width}}  {row.split:>5}  {sum(row.ranks):>5.1f}  {limit:<3}  {ranks}")
        return "\n".join(lines)


def rank_report(model: nn.Module) -> RankReport:
    """The ranks of every split of every RA-MoE layer, in the model's order."""
    return RankReport(
        RankRow(name, split, tuple(ranks), layer.max_rank, not layer.rank.requires_grad)
        for name, layer in ramoe_layers(model)
        for split, ranks in enumerate(layer.rank.detach().tolist())
    )


def _layers(model: nn.Module) -> list[RAMoELinear]:
    layers = [layer for _, layer in ramoe_layers(model)]
    if not layers:
        raise ValueError(f"model: {type(model).__name__} has no RAMoELinear layer")
    return layers


def _gather(layers: list[RAMoELinear]) -> tuple[Tensor, Tensor]:
    """All ranks in one float64 vector, and their upper limits."""
    ranks = torch.cat([layer.rank.detach().flatten().double() for layer in layers])
    limits = torch.cat([torch.full_like(layer.rank, layer.max_rank).flatten().double() for layer in layers])
    return ranks, limits


def _split(layers: list[RAMoELinear], ranks: Tensor) -> list[Tensor]:
    parts = ranks.split([layer.rank.numel() for layer in layers])
    return [part.view_as(layer.rank) for layer, part in zip(layers, parts, strict=True)]


def _assign(layers: list[RAMoELinear], ranks: Tensor) -> None:
    for layer, part in zip(layers, _split(layers, ranks), strict=True):
        layer.rank.copy_(part)


def _check_budget(budget: float, limits: Tensor) -> None:
    if not 0 <= budget <= float(limits.sum()):
        raise ValueError(f"budget: got {budget}, expected 0 to {float(limits.sum()):g}, the sum of all max_rank")


def _project(ranks: Tensor, limits: Tensor, budget: float) -> Tensor:
    """``clamp(r - shift, 0, limit)`` whose sum is ``budget``: the sum is piecewise linear in the shift."""
    steps = torch.cat(
        [ranks - limits, ranks]
    )  # at the first a rank starts to fall with the shift, at the second it ends
    slopes = torch.cat([torch.full_like(ranks, -1.0), torch.ones_like(ranks)])
    steps, order = steps.sort()
    slope = slopes[order].cumsum(0)
    sums = limits.sum() + torch.cat([slope.new_zeros(1), (slope[:-1] * steps.diff()).cumsum(0)])
    # The last step at which the sum still reaches the budget; from there on it falls linearly.
    at = (torch.searchsorted(-sums, torch.full_like(sums[:1], -budget), right=True) - 1).clamp(0, len(steps) - 1)
    falling = slope[at] < 0
    shift = steps[at] + torch.where(falling, (budget - sums[at]) / torch.where(falling, slope[at], -1.0), 0.0)
    return (ranks - shift).clamp(min=0).minimum(limits)


def _largest_remainder(ranks: Tensor, limits: Tensor, total: int) -> Tensor:
    """Whole numbers of sum ``total``: the floors, plus one for the largest remainders (ties: the earlier one)."""
    whole = ranks.floor().minimum(limits)
    missing = total - int(whole.sum())
    remainder = torch.where(whole < limits, ranks - whole, -1.0)
    up = remainder.argsort(descending=True, stable=True)[: max(missing, 0)]
    whole[up] += 1
    return whole
