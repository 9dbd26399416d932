"""The life of the ranks over a whole model: a budget while they learn, then rounding, freezing and compaction."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import _checks
from ._wrappers import gathered, scattered
from .layer import RAMoELinear


def ramoe_layers(model: nn.Module) -> Iterator[tuple[str, RAMoELinear]]:
    """(name, layer) of every RA-MoE layer of the model. Raises TypeError for what is no module."""
    _checks.model(model)
    return ((name, module) for name, module in model.named_modules() if isinstance(module, RAMoELinear))


def named_layers(model: nn.Module) -> dict[str, RAMoELinear]:
    """Name -> layer; ValueError for a model that has none."""
    layers = dict(ramoe_layers(model))
    if not layers:
        raise ValueError(f"model: {type(model).__name__} has no RAMoELinear layer")
    return layers


def ranks_frozen(model: nn.Module) -> bool:
    """Whether every RA-MoE layer's ranks are whole and fixed."""
    return all(layer.ranks_whole for layer in named_layers(model).values())


def set_rank_window(model: nn.Module, window: float) -> None:
    """Sets ``rank_window`` of every RA-MoE layer: the width of the rank interpolation (`rank_diagonal`), at least 1.

    Ranks that are frozen are whole: a window changes nothing for them.
    """
    window = _checks.number("window", window, lambda width: width >= 1, "a finite number, at least 1")
    for layer in named_layers(model).values():
        layer.rank_window = window


def rank_window(progress: float, start: float = 3.0, share: float = 0.6) -> float:
    """Window of sampled ranks at ``progress`` (0 to 1) of the rank phase: from ``start`` to 1 over its first ``share``.

    A wide window lets every rank within reach be drawn, so that the data says which are worth having. Raises ValueError
    or TypeError unless ``start`` is at least 1 and ``share`` above 0 and at most 1.
    """
    progress = _checks.number("progress", progress, lambda p: 0 <= p <= 1, "0 to 1")
    start = _checks.number("start", start, lambda width: width >= 1, "a finite number, at least 1")
    share = _checks.number("share", share, lambda part: 0 < part <= 1, "above 0, at most 1")
    return start + (1.0 - start) * min(progress / share, 1.0)


def checked_budget(layers: Mapping[str, RAMoELinear], budget: float | None) -> float:
    """``budget``, to be from 0 to the sum of all max_rank; by default C, the sum of the ranks at initialisation."""
    if budget is None:
        return sum(layer.init_rank * layer.rank.numel() for layer in layers.values())
    most = sum(layer.max_rank * layer.rank.numel() for layer in layers.values())
    return _checks.number("budget", budget, lambda b: 0 <= b <= most, f"0 to {most}, the sum of all max_rank")


def rank_budget_loss(model: nn.Module, budget: float | None = None) -> Tensor:
    """``|C - sum of all ranks|``, a scalar (UniSTD's rank penalty, with beta = 1); C defaults to the initial sum.

    Raises ValueError or TypeError for a budget that no ranks in range have. Ranks that are NaN give NaN.
    """
    layers = named_layers(model)
    budget = checked_budget(layers, budget)
    return (budget - torch.stack([gathered(layer.rank).sum() for layer in layers.values()]).sum()).abs()


@torch.no_grad()
def project_ranks_(model: nn.Module, budget: float | None = None) -> None:
    """Moves all ranks that learn, in place, to the nearest point with ``sum = budget`` and ``0 <= r <= max_rank``.

    That is one shift for all ranks of the model, clamped: the proximal step of the penalty with a large weight. Frozen
    ranks count and stay as they are; where all are frozen and no budget is given, nothing is to be done.
    Raises ValueError naming the layer and the rank that is not a finite number, and where no ranks in range have that
    sum; nothing is changed then.
    """
    layers = named_layers(model)
    if budget is None and all(layer.ranks_whole for layer in layers.values()):
        return
    learning, total = _learning(layers, budget)
    if learning:
        ranks, limits = _gather(learning)
        _assign(learning, _project(ranks, limits, total))


class HeldRanks:
    """The ranks of a model that learn, as they are now: after a step they are projected onto the budget, or put back
    where ``restore``, (), on the device, is not 0. Nothing is read from there."""

    def __init__(self, model: nn.Module, budget: float | None, restore: Tensor) -> None:
        self._restore = restore
        self._layers, self._total = _learning(named_layers(model), budget)
        self._before, self._limits = _flat(self._layers)

    def project_or_restore_(self) -> None:
        """Gives the layers their ranks after the step."""
        after = _project(_flat(self._layers)[0], self._limits, self._total)
        _assign(self._layers, torch.where(self._restore != 0, self._before, after))


