"""Scores of events: CSI, POD, SUCR, bias and HSS, as for SEVIR.

An event is a pixel whose value, in the task's unit, is at or above a threshold. Over the whole set (not per sample) are
counted: hits h (forecast and observed), misses m (observed alone), false alarms f (forecast alone) and correct
rejections r. Then

- `csi` = h / (h + m + f), critical success index; `pod` = h / (h + m), probability of detection;
  `sucr` = h / (h + f), success ratio; `bias` = (h + f) / (h + m);
  `hss` = 2 (h r - m f) / ((h + m) (m + r) + (h + f) (f + r)), Heidke skill score.
- `csi_16` is that of threshold 16; `csi` alone is the mean over the thresholds that are observed anywhere in the set,
  where a score of denominator 0 counts as 0 (as with the 1e-4 that published code adds to the denominators).
- `csi_pool4` and `csi_pool16` (and `csi_pool4_16`...): of frames whose 4x4 and 16x16 blocks were replaced by their
  largest value, which forgives a shift of a few pixels. A rest that fills no block is left out, and so is a block with
  a missing pixel.

A score without its events is undefined. A value counts as reaching a threshold from 2e-7 of the scale below it:
forecast and target come as float32 shares of the scale.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from unistd.metrics.measures import EVENT_METRICS
from unistd.metrics.meter import Frames, Value, ratio, values_of

POOLS = (1, 4, 16)
_ROUNDING = 2e-7


class EventScores:
    """The scores among `names`.

    Kept is, for each pooling and lead time, how many pixels have the observation at level i and the forecast at level
    j, where a value's level is the number of thresholds that it reaches.
    """

    def __init__(self, names: set[str], thresholds: tuple[float, ...], scale: float, offset: float) -> None:
        self.names = [name for name in EVENT_METRICS if name in names]
        self.thresholds = thresholds
        shares = [(threshold - offset) / scale - _ROUNDING for threshold in thresholds]
        self._shares = torch.tensor(shares, dtype=torch.float64)
        self.tables: dict[int, Tensor] = {}

    def update(self, frames: Frames) -> None:
        """Adds frames."""
        for pool in POOLS:
            if min(frames.target.shape[-2:]) >= pool and (pool == 1 or "csi" in self.names):
                self.tables[pool] = self.tables.get(pool, 0) + self._table(frames, pool)

    def merge(self, other: EventScores) -> None:
        """Adds another's frames."""
        for pool, table in other.tables.items():
            self.tables[pool] = self.tables.get(pool, 0) + table

    def _table(self, frames: Frames, pool: int) -> Tensor:
        """(T, K+1, K+1) counts, observed levels in rows, of K thresholds."""
        levels, leads = len(self.thresholds) + 1, frames.target.shape[1]
        observed, forecast = (
            torch.bucketize(_pooled(values, pool), self._shares, right=True)
            for values in (frames.target, frames.prediction)
        )
        place = (torch.arange(leads).view(1, -1, 1, 1, 1) * levels + observed) * levels + forecast
        if not frames.measured.all():
            place = place[_pooled(frames.measured.logical_not().double(), pool) == 0]
        return torch.bincount(place.flatten(), minlength=leads * levels**2).view(leads, levels, levels)

    def compute(self) -> dict[str, tuple[Value, list[Value]]]:
        """Of each score: its mean and its value for each threshold, pooled too where it is `csi`."""
        values: dict[str, tuple[Value, list[Value]]] = {}
        for pool, table in self.tables.items():
            whole, leads = scores(table.sum(0, keepdim=True)), scores(table)
            for name in self.names if pool == 1 else ("csi",):
                label = name if pool == 1 else f"{name}_pool{pool}"
                values[label] = values_of(_mean_score(whole, name))[0], values_of(_mean_score(leads, name))
                for index, threshold in enumerate(self.thresholds):
                    values[f"{label}_{threshold:g}"] = (
                        values_of(whole[name][:, index])[0],
                        values_of(leads[name][:, index]),
                    )
        return values


def scores(table: Tensor) -> dict[str, Tensor]:
    """Each score (T, K), NaN where undefined, from tables (T, K+1, K+1); "observed": whether there are events."""
    reached = table.double().flip(1, 2).cumsum(1).cumsum(2).flip(1, 2)  # [i, j]: both at these levels or above
    hits = reached.diagonal(dim1=1, dim2=2)[:, 1:]
    misses, false_alarms = reached[:, 1:, 0] - hits, reached[:, 0, 1:] - hits
    rejections = reached[:, :1, 0] - hits - misses - false_alarms
    chance = (hits + misses) * (misses + rejections) + (hits + false_alarms) * (false_alarms + rejections)
    return {
        "csi": ratio(hits, hits + misses + false_alarms),
        "pod": ratio(hits, hits + misses),
        "sucr": ratio(hits, hits + false_alarms),
        "bias": ratio(hits + false_alarms, hits + misses),
        "hss": ratio(2 * (hits * rejections - misses * false_alarms), chance),
        "observed": hits + misses > 0,
    }


def _mean_score(found: dict[str, Tensor], name: str) -> Tensor:
    """(T,) mean over the thresholds that are observed."""
    observed = found["observed"]
    return ratio(torch.where(observed, found[name].nan_to_num(0), 0).sum(1), observed.sum(1))


def _pooled(frames: Tensor, pool: int) -> Tensor:
    return frames if pool == 1 else F.max_pool2d(frames.flatten(0, 1), pool).unflatten(0, frames.shape[:2])
