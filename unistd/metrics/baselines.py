"""Forecasts that take no model: what a trained one must beat."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Baseline = Callable[[Tensor, int], Tensor]  # inputs (B, Tin, C, H, W), Tout -> forecast (B, Tout, C, H, W)


def repeat_last(inputs: Tensor, frames_out: int) -> Tensor:
    """The forecast that nothing changes: inputs (B, Tin, C, H, W) -> their last frame (B, frames_out, C, H, W)."""
    return inputs[:, -1:].expand(-1, frames_out, -1, -1, -1)


def linear(inputs: Tensor, frames_out: int) -> Tensor:
    """The forecast that each pixel goes on as from the last but one frame to the last, clipped to [0, 1].

    inputs (B, Tin, C, H, W) with Tin >= 2 -> (B, frames_out, C, H, W).
    """
    step = inputs[:, -1:] - inputs[:, -2:-1]
    lead = torch.arange(1, frames_out + 1, dtype=inputs.dtype, device=inputs.device).view(1, -1, 1, 1, 1)
    return (inputs[:, -1:] + lead * step).clamp(0, 1)


class TrainingMean:
    """The forecast of every pixel's mean over the training frames, whatever the inputs are.

    Frames are added one sample at a time; NaN counts nowhere. A pixel that was never measured has the mean 0.
    """

    def __init__(self) -> None:
        self.samples = 0
        self._sum = self._count = torch.zeros((), dtype=torch.float64)

    def add(self, frames: Tensor) -> None:
        """Adds frames (T, C, H, W)."""
        measured = ~frames.isnan()
        self._sum = self._sum + torch.where(measured, frames.double(), 0).sum(0)
        self._count = self._count + measured.sum(0)
        self.samples += 1

    @property
    def mean(self) -> Tensor:
        """(C, H, W) float32."""
        return (self._sum / self._count.clamp(min=1)).float()

    def __call__(self, inputs: Tensor, frames_out: int) -> Tensor:
        """The forecast, a `Baseline`."""
        return self.mean.to(inputs).expand(len(inputs), frames_out, -1, -1, -1)
