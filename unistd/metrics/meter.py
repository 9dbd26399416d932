"""What the meters have in common: how they are fed, and sums per lead time."""

from __future__ import annotations

from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

Value = float | None  # None: undefined, as the share of events that were hit where there was none


class Frames(NamedTuple):
    """A part of a batch, all (B, T, C, H, W): forecast and target in float64, and which target pixels were measured.

    Where a pixel was not, forecast and target are both 0.
    """

    prediction: Tensor
    clipped: Tensor
    """prediction, clipped to [0, 1]"""
    target: Tensor
    measured: Tensor


class Meter(Protocol):
    """Accumulates some measures."""

    def update(self, frames: Frames) -> None:
        """Adds frames."""

    def merge(self, other: Self) -> None:
        """Adds the frames that another meter of the same measures has seen."""

    def compute(self) -> dict[str, tuple[Value, list[Value]]]:
        """Each value by its name: over all frames, and per lead time."""


def per_lead(values: Tensor) -> Tensor:
    """Sums of (B, T, ...) over all but T."""
    return values.sum([dim for dim in range(values.dim()) if dim != 1])


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator, NaN (undefined) where the denominator is not positive."""
    return torch.where(denominator > 0, numerator / denominator, torch.nan)


def values_of(tensor: Tensor) -> list[Value]:
    """A tensor (N,) as values, NaN as None."""
    return [None if value != value else value for value in tensor.tolist()]


class LeadMean:
    """The mean of what is added, over everything and per lead time."""

    def __init__(self) -> None:
        self.sums, self.counts = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)

    def add(self, sums: Tensor, counts: Tensor) -> None:
        """Adds (T,) sums of (T,) many terms."""
        self.sums, self.counts = self.sums + sums, self.counts + counts

    def merge(self, other: LeadMean) -> None:
        """Adds all that was added to another mean."""
        self.add(other.sums, other.counts)

    def leads(self) -> Tensor:
        """(T,) means, NaN where there is no term."""
        return ratio(self.sums, self.counts)

    def whole(self) -> Tensor:
        """The mean of all terms, (1,), so that a lead time of few terms counts for few."""
        return ratio(self.sums.sum(), self.counts.sum())[None]

    def compute(self) -> tuple[Value, list[Value]]:
        """Both, as values."""
        return values_of(self.whole())[0], values_of(self.leads())
