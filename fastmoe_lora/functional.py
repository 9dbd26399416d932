"""The layer as a function: arguments checked, precision settled, then one operator call."""

import torch
from torch import Tensor

from . import backends, ops
from .backends import reference


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
        columns: (S, P) int32, the active columns ``e*R + k`` of each split, -1 where padded; all others count as off.
        top_k: keep the largest ``top_k`` gates of the router, renormalised.
        dropout, seed: rate, and the 0-d int64 seed of the counter-based mask (`fastmoe_lora.dropout`).
        backend: "auto" or a name of `backends()`.

    Returns (..., N) in x's dtype. Raises ValueError or TypeError naming the argument, what it got and what it wants.
    """
    autocast = torch.is_autocast_enabled(x.device.type)
    dtype = torch.get_autocast_dtype(x.device.type) if autocast else x.dtype
    backend = backends.resolve(backend, x.device, dtype)
    on_cpu = backend == "cpu"
    frozen, adapters, rest = (weight, bias), (lora_A, lora_B), (columns, top_k, scaling, dropout, seed)
    if on_cpu and ops.is_eager():
        compiled = backends.load("cpu").ramoe_linear
        y = compiled(x, dtype, autocast, *frozen, *adapters, diag, gates, router_weight, *rest)
        if y is not None:
            return y
    if not autocast:
        return _linear(x, *frozen, *adapters, diag, gates, router_weight, *rest, backend)
    with torch.autocast(x.device.type, enabled=False):
        frozen = (_to_master(p, dtype, on_cpu) for p in frozen)
        *adapters, router_weight = (_to_master(p, dtype) for p in (*adapters, router_weight))
        return _linear(x.to(dtype), *frozen, *adapters, diag, gates, router_weight, *rest, backend, on_cpu)


def _to_master(parameter: Tensor | None, dtype: torch.dtype, masters: bool = True) -> Tensor | None:
    """Under autocast adapters stay float32, and so does the weight where it is rounded when it is packed, once
    (``masters``: the "cpu" backend); everything else is cast along with x."""
    if parameter is None or (masters and parameter.dtype == torch.float32):
        return parameter
    return parameter.to(dtype)


def _linear(
    x,
    weight,
    bias,
    lora_A,
    lora_B,
    diag,
    gates,
    router_weight,
    columns,
    top_k,
    scaling,
    dropout,
    seed,
    backend,
    masters=False,
) -> Tensor:
    _check_shapes(x, weight, bias, lora_A, lora_B, diag, router_weight, columns, top_k)
    _check_dtypes(x, weight, bias, lora_A, lora_B, router_weight, columns, masters)
    if dropout > 0:
        _check_seed(seed)
    if (gates is None) == (router_weight is None):
        got = "neither" if gates is None else "both"
        raise ValueError(f"gates, router_weight: got {got}, expected exactly one of them")
    precision = torch.promote_types(x.dtype, torch.float32)
    splits, experts = lora_A.shape[:2]
    if gates is not None:
        gates = _gates_per_token(gates, x, splits, experts).to(precision)
    leading = x.shape[:-1]
    arguments = (
        x.reshape(-1, x.shape[-1]).contiguous(),
        weight.contiguous(),
        bias,
        lora_A.contiguous(),
        lora_B.contiguous(),
        diag.to(precision).contiguous(),
        gates,
        None if router_weight is None else router_weight.contiguous(),
        None if columns is None else columns.contiguous(),
        top_k if top_k and top_k < experts else 0,
        float(scaling),
        float(dropout),
        seed if dropout > 0 else None,
    )
    y = reference.linear(*arguments) if backend == "reference" else ops.linear(*arguments, backend)
    return y.view(*leading, -1) if len(leading) != 1 else y


def _check_shapes(x, weight, bias, lora_A, lora_B, diag, router_weight, columns, top_k) -> None:
    if weight.dim() != 2:
        raise ValueError(f"weight: got shape {tuple(weight.shape)}, expected (out_features, in_features)")
    if lora_A.dim() != 4:
        raise ValueError(f"lora_A: got shape {tuple(lora_A.shape)}, expected (splits, experts, max_rank, in_features)")
    out_features, in_features = weight.shape
    splits, experts, max_rank, _ = lora_A.shape
    if x.shape[-1:] != (in_features,):
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected the last dimension to be {in_features} (weight's)")
    if out_features % splits:
        raise ValueError(f"weight: got {out_features} rows, expected a multiple of lora_A's {splits} splits")
    expected = {
        "lora_A": (lora_A, (splits, experts, max_rank, in_features)),
        "lora_B": (lora_B, (splits, experts, out_features // splits, max_rank)),
        "diag": (diag, (splits, experts, max_rank)[: max(diag.dim(), 2)]),
        "bias": (bias, (out_features,)),
        "router_weight": (router_weight, (splits * experts, in_features)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, expected {shape}")
    if columns is not None and (columns.dim() != 2 or columns.shape[0] != splits):
        raise ValueError(f"columns: got shape {tuple(columns.shape)}, expected ({splits}, active columns of a split)")
    if top_k is not None and not 1 <= top_k <= experts:
        raise ValueError(f"top_k: got {top_k}, expected 1 to {experts} (the number of experts)")


def _check_dtypes(x, weight, bias, lora_A, lora_B, router_weight, columns, masters) -> None:
    if not x.is_floating_point():
        raise TypeError(f"x: got {x.dtype}, expected a floating-point dtype")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != x.dtype and not (masters and tensor.dtype == torch.float32):
            raise TypeError(f"{name}: got {tensor.dtype}, expected x's {x.dtype} (or use autocast)")
    if lora_A.dtype not in (x.dtype, torch.float32):
        raise TypeError(f"lora_A: got {lora_A.dtype}, expected x's {x.dtype} or torch.float32")
    for name, tensor in (("lora_B", lora_B), ("router_weight", router_weight)):
        if tensor is not None and tensor.dtype != lora_A.dtype:
            raise TypeError(f"{name}: got {tensor.dtype}, expected lora_A's {lora_A.dtype}")
    if columns is not None and columns.dtype != torch.int32:
        raise TypeError(f"columns: got {columns.dtype}, expected torch.int32")


def _check_seed(seed: Tensor | None) -> None:
    if seed is None:
        raise ValueError("seed: got None, expected a 0-d int64 tensor since dropout > 0")
    if seed.dtype != torch.int64:
        raise TypeError(f"seed: got {seed.dtype}, expected torch.int64")


def _gates_per_token(gates: Tensor, x: Tensor, splits: int, experts: int) -> Tensor:
    """(..., S, E), broadcast over x's leading shape -> (M, S, E)"""
    full = (*x.shape[:-1], splits, experts)
    try:
        return gates.expand(full).reshape(-1, splits, experts).contiguous()
    except RuntimeError:
        raise ValueError(f"gates: got shape {tuple(gates.shape)}, expected one broadcastable to {full}") from None
