"""Measures of a forecast and the baseline every model must beat.

All are taken on values in [0, 1], the range the tasks are normalised to, and averaged over samples, frames, channels
and pixels alike. They differ from other published conventions, so numbers compare only within one convention:

- `mse`, `mae`: mean over every element, prediction not clipped. Video papers often sum over C, H, W instead: multiply
  by C·H·W. Papers on TaxiBJ, SEVIR and ENSO use physical units: multiply by `scale**2` (mse) or `scale` (mae).
- `psnr`: dB, from the mean squared error of each frame, prediction clipped to [0, 1]; the mean of the frames' values,
  not the value of the mean error. An error below 1e-10 counts as 1e-10 (100 dB), so that a perfect frame stays finite.
- `ssim`: of each frame, prediction clipped to [0, 1], scikit-image with its 7x7 uniform window, mean over channels, and
  data_range = 1, which is the range of the data. Code that leaves data_range out gets 2 from old scikit-image releases
  and with it higher numbers for the same pictures.
"""

from __future__ import annotations

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

SMALLEST_MSE = 1e-10
SMALLEST_SIDE = 7  # of a frame: the window of SSIM
METRICS = {"mse": "lower is better", "mae": "lower is better", "psnr": "higher is better", "ssim": "higher is better"}


def repeat_last(inputs: Tensor, frames_out: int) -> Tensor:
    """The forecast that nothing changes: inputs (B, Tin, C, H, W) -> their last frame (B, frames_out, C, H, W)."""
    return inputs[:, -1:].expand(-1, frames_out, -1, -1, -1)


class ForecastMetrics:
    """Accumulates the measures over batches; a last small batch weighs only what it holds."""

    def __init__(self) -> None:
        self.frames = 0
        self.sums = dict.fromkeys(METRICS, 0.0)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Adds a batch: both (B, T, C, H, W), target in [0, 1]. Raises ValueError for other shapes or NaN/Inf."""
        if prediction.shape != target.shape or target.ndim != 5:
            shapes = f"prediction {tuple(prediction.shape)}, target {tuple(target.shape)}"
            raise ValueError(f"{shapes}: expected one shape (B, T, C, H, W)")
        if not torch.isfinite(prediction).all():
            raise ValueError("the prediction holds NaN or Inf")
        prediction, target = (frames.detach().double().flatten(0, 1).cpu() for frames in (prediction, target))
        clipped = prediction.clamp(0, 1)
        frame_mse = (clipped - target).square().mean((1, 2, 3)).clamp(min=SMALLEST_MSE)
        self.sums["mse"] += (prediction - target).square().mean((1, 2, 3)).sum().item()
        self.sums["mae"] += (prediction - target).abs().mean((1, 2, 3)).sum().item()
        self.sums["psnr"] += (-10 * frame_mse.log10()).sum().item()
        self.sums["ssim"] += sum(map(_ssim, clipped.numpy(), target.numpy()))
        self.frames += len(target)

    def compute(self) -> dict[str, float]:
        """The means so far; raises ValueError before the first batch."""
        if self.frames == 0:
            raise ValueError("no frames were measured")
        return {name: total / self.frames for name, total in self.sums.items()}


def _ssim(prediction: np.ndarray, target: np.ndarray) -> float:
    return float(structural_similarity(prediction, target, win_size=SMALLEST_SIDE, channel_axis=0, data_range=1.0))
