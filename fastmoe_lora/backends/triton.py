"""The Triton kernels (kernels/triton): NVIDIA and AMD GPUs; on CPU tensors only under TRITON_INTERPRET=1, for tests."""

from importlib.util import find_spec

import torch
from torch import Tensor

from . import _plan
from ._flags import flags
from ._launch import (
    INTERPRETED,
    check,
    described,
    device_name,
    geometry_of,
    multiprocessors,
    threshold_bits,
)


def available() -> bool | str:
    """True, or why the kernels cannot run here."""
    if find_spec("triton") is None:
        return "triton is not installed"
    if INTERPRETED or torch.cuda.is_available():
        return True
    return "no CUDA or ROCm device"


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
    """(y (M, N), low-rank product (M, S, P), gates (M, S, E)), in one launch."""
    geometry = geometry_of(weight, lora_A, diag, router_weight, columns, top_k, dropout)
    plan = _plan.choose("forward", device_name(x.device), geometry, x.shape[0])
    return run_forward(
        geometry,
        plan,
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
    )


def run_forward(
    geometry: _plan.Geometry,
    plan: _plan.Plan,
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
    """`forward` with a plan of the caller's choice."""
    from ..kernels.triton import forward as kernels
    from ..kernels.triton import recompute

    check(x)
    tokens = x.shape[0]
    y = x.new_empty(tokens, geometry.n)
    low_rank = x.new_empty(tokens, geometry.splits, geometry.columns)
    no_gates = diag.new_empty(0)
    if router_weight is not None:
        gates = diag.new_empty(tokens, geometry.splits, geometry.experts)
    returned = y, low_rank, gates if router_weight is not None else no_gates
    if tokens == 0:
        return returned
    constants = _plan.forward_constants(geometry, plan)
    options = {"num_warps": plan.warps, "num_stages": plan.stages}
    operands = bias, lora_A, lora_B, diag, gates, router_weight, columns, seed
    scalars = tokens, top_k, scaling, threshold_bits(dropout), 1 / (1 - dropout)
    if plan.mode == "recompute":
        grid = (_plan.tiles(geometry, plan, tokens),)
        recompute.recompute[grid](x, weight, *operands, y, low_rank, *scalars, **constants, **options)
        return returned
    packed = geometry.n * geometry.padded if geometry.packs else 0
    workspace = x.new_empty(tokens * geometry.splits * geometry.padded + packed)
    counters = flags(_plan.flag_count(plan, tokens), x.device)
    source = described(x, plan.bm, plan.bk, plan.tma)
    base = described(weight, plan.bn, plan.bk, plan.tma)
    target = described(y, plan.bm, plan.bn, plan.tma)
    grid = (min(_plan.forward_tasks(geometry, plan, tokens), multiprocessors(x.device) * plan.per_sm),)
    for phases in _plan.launches(plan):
        kernels.forward[grid](
            source, base, *operands, target, low_rank, workspace, counters, *scalars, **constants, **phases, **options
        )
    return returned
