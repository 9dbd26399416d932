"""Compiled kernels for CPUs (kernels/cpu): AMX tiles, AVX-512 bfloat16 dot products or float32, chosen at run time.

One parallel pass each way: the low-rank product, gates and diagonal of a block of rows, then base and low-rank product
into one accumulator, bias, and one write of y. The base weight is used packed. A frozen weight is packed once: the copy
is as large as the weight, once more for the backward pass, float32 for float16. It goes with the weight's memory, at
once; with memory that torch has not allocated itself (shared, mapped from a file), when the next weight is packed.

The copy follows the weight: it is made anew when the weight is replaced, moved, or written by any operation of torch's,
which are counted. Writes that pass by the count, through ``weight.data``, ``weight.numpy()`` or a pointer, are followed
if they change whole rows or whole columns, of which every call compares a sample; those that change a few numbers here
and there may not be. After such a write call `clear_cache()`, or do without the copies: `set_caching(False)`, or
FASTMOE_LORA_CPU_CACHE=0 in the environment; then every call packs.

The number of threads is torch's, and for a given number results repeat bit for bit.
"""

import os
from pathlib import Path

import torch
from torch import Tensor

_LIBRARIES = sorted(Path(__file__).parents[1].glob("_cpu*.so"))
if not _LIBRARIES:
    raise ImportError("the compiled CPU kernels (fastmoe_lora/_cpu*.so) were not built with this installation")
try:
    torch.ops.load_library(_LIBRARIES[0])
except OSError as error:
    raise ImportError(f"{_LIBRARIES[0].name} was built for another version of PyTorch: {error}") from error

_kernels = torch.ops.fastmoe_lora_cpu
_forward = _kernels.forward.default
_backward = _kernels.backward.default
linear = _kernels.linear.default  # (x (M, K), weight (N, K), bias (N) or None) -> (M, N)
linear_backward = _kernels.linear_backward.default  # (grad_y (M, N), weight (N, K)) -> (M, K)
# Eager calls of what is ordinary, arguments checked and gradients recorded in C++; None for all else (autograd.h).
ramoe_linear = _kernels.ramoe_linear.default
frozen_linear = _kernels.frozen_linear.default
self_attention = _kernels.self_attention.default


def available() -> bool | str:
    return _kernels.missing() or True


def cached_bytes() -> int:
    """Memory held by packed copies of frozen weights."""
    count: int = _kernels.cached_bytes()
    return count


def clear_cache() -> None:
    """Gives the packed copies back; the next call makes those it needs anew."""
    _kernels.clear_cache()


def set_caching(enabled: bool) -> bool:
    """Whether packed copies of frozen weights are kept; returns what it was. Off, nothing is held between calls."""
    was: bool = _kernels.set_caching(enabled)
    return was


set_caching(os.environ.get("FASTMOE_LORA_CPU_CACHE", "1") != "0")


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    diag: Tensor,
    gates: Tensor | None,
    router_weight: Tensor | None,
    columns: Tensor | None,
    top_k: int,
    scaling: float,
    dropout: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y (M, N), low-rank product (M, S, P), gates (M, S, E)); the last two are what backward needs."""
    results: tuple[Tensor, Tensor, Tensor] = _forward(
        x, weight, bias, lora_A, lora_B, diag, gates, router_weight, columns, top_k, scaling, dropout, seed
    )
    return results


def backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    lora_A: Tensor,
    lora_B: Tensor,
    diag: Tensor,
    gates: Tensor,
    router_weight: Tensor | None,
    columns: Tensor | None,
    low_rank: Tensor,
    scaling: float,
    dropout: float,
    seed: Tensor | None,
    needs: list[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of (x, weight, bias, lora_A, lora_B, diag, gates, router_weight), None where ``needs`` is False."""
    need_x, need_weight, need_bias, *need_adapter = needs
    operands = (x, weight, lora_A, lora_B, diag, gates, router_weight, columns, low_rank)
    dx, *adapter = _backward(grad_y, *operands, scaling, dropout, seed, need_x, *need_adapter)
    dweight = (grad_y.T @ x).to(weight.dtype) if need_weight else None
    dbias = grad_y.sum(0, dtype=weight.dtype) if need_bias else None
    gradients = (dx, dweight, dbias, *adapter)
    return tuple(gradient if need else None for gradient, need in zip(gradients, needs, strict=True))
