"""LPIPS: learned perceptual image patch similarity of a frame (Zhang et al., CVPR 2018), version 0.1, AlexNet.

A frame in [0, 1] (the forecast clipped to it; grey repeated to three channels) becomes 2 v - 1 in [-1, 1], then
(x - shift) / scale of ImageNet's channels. Of the outputs of AlexNet's five ReLUs, each divided by its norm over the
channels, the squared difference of the two frames is weighted per channel by a learned head, averaged over the places
and summed over the five: 0 for equal frames. The result is the mean over the frames that have no missing pixel.

It is measured where `metrics.lpips_weights` names the file of the network: the state dict of the `lpips` package's
`LPIPS(net="alex")`, backbone and heads, as .safetensors or as `torch.save` writes it. It is of pictures: frames of one
or three channels, 31 x 31 pixels or more, in the range of the data.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from unistd.metrics.meter import Frames, LeadMean, Value, per_lead

SMALLEST_SIDE = 31  # of a frame: AlexNet's strides leave one place at its end
SPARE = ("scaling_layer.", "lins.")  # names in the published state dict that say nothing new
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPSILON = 1e-8  # within the norm, so that features that are all 0 stay so
_FRAMES = 8  # compared at once


class PerceptualNetwork(nn.Module):
    """AlexNet up to its last ReLU and the five heads, with the names of the published state dict."""

    def __init__(self) -> None:
        super().__init__()
        layers = [
            (nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU()),
            (nn.MaxPool2d(3, 2), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU()),
            (nn.MaxPool2d(3, 2), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
            (nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
            (nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
        ]
        self.net, place = nn.ModuleDict(), 0
        for index, slice_ in enumerate(layers):
            named = OrderedDict((str(place + offset), layer) for offset, layer in enumerate(slice_))
            self.net[f"slice{index + 1}"], place = nn.Sequential(named), place + len(slice_)
            head = nn.Conv2d(slice_[-2].out_channels, 1, 1, bias=False)
            self.add_module(f"lin{index}", nn.Sequential(OrderedDict(model=nn.Sequential(OrderedDict({"1": head})))))

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """Frames (N, 3, H, W) in [0, 1] -> their distances (N,)."""
        shift, scale = (one.new_tensor(values).view(1, 3, 1, 1) for values in (_SHIFT, _SCALE))
        pair = (2 * torch.cat([one, other]) - 1 - shift) / scale
        distance = one.new_zeros(len(one))
        for index, slice_ in enumerate(self.net.values()):
            pair = slice_(pair)
            unit = pair / (pair.square().sum(1, keepdim=True) + _EPSILON).sqrt()
            difference = (unit[: len(one)] - unit[len(one) :]).square()
            distance = distance + self.get_submodule(f"lin{index}")(difference).mean((1, 2, 3))
        return distance


class PerceptualSimilarity:
    """`lpips`."""

    def __init__(self, network: nn.Module) -> None:
        self.network: nn.Module | None = network
        self.mean = LeadMean()

    def __getstate__(self) -> dict[str, object]:
        """What another process merges: the sums."""
        return self.__dict__ | {"network": None}

    @torch.no_grad()
    def update(self, frames: Frames) -> None:
        """Adds frames."""
        whole = frames.measured.all(-1).all(-1).all(-1)  # (B, T)
        place = next(self.network.parameters())
        one, other = (
            part[whole].expand(-1, 3, -1, -1).split(_FRAMES) for part in (frames.clipped, frames.target.clamp(0, 1))
        )
        values = torch.zeros(whole.shape, dtype=torch.float64)
        found = [
            self.network(*(part.to(place) for part in pair)).double().cpu() for pair in zip(one, other, strict=True)
        ]
        if found:
            values[whole] = torch.cat(found)
        self.mean.add(per_lead(values), per_lead(whole))

    def merge(self, other: PerceptualSimilarity) -> None:
        """Adds another's frames."""
        self.mean.merge(other.mean)

    def compute(self) -> dict[str, tuple[Value, list[Value]]]:
        """The one value."""
        return {"lpips": self.mean.compute()}
