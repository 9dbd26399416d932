"""The Nino3.4 correlation of ICAR-ENSO.

The index of a month is the mean over the cells of 5S-5N, 170W-120W (rows 10 to 12, columns 19 to 29 of the 24x48 grid;
of a grid of another size the same shares), of the measured ones alone; its running mean over three months leaves T - 2
lead times. For each of these, r is Pearson's correlation of forecast and observed index over the samples.

- `nino`: the mean of r over lead times, undefined where one of them is (fewer than two samples, or an index that does
  not vary).
- `nino_weighted`: the mean of r times a ln(lead), a = 1.5 for the first 4 lead times, 2 for the next 7, 3 for the next
  7, then 4.

The unit does not matter: r is the same for [0, 1] and degrees.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unistd.metrics.meter import Frames, Value, ratio, values_of

MONTHS = 3  # of the running mean
_ROUNDING = 1e-20  # a variance, for values in [0, 1]: below it an index does not vary
_REGION = ((10 / 24, 13 / 24), (19 / 48, 30 / 48))  # rows and columns as shares of the grid
_WEIGHTS = [1.5] * 4 + [2.0] * 7 + [3.0] * 7


class NinoCorrelation:
    """`nino`. The sums are of differences from the first sample, which keeps their rounding small."""

    def __init__(self) -> None:
        self.origin: Tensor | None = None  # (2, leads): forecast and observed
        self.count = self.first = self.second = self.product = torch.zeros((), dtype=torch.float64)

    def update(self, frames: Frames) -> None:
        """Adds frames (B, T, 1, H, W)."""
        pair = torch.stack([nino_index(part, frames.measured) for part in (frames.prediction, frames.target)])
        if pair.shape[-1] < MONTHS:
            return
        pair = pair.unfold(-1, MONTHS, 1).mean(-1)  # (2, B, leads)
        there = pair.isfinite().all(0)
        if self.origin is None:
            self.origin = pair.new_zeros(2, pair.shape[-1])
        fresh = (self.count.expand(pair.shape[-1]) == 0) & there.any(0)
        first = there.int().argmax(0).view(1, 1, -1).expand(2, 1, -1)
        self.origin = torch.where(fresh, pair.gather(1, first)[:, 0], self.origin)
        shifted = torch.where(there, pair - self.origin[:, None], 0)
        self.count = self.count + there.sum(0)
        self.first = self.first + shifted.sum(1)
        self.second = self.second + shifted.square().sum(1)
        self.product = self.product + shifted.prod(0).sum(0)

    def merge(self, other: NinoCorrelation) -> None:
        """Adds another's frames, as differences from the first sample of these."""
        if other.origin is None:
            return
        if self.origin is None:
            self.origin = torch.zeros_like(other.origin)
        self.origin = torch.where(self.count.expand(self.origin.shape[-1]) == 0, other.origin, self.origin)
        move = other.origin - self.origin
        self.count = self.count + other.count
        self.first = self.first + other.first + other.count * move
        self.second = self.second + other.second + 2 * move * other.first + other.count * move.square()
        crossed = (move.flip(0) * other.first).sum(0)
        self.product = self.product + other.product + crossed + other.count * move.prod(0)

    def compute(self) -> dict[str, tuple[Value, list[Value]]]:
        """Mean and weighted mean of r."""
        if self.origin is None:
            return {name: (None, []) for name in ("nino", "nino_weighted")}
        mean = ratio(self.first, self.count.expand_as(self.first))
        covariance = ratio(self.product, self.count) - mean.prod(0)
        variance = ratio(self.second, self.count.expand_as(self.second)) - mean.square()
        varies = (variance > _ROUNDING).all(0)
        correlation = ratio(covariance, torch.where(varies, variance.prod(0), 0).sqrt()).clamp(-1, 1)
        weighted = correlation * lead_weights(len(correlation))
        return {
            name: (values_of(values.mean()[None])[0], values_of(values))
            for name, values in (("nino", correlation), ("nino_weighted", weighted))
        }


def nino_index(frames: Tensor, measured: Tensor) -> Tensor:
    """Frames (B, T, 1, H, W) -> the mean over the region (B, T), NaN where nothing of it was measured."""
    slices = []
    for size, (start, stop) in zip(frames.shape[-2:], _REGION, strict=True):
        low = min(round(start * size), size - 1)
        slices.append(slice(low, max(round(stop * size), low + 1)))
    region = (slice(None), slice(None), 0, *slices)
    return ratio(frames[region].sum((2, 3)), measured[region].sum((2, 3)))


def lead_weights(leads: int) -> Tensor:
    """(leads,) weights a ln(lead)."""
    shares = (_WEIGHTS + [4.0] * leads)[:leads]
    return torch.tensor([share * math.log(lead) for lead, share in enumerate(shares, 1)], dtype=torch.float64)
