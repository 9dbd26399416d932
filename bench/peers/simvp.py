"""SimVP-gSTA in plain PyTorch, written from its paper, as the single-task model that UniSTD is set beside.

Tan et al., "SimVP: Towards Simple yet Powerful Spatiotemporal Predictive Learning", arXiv 2211.12509, section 3: a
convolutional encoder on each frame, a translator of gated spatio-temporal attention on all frames' channels at once,
and a convolutional decoder, whose last layer also gets what the encoder's first layer gave.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

LARGE_KERNEL = 21  # made of a 5x5 and a dilated 7x7 depthwise convolution
DILATION = 3
MLP_RATIO = 8
SPATIAL_KERNEL = 3


@dataclass(frozen=True)
class SimVPConfig:
    """Frames (Tin = Tout = `frames`), channels of one frame, and the published widths and depths of a task.

    ``spatial``: channels of encoder and decoder, ``temporal``: of the translator; ``depth``: layers of the encoder,
    every second of which halves the frame; ``blocks``: of the translator.
    """

    frames: int
    channels: int
    spatial: int
    temporal: int
    depth: int
    blocks: int


# The settings of the published results: 46.8 M parameters for Moving MNIST, 9.96 M for TaxiBJ.
CONFIGS = {
    "moving_mnist": SimVPConfig(frames=10, channels=1, spatial=64, temporal=512, depth=4, blocks=8),
    "taxibj": SimVPConfig(frames=4, channels=2, spatial=32, temporal=256, depth=2, blocks=8),
}


class SimVP(nn.Module):
    """Frames (B, T, C, H, W) -> the T frames that follow, in the same shape."""

    def __init__(self, config: SimVPConfig):
        super().__init__()
        halvings = [layer % 2 == 1 for layer in range(config.depth)]
        widths = [config.channels] + [config.spatial] * config.depth
        self.encoder = nn.ModuleList(
            _convolution(widths[i], widths[i + 1], stride=2 if halve else 1) for i, halve in enumerate(halvings)
        )
        self.translator = Translator(config.frames * config.spatial, config.temporal, config.blocks)
        self.decoder = nn.ModuleList(
            _upsampling(config.spatial, config.spatial) if double else _convolution(config.spatial, config.spatial)
            for double in reversed(halvings)
        )
        self.readout = nn.Conv2d(config.spatial, config.channels, 1)

    def forward(self, frames: Tensor) -> Tensor:
        batch, count = frames.shape[:2]
        skip = features = self.encoder[0](frames.flatten(0, 1))
        for layer in self.encoder[1:]:
            features = layer(features)
        mixed = self.translator(features.unflatten(0, (batch, count)).flatten(1, 2))
        features = mixed.unflatten(1, (count, -1)).flatten(0, 1)
        for layer in self.decoder[:-1]:
            features = layer(features)
        features = self.decoder[-1](features + skip)
        return self.readout(features).unflatten(0, (batch, count))


class Translator(nn.Module):
    """Blocks of gated spatio-temporal attention on (B, T·C', h, w); the first and last change the width."""

    def __init__(self, outer: int, inner: int, blocks: int):
        super().__init__()
        widths = [outer] + [inner] * (blocks - 1) + [outer]
        layers: list[nn.Module] = []
        for width, following in pairwise(widths):
            layers.append(GatedBlock(width))
            if following != width:
                layers.append(nn.Conv2d(width, following, 1))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class GatedBlock(nn.Module):
    """x + scale·attention(norm(x)), then x + scale·mlp(norm(x)), with a learned scale a channel that starts at 0.01."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.attention = GatedAttention(width)
        hidden = MLP_RATIO * width
        self.mlp = nn.Sequential(
            nn.Conv2d(width, hidden, 1),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden),
            nn.GELU(),
            nn.Conv2d(hidden, width, 1),
        )
        self.scale1 = nn.Parameter(torch.full((width, 1, 1), 0.01))
        self.scale2 = nn.Parameter(torch.full((width, 1, 1), 0.01))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale1 * self.attention(self.norm1(x))
        return x + self.scale2 * self.mlp(self.norm2(x))


class GatedAttention(nn.Module):
    """1x1 -> GELU -> large-kernel convolution, one half of which gates the other -> 1x1, plus the input."""

    def __init__(self, width: int):
        super().__init__()
        near = 2 * DILATION - 1
        far = LARGE_KERNEL // DILATION + (LARGE_KERNEL // DILATION % 2 - 1)
        self.enter = nn.Conv2d(width, width, 1)
        self.near = nn.Conv2d(width, width, near, padding=near // 2, groups=width)
        self.far = nn.Conv2d(width, width, far, padding=DILATION * (far - 1) // 2, dilation=DILATION, groups=width)
        self.split = nn.Conv2d(width, 2 * width, 1)
        self.leave = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.split(self.far(self.near(nn.functional.gelu(self.enter(x))))).chunk(2, dim=1)
        return x + self.leave(torch.sigmoid(gate) * value)


def _convolution(channels: int, out: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(channels, out, SPATIAL_KERNEL, stride, SPATIAL_KERNEL // 2)
    return nn.Sequential(convolution, nn.GroupNorm(2, out), nn.SiLU())


def _upsampling(channels: int, out: int) -> nn.Sequential:
    """Twice the size, by a convolution to four times the channels that are then laid out as pixels."""
    convolution = nn.Conv2d(channels, 4 * out, SPATIAL_KERNEL, padding=SPATIAL_KERNEL // 2)
    return nn.Sequential(convolution, nn.PixelShuffle(2), nn.GroupNorm(2, out), nn.SiLU())
