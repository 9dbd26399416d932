"""Encoder and decoder of one task: frames to tokens and tokens to frames.

Time is folded into the channels: all frames pass the same convolutions, and a 1x1 projection at the token grid mixes
the frames of a sample (Tin·C' -> width, and width -> Tout·C'). The projection is always there, not only where the
number of frames does not divide the width: it is where a task's frames are combined before the frozen layers see them.

Frames whose sides the patch does not divide are padded below and at the right with their last row and column, and what
is decoded there is cropped.

With skips the decoder also sees, past the tokens, the frames and what the encoder's first stage makes of them, each
through one convolution that mixes the frames (Tin·C' -> Tout·C').
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from unistd.tasks.spec import TaskSpec


class Encoder(nn.Module):
    """Frames (B, Tin, C, H, W) -> tokens (B, N, width), N = ⌈H/patch⌉·⌈W/patch⌉, and what skips to the decoder: with
    `skips` the frames (B, Tin·C, H', W'), H' and W' filling the grid, and the first stage's features (B, Tin·C', h, w).
    """

    def __init__(self, spec: TaskSpec, width: int, hidden: int, skips: bool = False) -> None:
        super().__init__()
        self.skips = skips
        strides = stage_strides(spec.patch)
        self.padding = padding_of(spec)
        frame_channels = channels_per_frame(width, spec.frames_in)
        stages, channels, scale = [], spec.channels, 1
        for index, stride in enumerate(strides):
            scale *= stride
            out = frame_channels if index == len(strides) - 1 else stage_channels(hidden, scale)
            kernel, padding = window(stride)
            stages.append(norm_act(nn.Conv2d(channels, out, kernel, stride, padding)))
            channels = out
        self.stages = nn.Sequential(*stages)
        self.projection = nn.Conv2d(spec.frames_in * frame_channels, width, 1)

    def forward(self, frames: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        shape = frames.shape[:2]
        frames = frames.flatten(0, 1)
        if any(self.padding):
            frames = F.pad(frames, self.padding, mode="replicate")
        first = self.stages[0](frames)
        features = self.stages[1:](first)  # (B·Tin, C', h, w)
        features = features.unflatten(0, shape).flatten(1, 2)  # time into channels: (B, Tin·C', h, w)
        tokens = self.projection(features).flatten(2).transpose(1, 2)
        skipped = (frames, first) if self.skips else ()
        return tokens, tuple(value.unflatten(0, shape).flatten(1, 2) for value in skipped)


class Decoder(nn.Module):
    """Tokens (B, N, width) -> frames (B, Tout, C, H, W).

    With `residual` the last input frame is added to what the convolutions give, and these start at zero: at the start
    the model repeats the last frame. With `skips` it takes what its encoder gives beside the tokens.
    """

    def __init__(self, spec: TaskSpec, width: int, hidden: int, residual: bool, skips: bool = False) -> None:
        super().__init__()
        self.grid, self.frames_out, self.residual = spec.grid, spec.frames_out, residual
        self.frame = (spec.height, spec.width)
        channels = channels_per_frame(width, spec.frames_out)
        self.projection = nn.Conv2d(width, spec.frames_out * channels, 1)
        stages, scale = [], spec.patch
        for stride in reversed(stage_strides(spec.patch)):
            scale //= stride
            out = stage_channels(hidden, scale)
            kernel, padding = window(stride)
            stages.append(norm_act(nn.ConvTranspose2d(channels, out, kernel, stride, padding)))
            channels = out
        self.stages = nn.Sequential(*stages)
        self.skip_frames = self.skip_features = None
        if skips:
            inner = stage_channels(hidden, stage_strides(spec.patch)[0])  # of the encoder's first stage and of our last
            self.skip_frames = nn.Conv2d(spec.frames_in * spec.channels, spec.frames_out * channels, 3, padding=1)
            self.skip_features = nn.Conv2d(spec.frames_in * inner, spec.frames_out * inner, 1)
        self.readout = nn.Conv2d(channels, spec.channels, 3, padding=1)
        if residual:
            nn.init.zeros_(self.readout.weight)
            nn.init.zeros_(self.readout.bias)

    def forward(self, tokens: Tensor, last_frame: Tensor, skipped: Sequence[Tensor] = ()) -> Tensor:
        """tokens (B, N, width), last_frame (B, C, H, W), what the encoder gave beside -> (B, Tout, C, H, W)."""
        features = self.projection(tokens.transpose(1, 2).unflatten(2, self.grid))
        features = self._per_frame(features)
        features = self.stages[:-1](features)
        if skipped:
            features = features + self._per_frame(self.skip_features(skipped[1]))
        features = self.stages[-1](features)
        if skipped:
            features = features + self._per_frame(self.skip_frames(skipped[0]))
        height, width = self.frame
        frames = self.readout(features)[..., :height, :width].unflatten(0, (-1, self.frames_out))
        return last_frame[:, None] + frames if self.residual else frames

    def _per_frame(self, features: Tensor) -> Tensor:
        """(B, Tout·C', h, w) -> (B·Tout, C', h, w)"""
        return features.unflatten(1, (self.frames_out, -1)).flatten(0, 1)


def padding_of(spec: TaskSpec) -> tuple[int, int, int, int]:
    """Columns at the left and right, rows above and below, that fill the token grid."""
    rows, columns = spec.grid
    return 0, columns * spec.patch - spec.width, 0, rows * spec.patch - spec.height


def stage_strides(patch: int) -> list[int]:
    """Prime factors of `patch`, smallest first, ones in front up to two stages: 16 -> 2 2 2 2, 6 -> 2 3, 2 -> 1 2."""
    strides, factor = [], 2
    while patch > 1:
        while patch % factor == 0:
            strides.append(factor)
            patch //= factor
        factor += 1
    return [1] * (2 - len(strides)) + strides


def window(stride: int) -> tuple[int, int]:
    """Kernel and padding that divide (transposed: multiply) the size by `stride`: 3, 1 for 1; 4, 1 for 2; 5, 1 for 3.

    Neighbours overlap, and a token's field of view lies evenly around its own patch (3, 1 for a stride of 2 would
    shift it to the patch's corner).
    """
    padding = max(1, stride // 2)
    return stride + 2 * padding, padding


def stage_channels(hidden: int, scale: int) -> int:
    """Channels at 1/scale of the frame's size: `hidden` at half size, twice as many per halving, at most 4·hidden."""
    return max(8, min(hidden * scale // 2, 4 * hidden))


def channels_per_frame(width: int, frames: int) -> int:
    """Channels of one frame at the token grid: width / frames, rounded up to a multiple of 8."""
    return 8 * math.ceil(width / frames / 8)


def norm_act(convolution: nn.Conv2d | nn.ConvTranspose2d) -> nn.Sequential:
    """convolution -> GroupNorm (8 groups where they fit) -> SiLU."""
    channels = convolution.out_channels
    return nn.Sequential(convolution, nn.GroupNorm(math.gcd(8, channels), channels), nn.SiLU())
