"""I3D (Carreira and Zisserman, CVPR 2017): Inception of 3-d convolutions, for RGB clips, of the 400 classes of
Kinetics; the network of FVD."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 400
LEAST_FRAMES = 9  # three halvings leave two, which the last pooling needs
SIDE = 224  # pixels of a frame
SPARE = ("num_batches_tracked",)  # of training alone, and not in every file
_MIXED = {  # channels in; out of the branches 1x1, 3x3 (within, out), 3x3 (within, out), pooled
    "Mixed_3b": (192, 64, 96, 128, 16, 32, 32),
    "Mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "Mixed_4b": (480, 192, 96, 208, 16, 48, 64),
    "Mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "Mixed_4d": (512, 128, 128, 256, 24, 64, 64),
    "Mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "Mixed_4f": (528, 256, 160, 320, 32, 128, 128),
    "Mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "Mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}
_POOLS = {"Mixed_4b": ((3, 3, 3), (2, 2, 2)), "Mixed_5b": ((2, 2, 2), (2, 2, 2))}  # in front of it: kernel, stride


def _same(clip: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Zeros around (N, C, T, H, W) as TensorFlow's SAME has them: the odd one at the end."""
    padding = []
    for size, width, step in reversed(list(zip(clip.shape[2:], kernel, stride, strict=True))):
        total = max((-(-size // step) - 1) * step + width - size, 0)
        padding += [total // 2, total - total // 2]
    return F.pad(clip, padding)


def _pool(clip: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    return F.max_pool3d(_same(clip, kernel, stride), kernel, stride)


class _Unit(nn.Module):
    """Convolution, normalisation, ReLU."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(channels_in, channels_out, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(channels_out, eps=1e-3)

    def forward(self, clip: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv3d(_same(clip, self.conv3d.kernel_size, self.conv3d.stride))))


class _Mixed(nn.Module):
    def __init__(self, channels: int, one: int, two_in: int, two: int, three_in: int, three: int, pooled: int) -> None:
        super().__init__()
        self.b0 = _Unit(channels, one)
        self.b1a, self.b1b = _Unit(channels, two_in), _Unit(two_in, two, 3)
        self.b2a, self.b2b = _Unit(channels, three_in), _Unit(three_in, three, 3)
        self.b3b = _Unit(channels, pooled)

    def forward(self, clip: Tensor) -> Tensor:
        pooled = _pool(clip, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.b0(clip), self.b1b(self.b1a(clip)), self.b2b(self.b2a(clip)), self.b3b(pooled)], 1)


class I3D(nn.Module):
    """The network, with the names of the state dicts that PyTorch ports of the published weights have."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = _Unit(3, 64, 7, 2)
        self.Conv3d_2b_1x1 = _Unit(64, 64)
        self.Conv3d_2c_3x3 = _Unit(64, 192, 3)
        for name, sizes in _MIXED.items():
            self.add_module(name, _Mixed(*sizes))
        self.logits = nn.ModuleDict({"conv3d": nn.Conv3d(1024, CLASSES, 1)})

    def forward(self, clip: Tensor) -> Tensor:
        """Clips (N, 3, T, 224, 224) in [-1, 1], T >= 9 -> logits (N, 400), their mean over time."""
        clip = _pool(self.Conv3d_1a_7x7(clip), (1, 3, 3), (1, 2, 2))
        clip = _pool(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(clip)), (1, 3, 3), (1, 2, 2))
        for name in _MIXED:
            if name in _POOLS:
                clip = _pool(clip, *_POOLS[name])
            clip = self.get_submodule(name)(clip)
        return self.logits["conv3d"](F.avg_pool3d(clip, (2, 7, 7), 1)).mean((2, 3, 4))
