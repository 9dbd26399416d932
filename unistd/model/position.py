"""Sinusoidal two-dimensional positions."""

from __future__ import annotations

import torch
from torch import Tensor


def sinusoidal_positions(height: int, width: int, channels: int) -> Tensor:
    """Fixed positions of a token grid (Vaswani et al. 2017, section 3.5, once per axis; as MAE and ViT use it).

    Args:
        height, width: rows and columns of the grid.
        channels: a multiple of 4: a quarter each for sine and cosine of the row and of the column, with wavelengths
            from 2π to 2π·10,000 tokens.

    Returns:
        (height·width, channels) float32, rows of the grid one after the other.

    Raises:
        ValueError: channels is not a multiple of 4.
    """
    if channels % 4:
        raise ValueError(f"channels: expected a multiple of 4, found {channels}")
    frequency = torch.pow(10_000.0, -torch.arange(channels // 4, dtype=torch.float64) / (channels // 4))
    row = torch.arange(height, dtype=torch.float64)[:, None] * frequency
    column = torch.arange(width, dtype=torch.float64)[:, None] * frequency
    row = torch.cat([row.sin(), row.cos()], dim=1)[:, None].expand(height, width, channels // 2)
    column = torch.cat([column.sin(), column.cos()], dim=1)[None].expand(height, width, channels // 2)
    return torch.cat([row, column], dim=2).reshape(height * width, channels).float()
