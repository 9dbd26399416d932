"""All measures of one forecaster on one task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unistd.metrics.errors import PixelErrors, VarianceScaled, VarianceScaledFrames
from unistd.metrics.events import EventScores
from unistd.metrics.learned import NETWORKS
from unistd.metrics.measures import DEFAULT_METRICS, EVENT_METRICS, check_metrics
from unistd.metrics.meter import Frames, Meter, Value
from unistd.metrics.nino import NinoCorrelation
from unistd.metrics.psnr import PeakSignalToNoise
from unistd.metrics.ssim import StructuralSimilarity

_PIXELS = 1 << 18  # measured at once: what fits into a core's cache, whatever the batch


@dataclass(frozen=True)
class Scores:
    """Values by name, over the whole set and per lead time; None where a value is undefined."""

    values: dict[str, Value]
    leads: dict[str, list[Value]]
    """T values each; `nino` has T - 2, `fvd` none"""

    def __getitem__(self, name: str) -> Value:
        """The value over the whole set."""
        return self.values[name]


class ForecastMetrics:
    """Accumulates measures over batches; a last small batch weighs only what it holds.

    Args:
        metrics: names of `MEASURES`.
        scale, offset: physical value = normalised value * scale + offset.
        thresholds: of events, in physical units, increasing.
        networks: of the measures of `NETWORKS` among these, by their names.

    Raises:
        ValueError: unknown names, a measure without its network, or thresholds that are missing or do not increase.
    """

    def __init__(
        self,
        metrics: Sequence[str] = DEFAULT_METRICS,
        scale: float = 1.0,
        offset: float = 0.0,
        thresholds: Sequence[float] = (),
        networks: Mapping[str, nn.Module] = {},
    ) -> None:
        check_metrics(metrics, thresholds)
        names = set(metrics)
        learned = [name for name in NETWORKS if name in names]
        if lacking := [name for name in learned if name not in networks]:
            raise ValueError(f"networks: found none for {lacking[0]!r}, expected its network")
        choices: list[tuple[set[str], Meter]] = [
            ({"mse", "mae", "rmse"}, PixelErrors(names, scale)),
            ({"vrmse"}, VarianceScaled()),
            ({"vrmse_well"}, VarianceScaledFrames()),
            ({"psnr"}, PeakSignalToNoise()),
            ({"ssim", "ssim_openstl"}, StructuralSimilarity(names)),
            (set(EVENT_METRICS), EventScores(names, tuple(thresholds), scale, offset)),
            ({"nino"}, NinoCorrelation()),
        ]
        self.meters = [meter for served, meter in choices if served & names]
        self.meters += [NETWORKS[name].meter(networks[name]) for name in learned]
        self.frames = 0

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Adds a batch: both (B, T, C, H, W), target in [0, 1], NaN in it where nothing was measured.

        Raises:
            ValueError: other shapes, NaN or Inf in the prediction, Inf in the target.
        """
        if prediction.shape != target.shape or target.ndim != 5:
            shapes = f"prediction {tuple(prediction.shape)}, target {tuple(target.shape)}"
            raise ValueError(f"{shapes}: expected one shape (B, T, C, H, W)")
        prediction, target = prediction.detach().cpu(), target.detach().cpu()
        if not torch.isfinite(prediction).all():
            raise ValueError("the prediction holds NaN or Inf")
        if torch.isinf(target).any():
            raise ValueError("the target holds Inf")
        count = max(1, _PIXELS // max(1, target[0].numel()))
        for part in zip(prediction.double().split(count), target.double().split(count), strict=True):
            self._add(*part)
        self.frames += len(target) * target.shape[1]

    def _add(self, prediction: Tensor, target: Tensor) -> None:
        measured = ~target.isnan()
        if not measured.all():
            prediction, target = (torch.where(measured, frames, 0) for frames in (prediction, target))
        frames = Frames(prediction, prediction.clamp(0, 1), target, measured)
        for meter in self.meters:
            meter.update(frames)

    def merge(self, other: ForecastMetrics) -> None:
        """Adds the batches that another one, made with the same arguments, has seen."""
        for meter, more in zip(self.meters, other.meters, strict=True):
            meter.merge(more)
        self.frames += other.frames

    def compute(self) -> Scores:
        """The measures so far; raises ValueError before the first batch."""
        if self.frames == 0:
            raise ValueError("no frames were measured")
        found = {name: value for meter in self.meters for name, value in meter.compute().items()}
        return Scores(
            {name: whole for name, (whole, _) in found.items()}, {name: leads for name, (_, leads) in found.items()}
        )
