"""The models that people would use instead of UniSTD, each called as UniSTD is: `model({task: frames})`."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.peers.simvp import GatedBlock, SimVP, SimVPConfig
from unistd import TaskSpec
from unistd.masks import fill_missing


class Forecaster(nn.Module):
    """A model per task, any parts of which may be shared: frames (B, Tin, C, H, W) by task -> (B, Tout, C, H, W).

    Frames whose sides a model cannot divide are padded below and at the right with their last row and column.
    """

    def __init__(self, specs: Mapping[str, TaskSpec], models: Mapping[str, nn.Module], multiple: Mapping[str, int]):
        super().__init__()
        self.tasks, self.multiple = dict(specs), dict(multiple)
        self.models = nn.ModuleDict(models)

    def forward(self, frames: Tensor | Mapping[str, Tensor], task: str | None = None) -> Any:
        if isinstance(frames, Tensor):
            return self._forecast(task, frames)
        return {name: self._forecast(name, value) for name, value in frames.items()}

    def _forecast(self, task: str, frames: Tensor) -> Tensor:
        spec, side = self.tasks[task], self.multiple[task]
        frames = fill_missing(frames) if spec.missing else frames
        rows, columns = -spec.height % side, -spec.width % side
        padded = F.pad(frames.flatten(0, 1), (0, columns, 0, rows), mode="replicate").unflatten(0, frames.shape[:2])
        return self.models[task](padded)[..., : spec.height, : spec.width]


class Rollout(nn.Module):
    """As OpenSTL has models that give as many frames as they get: the first `frames` of the forecast, and where that is
    too short, the forecast of the forecast behind it."""

    def __init__(self, model: nn.Module, frames: int):
        super().__init__()
        self.model, self.frames = model, frames

    def forward(self, x: Tensor) -> Tensor:
        parts: list[Tensor] = []
        while sum(part.shape[1] for part in parts) < self.frames:
            x = self.model(x)
            parts.append(x)
        return torch.cat(parts, 1)[:, : self.frames]


def simvp(specs: Mapping[str, TaskSpec], spatial: int = 16, temporal: int = 128, blocks: int = 4) -> Forecaster:
    """SimVP-gSTA; of several tasks, the translator is shared and encoder and decoder are each task's own.

    A task's own are also the translator's first block and the projections to and from its width, which depend on the
    number of frames, and the statistics of its normalisations: what is shared are the convolutions of the other blocks.
    With one task this is the published model.
    """
    models = {}
    for name, spec in specs.items():
        depth = 2 if spec.patch == 2 or name == "taxibj" else 4  # as in the published settings of TaxiBJ
        models[name] = SimVP(SimVPConfig(spec.frames_in, spec.channels, spatial, temporal, depth, blocks))
    first = next(iter(models.values()))
    for model in models.values():
        for own, shared in zip(_inner(model), _inner(first), strict=True):
            own.attention, own.mlp, own.scale1, own.scale2 = shared.attention, shared.mlp, shared.scale1, shared.scale2
    multiple = {name: 2 ** (len(model.encoder) // 2) for name, model in models.items()}
    return Forecaster(specs, {name: Rollout(m, specs[name].frames_out) for name, m in models.items()}, multiple)


def _inner(model: SimVP) -> list[GatedBlock]:
    """The translator's blocks but the first."""
    return [layer for layer in model.translator.layers if isinstance(layer, GatedBlock)][1:]


class ConvLSTM(nn.Module):
    """Frames (B, Tin, C, H, W) -> (B, Tout, C, H, W), one after the other, each from the one before (Shi et al. 2015,
    arXiv 1506.04214): layers of convolutional LSTM cells on patches, as OpenSTL's ConvLSTM-S has them."""

    def __init__(self, spec: TaskSpec, hidden: int = 64, layers: int = 2, kernel: int = 5):
        super().__init__()
        self.patch, self.frames_out = spec.patch, spec.frames_out
        channels = spec.channels * self.patch**2
        widths = [channels] + [hidden] * layers
        self.cells = nn.ModuleList(
            nn.Conv2d(width + hidden, 4 * hidden, kernel, padding=kernel // 2) for width in widths[:-1]
        )
        self.readout = nn.Conv2d(hidden, channels, 1)
        self.hidden = hidden

    def forward(self, frames: Tensor) -> Tensor:
        patches = F.pixel_unshuffle(frames, self.patch)  # (B, Tin, C·p², h, w)
        shape = (len(frames), self.hidden, *patches.shape[-2:])
        states = [(frames.new_zeros(shape), frames.new_zeros(shape)) for _ in self.cells]
        found: list[Tensor] = []
        for step in range(frames.shape[1] + self.frames_out - 1):
            x = patches[:, step] if step < frames.shape[1] else found[-1]
            for layer, cell in enumerate(self.cells):
                x, states[layer] = self._advance(cell, x, *states[layer])
            if step >= frames.shape[1] - 1:
                found.append(self.readout(x))
        return F.pixel_shuffle(torch.stack(found, 1), self.patch)

    @staticmethod
    def _advance(cell: nn.Conv2d, x: Tensor, hidden: Tensor, memory: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        enter, forget, leave, value = cell(torch.cat([x, hidden], 1)).chunk(4, 1)
        memory = torch.sigmoid(forget + 1) * memory + torch.sigmoid(enter) * torch.tanh(value)
        hidden = torch.sigmoid(leave) * torch.tanh(memory)
        return hidden, (hidden, memory)


def conv_lstm(specs: Mapping[str, TaskSpec]) -> Forecaster:
    """A ConvLSTM for each task."""
    return Forecaster(
        specs,
        {name: ConvLSTM(spec) for name, spec in specs.items()},
        {name: spec.patch for name, spec in specs.items()},
    )
