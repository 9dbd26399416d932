"""The layer as a function: arguments checked, precision settled, then one operator call."""

import math
from typing import overload

import torch
from torch import Tensor

from . import _operands, backends, ops
from ._signature import CallOperands, ForwardOperands
from ._tracing import sizes
from .backends import packed, reference

# What PyTorch differentiates itself, operation by operation; the backends beside them are operators.
_DEFINITIONS = {"reference": reference.linear, "decomposed": packed.linear}


def ramoe_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    diag: Tensor,
    *,
    gates: Tensor | None = None,
    router_weight: Tensor | None = None,
    columns: Tensor | None = None,
    top_k: int | None = None,
    scaling: float = 1.0,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """A linear layer with routed low-rank experts of adjustable rank (RA-MoE; UniSTD, arXiv 2503.20748).

    For each split s of the output,
    ``y = x W^T + b + scaling * sum_e g[s, e] * B[s, e] diag(d[s, e]) A[s, e] x~``, with ``x~ = dropout(x)``.

    Args:
        x: (..., K), the compute dtype: bfloat16, float16, float32 or (plain PyTorch backends) float64.
        weight, bias: (N, K) and (N,) or None, in x's dtype; under autocast all three are cast to the autocast dtype.
        lora_A, lora_B: (S, E, R, K) and (S, E, N/S, R), in x's dtype or in float32 (master weights, rounded at use).
        diag: the rank diagonal (S, E, R), or continuous ranks (S, E) in [0, R], whose linear interpolation is taken;
            float32 (float64 with float64 x).
        gates: (..., S, E), leading shape broadcastable to x's: gates per token, per sample or per task.
        router_weight: (S*E, K), for gates ``softmax(x~ W_g^T)`` over the experts of a split, in float32.
        columns: (S, P) int32, the active columns ``e*R + k`` of each split, each once, -1 where padded; all others
            count as off.
        top_k: keep the largest ``top_k`` gates of the router, renormalised.
        dropout, seed: rate in [0, 1), and the 0-d int64 seed of the counter-based mask (`fastmoe_lora.dropout`).
        backend: "auto" or a name of `backends()`.

    Returns (..., N) in x's dtype. Raises ValueError or TypeError naming the argument, what it got and what it wants.
    """
    _operands.check_tensor("x", x)
    device_type = x.device.type
    autocast = ops.is_autocast(device_type) and x.dtype != torch.float64
    dtype = torch.get_autocast_dtype(device_type) if autocast else x.dtype
    backend = backends.resolve(backend, x.device, dtype)
    on_cpu = backend == "cpu"
    frozen, adapters, rest = (weight, bias), (lora_A, lora_B), (columns, top_k, scaling, dropout, seed)
    operands = (x, *frozen, *adapters, diag, gates, router_weight, *rest)
    if on_cpu and ops.is_eager(operands) and not _has_truths(top_k, scaling, dropout):
        compiled = backends.load("cpu").ramoe_linear
        try:
            y: Tensor | None = compiled(x, dtype, autocast, *operands[1:])
        except (RuntimeError, TypeError):
            _operands.check_call(operands, autocast)  # names an argument that is no tensor or number
            raise
        except OverflowError:  # a whole number that C++ has no room for
            y = None
        if y is not None:
            return y
    _operands.check_call(operands, autocast)
    if ops.decomposes(*operands[:7]):
        _operands.check_undistributed(operands[:6])
        backend, on_cpu = "reference" if backend == "reference" else "decomposed", False
    if not autocast:
        return _linear(operands, backend)
    with torch.autocast(x.device.type, enabled=False):
        frozen = _to_master(weight, dtype, on_cpu), _to_master(bias, dtype, on_cpu)
        adapters = _to_master(lora_A, dtype), _to_master(lora_B, dtype)
        return _linear((x.to(dtype), *frozen, *adapters, diag, gates, _to_master(router_weight, dtype), *rest), backend)


def _has_truths(top_k: object, scaling: object, dropout: object) -> bool:
    """Whether one of the numbers is True or False, which C++ would take for 1 or 0."""
    return top_k.__class__ is bool or scaling.__class__ is bool or dropout.__class__ is bool


@overload
def _to_master(parameter: Tensor, dtype: torch.dtype, masters: bool = True) -> Tensor: ...
@overload
def _to_master(parameter: None, dtype: torch.dtype, masters: bool = True) -> None: ...
def _to_master(parameter: Tensor | None, dtype: torch.dtype, masters: bool = True) -> Tensor | None:
    """Under autocast adapters stay float32, and so does the weight where it is rounded when it is packed, once
    (``masters``: the "cpu" backend); everything else is cast along with x."""
    if parameter is None or (masters and parameter.dtype == torch.float32):
        return parameter
    return parameter.to(dtype)


def _linear(operands: CallOperands, backend: str) -> Tensor:
    x, weight, bias, lora_A, lora_B, diag, gates, router_weight, columns, top_k, scaling, dropout, seed = operands
    precision = torch.promote_types(x.dtype, torch.float32)
    splits, experts = sizes(lora_A)[:2]
    leading = x.shape[:-1]
    tokens = math.prod(leading)
    if gates is not None:
        gates = gates.expand(*leading, splits, experts).reshape(tokens, splits, experts).to(precision)
    plain = _operands.plain
    arguments: ForwardOperands = (
        plain(x.reshape(tokens, x.shape[-1])),
        plain(weight),
        plain(bias),
        plain(lora_A),
        plain(lora_B),
        plain(diag.to(precision)),
        plain(gates),
        plain(router_weight),
        plain(columns),
        top_k if top_k and top_k < experts else 0,
        float(scaling),
        float(dropout),
        seed if dropout > 0 else None,
    )
    y = _DEFINITIONS[backend](*arguments) if backend in _DEFINITIONS else ops.linear(*arguments, backend)
    return y.reshape(*leading, weight.shape[0]) if len(leading) != 1 else y
