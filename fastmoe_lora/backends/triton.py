"""The Triton kernels (kernels/triton): NVIDIA and AMD GPUs; on CPU tensors only under TRITON_INTERPRET=1, for tests.

"auto" takes them by way of `checked`: at the first use of a plan on a device a few rows are compared with "packed",
which takes the plan's place, with a warning, where they differ. Asked for by name, "triton" is taken at its word.
"""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from .._signature import BackwardOperands
from . import _plan
from ._flags import flags
from ._launch import (
    INTERPRETED,
    Launcher,
    check,
    described,
    device_name,
    geometry_of,
    multiprocessors,
    on_device,
    threshold_bits,
    types_of,
)

if find_spec("triton") is not None:
    # Device code in kernels/triton, of this package once it is installed.
    from ..kernels.triton import forward as forward_kernels  # type: ignore[import-not-found]
    from ..kernels.triton import grad_input, grad_weight, recompute, reduce


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
    geometry, plan = forward_plan(x, weight, lora_A, diag, router_weight, columns, top_k, dropout)
    operands = bias, lora_A, lora_B, diag, gates, router_weight, columns
    with on_device(x):
        return run_forward(geometry, plan, x, weight, *operands, top_k, scaling, dropout, seed)


def forward_plan(
    x: Tensor,
    weight: Tensor,
    lora_A: Tensor,
    diag: Tensor,
    router_weight: Tensor | None,
    columns: Tensor | None,
    top_k: int,
    dropout: float,
) -> tuple[_plan.Geometry, _plan.Plan]:
    """What `forward` runs with."""
    geometry = geometry_of(weight, lora_A, diag, router_weight, columns, top_k, dropout, x)
    return geometry, _plan.choose("forward", device_name(x.device), geometry, x.shape[0])


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
    processors: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`forward` with a plan of the caller's choice. processors: how many a queue's programs fill; None: all."""
    check(x)
    tokens = x.shape[0]
    y = x.new_empty(tokens, geometry.n)
    low_rank = x.new_empty(tokens, geometry.splits, geometry.columns)
    routed = diag.new_empty(0)  # no gates
    if router_weight is not None:
        gates = routed = diag.new_empty(tokens, geometry.splits, geometry.experts)
    returned = y, low_rank, routed
    if tokens == 0:
        return returned
    launchers = _forward_launchers(geometry, plan)
    work = _plan.forward_work(geometry, plan, tokens, processors or multiprocessors(x.device))
    operands = bias, lora_A, lora_B, diag, gates, router_weight, columns, seed
    types = types_of(geometry, x, *operands)
    scalars = tokens, top_k, float(scaling), threshold_bits(dropout), 1 / (1 - dropout)
    if plan.mode == "recompute":
        launchers[0](work.programs, types, x, weight, *operands, y, low_rank, *scalars)
        return returned
    workspace = x.new_empty(work.workspace)
    counters = flags(work.counters, x.device)
    source = described(x, plan.bm, plan.bk, plan.tma)
    base = described(weight, plan.bn, plan.bk, plan.tma)
    target = described(y, plan.bm, plan.bn // 2, plan.tma)
    for launch in launchers:
        launch(work.programs, types, source, base, *operands, target, low_rank, workspace, counters, *scalars)
    return returned


@cache
def _forward_launchers(geometry: _plan.Geometry, plan: _plan.Plan) -> tuple[Launcher, ...]:
    constants = _plan.forward_constants(geometry, plan)
    if plan.mode == "recompute":
        return (Launcher(recompute.recompute, constants, plan.options),)
    return tuple(Launcher(forward_kernels.forward, constants | phases, plan.options) for phases in _plan.launches(plan))


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
    """Gradients of (x, weight, bias, lora_A, lora_B, diag, gates, router_weight), None where ``needs`` is False.

    Two launches (three with dropout) and a reduction for all but dweight and dbias, which are plain matrix products.
    """
    geometry, input_plan, weight_plan = backward_plans(grad_y, x, weight, lora_A, diag, router_weight, columns, dropout)
    operands: BackwardOperands = (
        grad_y, x, weight, lora_A, lora_B, diag, gates, router_weight, columns, low_rank, scaling, dropout, seed, needs
    )  # fmt: skip
    with on_device(x):
        return run_backward(geometry, input_plan, weight_plan, *operands)


def backward_plans(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    lora_A: Tensor,
    diag: Tensor,
    router_weight: Tensor | None,
    columns: Tensor | None,
    dropout: float,
) -> tuple[_plan.Geometry, _plan.Plan, _plan.Plan]:
    """What `backward` runs with."""
    geometry = geometry_of(weight, lora_A, diag, router_weight, columns, 0, dropout, x, grad_y)
    device, tokens = device_name(x.device), x.shape[0]
    input_plan, weight_plan = (_plan.choose(kind, device, geometry, tokens) for kind in ("grad_input", "grad_weight"))
    return geometry, input_plan, weight_plan


def run_backward(
    geometry: _plan.Geometry,
    input_plan: _plan.Plan,
    weight_plan: _plan.Plan,
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
    processors: int | None = None,
) -> tuple[Tensor | None, ...]:
    """`backward` with plans of the caller's choice. processors: as of `run_forward`."""
    check(x)
    need_x, need_weight, need_bias, need_a, need_b, need_diag, need_gates, need_router = needs
    dx = torch.empty_like(x) if need_x else None
    da = torch.empty_like(lora_A) if need_a else None
    db = torch.empty_like(lora_B) if need_b else None
    ddiag = torch.empty_like(diag) if need_diag else None
    dgates = torch.empty_like(gates) if need_gates else None
    drouter = torch.empty_like(router_weight) if need_router and router_weight is not None else None
    dweight = grad_y.T @ x if need_weight else None
    dbias = grad_y.sum(0) if need_bias else None
    gradients = dx, dweight, dbias, da, db, ddiag, dgates, drouter
    tokens = x.shape[0]
    if tokens == 0:
        for gradient in (da, db, ddiag, drouter):
            if gradient is not None:
                gradient.zero_()
        return gradients
    with_a, with_b = need_a or need_router, need_b
    if not (need_x or with_a or with_b or need_diag or need_gates):
        return gradients

    every = multiprocessors(x.device)
    work = _plan.backward_work(geometry, input_plan, weight_plan, tokens, every, with_a, with_b, need_diag)
    ds, t, packed = _parts(x.new_empty(sum(work.narrow)), work.narrow)
    ddiag_blocks, partial_a, partial_b = _parts(x.new_empty(sum(work.wide), dtype=torch.float32), work.wide)
    types = types_of(geometry, x, lora_A, lora_B, diag, gates, router_weight, columns, low_rank, seed)
    scaling, scalars = float(scaling), (threshold_bits(dropout), 1 / (1 - dropout))

    plan = input_plan
    source = described(grad_y, plan.bm, plan.bk, plan.tma)
    base = described(weight, plan.bk, plan.bn, plan.tma)
    target = described(dx, plan.bm, plan.bn // 2, plan.tma) if dx is not None else None
    counters = flags(work.counters, x.device)
    programs = min(work.input_tasks, (processors or every) * plan.per_sm)
    for launch in _grad_input_launchers(geometry, plan, need_x):
        launch(
            programs, types, source, base, lora_A, lora_B, diag, gates, router_weight, columns, seed, low_rank, target,
            dgates, ds, t, packed, ddiag_blocks, counters, tokens, scaling, *scalars,
        )  # fmt: skip
    if work.weight_programs:
        _grad_weight_launcher(geometry, weight_plan)(
            work.weight_programs, types, x, grad_y, seed, ds, t, partial_a, partial_b, tokens, work.parts, *scalars
        )
    if work.reduce_programs:
        _reduce_launcher(geometry)(
            work.reduce_programs, types, columns, diag, partial_a, partial_b, ddiag_blocks, da, db, drouter, ddiag,
            work.parts, work.blocks,
        )  # fmt: skip
    return gradients


def _parts(memory: Tensor, sizes: tuple[int, ...]) -> list[Tensor | None]:
    """One allocation's parts, None where a part is empty."""
    return [part if size else None for part, size in zip(memory.split(sizes), sizes, strict=True)]


@cache
def _grad_input_launchers(geometry: _plan.Geometry, plan: _plan.Plan, need_x: bool) -> tuple[Launcher, ...]:
    constants = _plan.grad_input_constants(geometry, plan)
    launches = _plan.launches(plan) if need_x else ({"PRODUCE": True, "CONSUME": False},)
    return tuple(Launcher(grad_input.grad_input, constants | phases, plan.options) for phases in launches)


@cache
def _grad_weight_launcher(geometry: _plan.Geometry, plan: _plan.Plan) -> Launcher:
    return Launcher(grad_weight.grad_weight, _plan.grad_weight_constants(geometry, plan), plan.options)


@cache
def _reduce_launcher(geometry: _plan.Geometry) -> Launcher:
    return Launcher(reduce.reduce, _plan.reduce_constants(geometry), {"num_warps": 4})
