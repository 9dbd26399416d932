"""Counters for kernels whose programs wait for each other: int32, 0 before a launch and, by its own doing, after it."""

import torch
from torch import Tensor

_CHUNK = 1 << 20  # int32 elements handed out to captured launches, 4 MB a device
_by_stream: dict[tuple[torch.device, int], Tensor] = {}
_for_graphs: dict[torch.device, tuple[Tensor, int]] = {}


def flags(count: int, device: torch.device) -> Tensor:
    """At least ``count`` zeros that no launch running at the same time uses.

    Launches on one stream follow each other and share. A launch captured in a CUDA graph may be replayed beside any
    other, so it owns its counters.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return _owned(count, device)
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    found = _by_stream.get((device, stream))
    if found is None or found.numel() < count:
        found = torch.zeros(max(count, 4096), dtype=torch.int32, device=device)
        _by_stream[device, stream] = found
        reserve(device)
    return found


def reserve(device: torch.device) -> None:
    """Zeros for later captures, made outside of any: a captured launch then needs no second node to clear its own."""
    if device.type == "cuda" and device not in _for_graphs:
        _for_graphs[device] = torch.zeros(_CHUNK, dtype=torch.int32, device=device), 0


def _owned(count: int, device: torch.device) -> Tensor:
    chunk, used = _for_graphs.get(device, (None, _CHUNK))
    end = used + -(-count // 32) * 32
    if chunk is None or end > chunk.numel():
        return torch.zeros(count, dtype=torch.int32, device=device)
    _for_graphs[device] = chunk, end
    return chunk[used:end]