def _learning(layers: dict[str, RAMoELinear], budget: float | None) -> tuple[dict[str, RAMoELinear], float]:
    """Layers whose ranks learn, and the sum that is left for them. ValueError where no ranks in range have it."""
    total = checked_budget(layers, budget)
    learning = {name: layer for name, layer in layers.items() if not layer.ranks_whole}
    frozen = float(sum(layer.rank.sum() for layer in layers.values() if layer.ranks_whole))
    most = sum(layer.max_rank * layer.rank.numel() for layer in learning.values())
    if not frozen <= total <= frozen + most:
        raise ValueError(f"budget: got {total:g}, expected {frozen:g} (frozen) to {frozen + most:g}")
    return learning, total - frozen


@torch.no_grad()
def freeze_ranks(model: nn.Module, budget: int | None = None) -> None:
    """Rounds all ranks to whole numbers of the same sum (largest remainder), fixes them and compacts the layers.

    ``budget`` is that sum, wherever the ranks are: they are projected onto it first (`project_ranks_`) if they have
    another one or are out of range. By default it is the present sum, rounded, and the output changes by the rounding
    alone. Raises ValueError or TypeError, before anything is changed, for a budget that is not a whole number or that
    no ranks in range have, for ranks that are not finite, and, without a budget, for ranks that are out of range.

    In a training that goes on nothing else has to be done: optimizers leave frozen ranks alone, a compiled model is
    compiled anew, and wrappers (DDP, FSDP2) go on: in a process group frozen ranks take part in the backward pass, with
    gradients of zero. Of a sharded model all processes call this. A running average of the model (`AveragedModel`)
    goes on to average the ranks, and is to be frozen by a call of its own before it is used as a frozen model.
    """
    layers = named_layers(model)
    if budget is not None:
        _checks.whole("budget", budget, lambda _: True, "the sum of the ranks")
        checked_budget(layers, budget)
    ranks, limits = _gather(layers)
    total = float(ranks.sum())
    outside = bool(((ranks < 0) | (ranks > limits)).any())
    if budget is None and outside:
        for name, layer in layers.items():
            if fault := _checks.rank_fault(gathered(layer.rank.detach()), layer.max_rank, whole=False):
                raise ValueError(f"model: layer {name!r}: {fault} (project_ranks_ moves ranks there)")
    asked = round(total) if budget is None else int(budget)
    if outside or abs(asked - total) > 0.5:
        ranks = _project(ranks, limits, asked)
    whole = _largest_remainder(ranks, limits, asked)
    for layer, part in zip(layers.values(), _split(layers, whole), strict=True):
        layer.fix_ranks_(part)


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
    """The ranks of every split of every RA-MoE layer, in the model's order. ValueError for a model that has none."""
    layers = named_layers(model)
    _check_numbers(layers)
    return RankReport(
        RankRow(name, split, tuple(ranks), layer.max_rank, layer.ranks_whole)
        for name, layer in layers.items()
        for split, ranks in enumerate(gathered(layer.rank.detach()).tolist())
    )


def _check_numbers(layers: Mapping[str, RAMoELinear]) -> None:
    for name, layer in layers.items():
        if layer.rank.is_meta:
            raise ValueError(f"model: layer {name!r}: rank is on the meta device, expected numbers")


def _gather(layers: dict[str, RAMoELinear]) -> tuple[Tensor, Tensor]:
    """All ranks in one float64 vector, and their upper limits. ValueError naming a rank that is not finite."""
    _check_numbers(layers)
    ranks, limits = _flat(layers)
    if not bool(ranks.isfinite().all()):
        for name, layer in layers.items():
            rank = gathered(layer.rank.detach())
            if fault := _checks.element_fault("rank", rank, rank.isfinite(), "a finite number"):
                raise ValueError(f"model: layer {name!r}: {fault}")
    return ranks, limits


def _flat(layers: dict[str, RAMoELinear]) -> tuple[Tensor, Tensor]:
    """As `_gather`, whatever numbers they are."""
    ranks = torch.cat([gathered(layer.rank.detach()).flatten().double() for layer in layers.values()])
    return ranks, torch.cat([ranks.new_full((layer.rank.numel(),), layer.max_rank) for layer in layers.values()])


def _split(layers: dict[str, RAMoELinear], ranks: Tensor) -> list[Tensor]:
    parts = ranks.split([layer.rank.numel() for layer in layers.values()])
    return [part.view_as(layer.rank) for layer, part in zip(layers.values(), parts, strict=True)]


def _assign(layers: dict[str, RAMoELinear], ranks: Tensor) -> None:
    for layer, part in zip(layers.values(), _split(layers, ranks), strict=True):
        layer.rank.copy_(scattered(part, layer.rank))


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
