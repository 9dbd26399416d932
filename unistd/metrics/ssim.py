"""SSIM: structural similarity of a frame as scikit-image defines it: 7x7 uniform window, K1 = 0.01, K2 = 0.03, sample
covariance.

The forecast is clipped to [0, 1]. A frame's value is the mean of the map of SSIM over all channels and all windows that
lie within the frame and hold no missing pixel; the result is the mean over frames that have such a window.

- `ssim`: data_range = 1, which is the range of the data.
- `ssim_openstl`: data_range = 2. Code that leaves data_range out, OpenSTL's among it, gets 2 from old releases of
  scikit-image, and with it higher numbers for the same pictures. For comparison with published tables.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unistd.metrics.meter import Frames, LeadMean, Value, per_lead, ratio

SMALLEST_SIDE = 7  # of a frame: the window
_K1, _K2 = 0.01, 0.03
_PIXELS = 1 << 17  # of frames that are filtered at once: what fits into a core's cache


class StructuralSimilarity:
    """`ssim` and `ssim_openstl`, as far as `names` has them."""

    def __init__(self, names: set[str]) -> None:
        self.ranges = {name: span for name, span in (("ssim", 1.0), ("ssim_openstl", 2.0)) if name in names}
        self.means = {name: LeadMean() for name in self.ranges}

    def update(self, frames: Frames) -> None:
        """Adds frames."""
        batch, leads = frames.target.shape[:2]
        planes = [part.flatten(0, 1) for part in (frames.clipped, frames.target, frames.measured)]  # (B·T, C, H, W)
        count = max(1, _PIXELS // planes[0][0].numel())
        parts = [
            _similarity(*part, self.ranges.values())
            for part in zip(*(plane.split(count) for plane in planes), strict=True)
        ]
        for index, mean in enumerate(self.means.values()):
            values = torch.cat([part[index] for part in parts]).unflatten(0, (batch, leads))
            mean.add(per_lead(values.nan_to_num(0)), per_lead(values.isfinite()))

    def merge(self, other: StructuralSimilarity) -> None:
        """Adds another's frames."""
        for name, mean in self.means.items():
            mean.merge(other.means[name])

    def compute(self) -> dict[str, tuple[Value, list[Value]]]:
        """A value for each name."""
        return {name: mean.compute() for name, mean in self.means.items()}


def _similarity(x: Tensor, y: Tensor, measured: Tensor, spans) -> list[Tensor]:
    """SSIM of frames (N, C, H, W) for each data range, (N,), NaN where no window was measured whole."""
    window = SMALLEST_SIDE**2
    mean_x, mean_y = _window_sums(x) / window, _window_sums(y) / window
    unbiased = window / (window - 1)
    square_x, square_y, product = mean_x.square(), mean_y.square(), mean_x * mean_y
    variances = unbiased * (_window_sums(x.square() + y.square()) / window - square_x - square_y)
    covariance = unbiased * (_window_sums(x * y) / window - product)
    whole = None if measured.all() else _window_sums(measured.double()) > window - 0.5
    found = []
    for span in spans:
        c1, c2 = (_K1 * span) ** 2, (_K2 * span) ** 2
        ssim = (2 * product + c1) * (2 * covariance + c2) / ((square_x + square_y + c1) * (variances + c2))
        if whole is None:
            found.append(ssim.mean((1, 2, 3)))
        else:
            found.append(ratio(torch.where(whole, ssim, 0).sum((1, 2, 3)), whole.sum((1, 2, 3))))
    return found


def _window_sums(planes: Tensor) -> Tensor:
    """Sums over the 7x7 windows within planes (..., H, W): (..., H - 6, W - 6)."""
    for dim in (-1, -2):
        size = planes.shape[dim]
        two = planes.narrow(dim, 0, size - 1) + planes.narrow(dim, 1, size - 1)
        four = two.narrow(dim, 0, size - 3) + two.narrow(dim, 2, size - 3)
        six = four.narrow(dim, 0, size - 5) + two.narrow(dim, 4, size - 5)
        planes = six.narrow(dim, 0, size - 6) + planes.narrow(dim, 6, size - 6)
    return planes
