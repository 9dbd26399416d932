"""Errors of the pixels: MSE, MAE, RMSE, VRMSE.

Sums run over all measured pixels of all samples, frames and channels alike; the forecast is not clipped. From one sum
come three conventions, and numbers compare only within one of them:

- `mse`, `mae`, `rmse`: the mean over pixels, of values in [0, 1]; rmse = sqrt(mse).
- `mse_sum`, `mae_sum`, `rmse_sum`: the sum over C, H, W, averaged over samples and frames, as most video papers have it
  (OpenSTL): the mean times C·H·W, so a missing pixel counts as the mean of the others; rmse_sum = sqrt(mse_sum).
- `mse_physical`, `mae_physical`, `rmse_physical`: the mean in the task's unit, as papers on TaxiBJ, Traffic4cast, SEVIR
  and ENSO have it: times scale² (mse) or scale.
- `vrmse`: sqrt(MSE / variance of the targets), the variance being that of all measured target pixels around their one
  mean, in total and for each lead time: 1 is what forecasting that mean gives. Undefined where targets never vary.
- `vrmse_well`: the convention of The Well: sqrt(MSE / (variance + 1e-7)) of each frame and channel over its pixels, the
  variance with n - 1, averaged over samples, frames and channels with two measured pixels or more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unistd.metrics.meter import Frames, LeadMean, Value, per_lead, ratio, values_of

_WELL_EPSILON = 1e-7
_ROUNDING = 1e-12  # of the second moment: a variance below it is that of a constant


class PixelErrors:
    """`mse` and `mae`, and what follows from them, as far as `names` has it."""

    def __init__(self, names: set[str], scale: float) -> None:
        self.names, self.scale, self.pixels = names, scale, 0
        self.square, self.absolute = LeadMean(), LeadMean()

    def update(self, frames: Frames) -> None:
        """Adds frames."""
        difference = frames.prediction - frames.target
        self.pixels = difference[0, 0].numel()
        counts = per_lead(frames.measured)
        self.square.add(per_lead(difference.square()), counts)
        self.absolute.add(per_lead(difference.abs()), counts)

    def merge(self, other: PixelErrors) -> None:
        """Adds another's frames."""
        self.pixels = self.pixels or other.pixels
        self.square.merge(other.square)
        self.absolute.merge(other.absolute)

    def compute(self) -> dict[str, tuple[Value, list[Value]]]:
        """Of each of `mse`, `mae`, `rmse`: the mean, the sum per frame, the mean in physical units."""
        values: dict[str, tuple[Value, list[Value]]] = {}

        def three(name: str, whole: Tensor, leads: Tensor, pixels: float, scale: float) -> None:
            for suffix, factor in (("", 1.0), ("_sum", pixels), ("_physical", scale)):
                values[name + suffix] = values_of(whole * factor)[0], values_of(leads * factor)

        mean, leads = self.square.whole(), self.square.leads()
        if "mse" in self.names:
            three("mse", mean, leads, self.pixels, self.scale**2)
        if "rmse" in self.names:
            three("rmse", mean.sqrt(), leads.sqrt(), self.pixels**0.5, self.scale)
        if "mae" in self.names:
            three("mae", self.absolute.whole(), self.absolute.leads(), self.pixels, self.scale)
        return values


class VarianceScaled:
    """`vrmse`. Targets are summed as differences from the first one, which keeps the sums' rounding small."""

    def __init__(self) -> None:
        self.origin: Tensor | None = None
        self.square = LeadMean()
        self.first, self.second = LeadMean(), LeadMean()

    def update(self, frames: Frames) -> None:
        """Adds frames."""
        if self.origin is None and frames.measured.any():
            self.origin = frames.target[frames.measured][0]
        counts = per_lead(frames.measured)
        shifted = torch.where(frames.measured, frames.target - (0 if self.origin is None else self.origin), 0)
        self.square.add(per_lead((frames.prediction - frames.target).square()), counts)
        self.first.add(per_lead(shifted), counts)
        self.second.add(per_lead(shifted.square()), counts)

    def merge(self, other: VarianceScaled) -> None:
        """Adds another's frames, as differences from the first target of these."""
        if self.origin is None:
            self.origin = other.origin
        self.square.merge(other.square)
        move = 0.0 if other.origin is None else other.origin - self.origin
        first, second, counts = other.first.sums, other.second.sums, other.first.counts
        self.first.add(first + counts * move, counts)
        self.second.add(second + 2 * move * first + counts * move**2, counts)

    def compute(self) -> dict[str, tuple[Value, list[Value]]]:
        """The one value."""
        whole = self._scaled(self.square.whole(), self.first.whole(), self.second.whole())
        leads = self._scaled(self.square.leads(), self.first.leads(), self.second.leads())
        return {"vrmse": (values_of(whole)[0], values_of(leads))}

    @staticmethod
    def _scaled(square: Tensor, first: Tensor, second: Tensor) -> Tensor:
        variance = second - first.square()
        return ratio(square, torch.where(variance > _ROUNDING * second, variance, 0)).sqrt()


class VarianceScaledFrames:
    """`vrmse_well`."""

    def __init__(self) -> None:
        self.mean = LeadMean()

    def update(self, frames: Frames) -> None:
        """Adds frames."""
        counts = frames.measured.sum((3, 4))
        square = ratio((frames.prediction - frames.target).square().sum((3, 4)), counts)
        centre = ratio(frames.target.sum((3, 4)), counts)[..., None, None]
        spread = torch.where(frames.measured, frames.target - centre, 0).square().sum((3, 4))
        scaled = (square / (ratio(spread, counts - 1) + _WELL_EPSILON)).sqrt()
        self.mean.add(per_lead(torch.where(counts > 1, scaled, 0)), per_lead(counts > 1))

    def merge(self, other: VarianceScaledFrames) -> None:
        """Adds another's frames."""
        self.mean.merge(other.mean)

    def compute(self) -> dict[str, tuple[Value, list[Value]]]:
        """The one value."""
        return {"vrmse_well": self.mean.compute()}
