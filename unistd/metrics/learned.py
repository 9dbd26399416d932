"""The measures that take a trained network, and what each asks of a task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from unistd.metrics import i3d, lpips
from unistd.metrics.fvd import VideoDistance
from unistd.metrics.meter import Meter


@dataclass(frozen=True)
class Learned:
    """A measure: its network, made with random weights, and its meter, given the network."""

    make: Callable[[], nn.Module]
    meter: Callable[[nn.Module], Meter]
    side: int
    """least height and width of a frame, pixels"""
    frames: int
    """least frames of a forecast"""
    spare: tuple[str, ...]
    """beginnings or ends of names that published files have or lack, of no use here"""


NETWORKS = {
    "lpips": Learned(lpips.PerceptualNetwork, lpips.PerceptualSimilarity, lpips.SMALLEST_SIDE, 1, lpips.SPARE),
    "fvd": Learned(i3d.I3D, VideoDistance, 1, i3d.LEAST_FRAMES, i3d.SPARE),
}
