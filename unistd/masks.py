"""Missing values: NaN in the frames of a task whose spec has `missing` says that nothing was measured there."""

from __future__ import annotations

import torch
from torch import Tensor


def fill_missing(frames: Tensor) -> Tensor:
    """Frames (B, T, C, H, W) with numbers in place of NaN, from the same sample and pixel.

    A missing value is the last one that was measured before it, or else the first one after it; where nothing was ever
    measured, 0. Frames without NaN come back as they were, to the bit.
    """
    filled = list(frames.unbind(1))
    last = len(filled) - 1
    for place, neighbour in [(t, t - 1) for t in range(1, last + 1)] + [(t, t + 1) for t in range(last - 1, -1, -1)]:
        filled[place] = torch.where(filled[place].isnan(), filled[neighbour], filled[place])
    frames = torch.stack(filled, 1)
    return torch.where(frames.isnan(), torch.zeros_like(frames), frames)


def masked_square_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Sum of the squared errors of the pixels that were measured, (); 0, with a gradient of 0, where none was."""
    return torch.where(target.isnan(), 0, prediction - target).square().sum()
