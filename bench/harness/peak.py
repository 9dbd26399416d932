"""Memory: what a call keeps for its backward pass, and how far it raises the peak while it runs."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

MB = 1e6


def kept_for_backward(function: Callable[[], object], given: list[Tensor]) -> float:
    """MB of the tensors that autograd saves in ``function`` until its backward pass, each storage once.

    Storages of ``given`` (input and parameters) do not count: they are there anyway.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in given}
    kept: dict[int, int] = {}
    alive = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(storage)  # or its address could be given out again and be counted as the same
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = function()
    del result
    return sum(kept.values()) / MB


def peak_rise(function: Callable[[], object], device: torch.device) -> float:
    """MB by which one call raises the peak above what is in use before it: its temporaries and its result.

    On a GPU by PyTorch's allocator; on a CPU by the resident set of the process (Linux; raises OSError elsewhere),
    which sees scratch memory of libraries too and is exact to about a megabyte.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / MB
    ctypes.CDLL(None).malloc_trim(0)  # or freed memory that is still resident would hide what is used again
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _status("VmRSS")
    result = function()
    peak = _status("VmHWM")
    del result
    return max(0.0, peak - before)


def _status(key: str) -> float:
    """A value of /proc/self/status, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024 / MB
    raise OSError(f"/proc/self/status has no {key}")
