"""PSNR: -10 log10 of the mean squared error of a frame, in dB, for values in [0, 1].

The forecast is clipped to [0, 1]; the mean is taken over the measured pixels of a frame, all channels alike. The result
is the mean of the frames' values, not the value of the mean error. An error below 1e-10 counts as 1e-10 (100 dB), so
that a perfect frame stays finite; a frame of which nothing was measured is left out.
"""

from __future__ import annotations

import torch

from unistd.metrics.meter import Frames, LeadMean, Value, per_lead, ratio

SMALLEST_MSE = 1e-10


class PeakSignalToNoise:
    """`psnr`."""

    def __init__(self) -> None:
        self.mean = LeadMean()

    def update(self, frames: Frames) -> None:
        """Adds frames."""
        counts = frames.measured.sum((2, 3, 4))
        mse = ratio((frames.clipped - frames.target).square().sum((2, 3, 4)), counts)
        decibels = -10 * mse.clamp(min=SMALLEST_MSE).log10()
        self.mean.add(per_lead(torch.where(counts > 0, decibels, 0)), per_lead(counts > 0))

    def merge(self, other: PeakSignalToNoise) -> None:
        """Adds another's frames."""
        self.mean.merge(other.mean)

    def compute(self) -> dict[str, tuple[Value, list[Value]]]:
        """The one value."""
        return {"psnr": self.mean.compute()}
