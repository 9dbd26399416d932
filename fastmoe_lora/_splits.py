"""Splits of different widths, as operators take them: units of one width, several of which may belong to a split."""

from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor

from . import _checks


def widths_of(splits: Any, out_features: int) -> tuple[int, ...]:
    """The widths of the splits: of so many equal ones, or as given. ValueError or TypeError naming ``splits``."""
    if not isinstance(splits, Sequence) or isinstance(splits, str):
        count = _checks.size("splits", splits)
        if out_features % count:
            raise ValueError(f"splits: got {splits}, expected a divisor of out_features = {out_features}")
        return (out_features // count,) * count
    widths = tuple(_checks.size("splits", width) for width in splits)
    if sum(widths) != out_features:
        raise ValueError(f"splits: got {_checks.shown(splits)}, expected widths whose sum is {out_features}")
    if any(width % min(widths) for width in widths):
        raise ValueError(f"splits: got {_checks.shown(splits)}, expected multiples of the smallest")
    return widths


def units_of(widths: Sequence[int]) -> tuple[int, ...]:
    """How many units each split has: a unit is as wide as the narrowest."""
    unit = min(widths)
    return tuple(width // unit if unit else 1 for width in widths)


@overload
def by_unit(tensor: Tensor, units: Sequence[int], dim: int = 0) -> Tensor: ...
@overload
def by_unit(tensor: None, units: Sequence[int], dim: int = 0) -> None: ...
def by_unit(tensor: Tensor | None, units: Sequence[int], dim: int = 0) -> Tensor | None:
    """What there is for each split along ``dim``, for each unit; the gradient of a split is the sum of its units'."""
    if tensor is None or max(units) == 1:
        return tensor
    parts = zip(tensor.unbind(dim), units, strict=True)
    return torch.stack([part for part, count in parts for _ in range(count)], dim)
