"""Counters for kernels whose programs wait for each other: int32, 0 before a launch and, by its own doing, after it."""

import torch
from torch import Tensor

_CHUNK = 1 << 20  # counters (4 MB) set aside for launches that are captured in CUDA graphs
_by_stream: dict[tuple[torch.device, int], Tensor] = {}
_set_aside: dict[torch.device, Tensor] = {}  # what is left of the current chunk
_handed_out: list[Tensor] = []  # a graph does not keep the memory alive that it was captured with


def flags(count: int, device: torch.device) -> Tensor:
    """At least ``count`` zeros that no launch running at the same time uses.

    Launches on one stream follow each other and share. A captured launch may be replayed beside any other, so it owns
    its counters for good; they are zeroed outside of the capture, so that the graph holds the launch and nothing else.
    """
    if device.type != "cuda":
        return _shared(count, device, 0)
    if torch.cuda.is_current_stream_capturing():
        return _owned(count, device)
    left = _set_aside.get(device)
    if left is None or left.numel() < _CHUNK // 2:
        _set_aside[device] = torch.zeros(_CHUNK, dtype=torch.int32, device=device)
    return _shared(count, device, torch._C._cuda_getCurrentRawStream(device.index))


def _shared(count: int, device: torch.device, stream: int) -> Tensor:
    found = _by_stream.get((device, stream))
    if found is None or found.numel() < count:
        found = torch.zeros(max(count, 4096), dtype=torch.int32, device=device)
        _by_stream[device, stream] = found
    return found


def _owned(count: int, device: torch.device) -> Tensor:
    left = _set_aside.get(device)
    if left is None or left.numel() < count:  # no eager launch before the capture: the graph gets a second node
        return torch.zeros(count, dtype=torch.int32, device=device)
    own, _set_aside[device] = left[:count], left[-(-count // 32) * 32 :]
    _handed_out.append(own)
    return own
