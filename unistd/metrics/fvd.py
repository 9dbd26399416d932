"""FVD: Frechet video distance (Unterthiner et al., 2018) of the forecast clips from the observed ones.

A clip is the Tout frames of a forecast, without the inputs: values clipped to [0, 1], grey repeated to three channels,
resized to 224 x 224 (bilinear, corners not aligned), 2 v - 1 in [-1, 1]. Its features are the 400 logits of I3D. With
mean m and covariance S (n - 1) of the features of forecast and observed clips,

    FVD = |m - m'|^2 + tr(S + S' - 2 (S S')^(1/2)).

It is a distance of two sets, so one value and none per lead time, undefined for fewer than two clips; with few clips it
is too large, so that it compares only with values of as many. A clip with a missing pixel is left out of both sets.

It is measured where `metrics.fvd_weights` names the file of I3D: a state dict (`unistd.metrics.i3d` has its names), as
.safetensors or as `torch.save` writes it. The TorchScript file that is also about holds code, and no code is run here
that comes in a file: `torch.jit.load(...).state_dict()`, saved, renames as needed on the machine of who trusts it. It
is of pictures: one or three channels, forecasts of nine frames or more.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unistd.metrics.i3d import SIDE
from unistd.metrics.meter import Frames, Value


class Gaussian:
    """Mean and covariance of features that come in parts, as sums of differences from the first one."""

    def __init__(self) -> None:
        self.count, self.origin = 0, torch.zeros(())
        self.first = self.second = torch.zeros((), dtype=torch.float64)

    def add(self, features: Tensor) -> None:
        """Adds features (N, D)."""
        if len(features) == 0:
            return
        features = features.double()
        if self.count == 0:
            self.origin = features[0]
        shifted = features - self.origin
        self.count += len(features)
        self.first = self.first + shifted.sum(0)
        self.second = self.second + shifted.T @ shifted

    def merge(self, other: Gaussian) -> None:
        """Adds another's features."""
        if other.count == 0:
            return
        if self.count == 0:
            self.origin = other.origin
        move = other.origin - self.origin
        crossed = torch.outer(move, other.first)
        self.first = self.first + other.first + other.count * move
        self.second = self.second + other.second + crossed + crossed.T + other.count * torch.outer(move, move)
        self.count += other.count

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean (D,) and covariance (D, D), of two features or more."""
        mean = self.first / self.count
        covariance = (self.second - self.count * torch.outer(mean, mean)) / (self.count - 1)
        return self.origin + mean, covariance


def frechet_distance(one: Gaussian, other: Gaussian) -> float:
    """The squared 2-Wasserstein distance of two normal distributions."""
    (mean, covariance), (other_mean, other_covariance) = one.moments(), other.moments()
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    product = torch.linalg.eigvalsh(root @ other_covariance @ root)  # those of S S', and symmetric
    shared = product.clamp(min=0).sqrt().sum()
    spread = covariance.trace() + other_covariance.trace() - 2 * shared
    return max(0.0, float((mean - other_mean).square().sum() + spread))


class VideoDistance:
    """`fvd`."""

    def __init__(self, network: nn.Module) -> None:
        self.network: nn.Module | None = network
        self.forecast, self.observed = Gaussian(), Gaussian()

    def __getstate__(self) -> dict[str, object]:
        """What another process merges: the sums."""
        return self.__dict__ | {"network": None}

    def update(self, frames: Frames) -> None:
        """Adds clips."""
        whole = frames.measured.flatten(1).all(1)
        for gaussian, clips in ((self.forecast, frames.clipped), (self.observed, frames.target.clamp(0, 1))):
            for clip in clips[whole].split(1):
                gaussian.add(self._features(clip))

    @torch.no_grad()
    def _features(self, clips: Tensor) -> Tensor:
        pictures = clips.flatten(0, 1).expand(-1, 3, -1, -1).to(next(self.network.parameters()))
        pictures = 2 * F.interpolate(pictures, (SIDE, SIDE), mode="bilinear", align_corners=False) - 1
        return self.network(pictures.unflatten(0, clips.shape[:2]).transpose(1, 2)).cpu()

    def merge(self, other: VideoDistance) -> None:
        """Adds another's clips."""
        self.forecast.merge(other.forecast)
        self.observed.merge(other.observed)

    def compute(self) -> dict[str, tuple[Value, list[Value]]]:
        """The one value."""
        return {"fvd": (frechet_distance(self.forecast, self.observed) if self.forecast.count > 1 else None, [])}
