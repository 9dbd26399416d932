"""A plan on trial: random numbers in the geometry of the call and a few rows, against "packed" in float64."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .._signature import BackwardOperands, ForwardOperands
from ..dropout import dropout_scale
from . import packed, triton
from ._flags import flags
from ._launch import on_device
from ._plan import Geometry, Plan

FORWARD = ("y", "low-rank product", "gates")
BACKWARD = tuple(f"gradient of {n}" for n in ("x", "weight", "bias", "A", "B", "diag", "gates", "router_weight"))
DRAWS = 8
_CANDIDATES = 8  # rows to choose each row from where a router has to be sure of its choice


class Use(NamedTuple):
    """What a verdict is about: plans, and all else that decides which code runs."""

    direction: str  # "forward" or "backward"
    device: torch.device
    dtype: torch.dtype
    geometry: Geometry
    plans: tuple[Plan, ...]  # of `forward`, or of `grad_input` and `grad_weight`
    wanted: tuple[bool, ...]  # forward: (is there a bias,); backward: `needs`


class _Broken(Exception):
    """The plan does not run, or what it leaves needs no second look."""


@torch.no_grad()
def fault(use: Use) -> str | None:
    """None where the plan is right, else in a few words what is wrong.

    Right is, of every result and gradient, an error of at most twice that of "packed" in the same dtype, both against
    float64, and of a rounding; of the whole (the 2-norm) and of the worst element. One draw of rounding errors says
    little of a gradient of two numbers, so what fails with one is tried with eight. Raises what "packed" raises, and
    where memory runs out.
    """
    device = use.device
    with torch.autocast(device.type, enabled=False), on_device(torch.empty(0, device=device)):
        try:
            return _difference(use, 1) and _difference(use, DRAWS)
        except _Broken as broken:
            with suppress(RuntimeError):  # the GPU itself may be out of order
                flags(1, device).zero_()  # all of the stream's: what the launch left there would upset the next one
            return str(broken)


def _difference(use: Use, draws: int) -> str | None:
    """The first result that is off."""
    by_name = zip(*(_results(use, number) for number in range(draws)), strict=True)
    for name, drawn in zip(FORWARD if use.direction == "forward" else BACKWARD, by_name, strict=True):
        if drawn[0] is not None:
            exact, plain, *got = (torch.stack(parts).double().flatten() for parts in zip(*drawn, strict=True))
            for result in got:
                if plain.isfinite().all() and not result.isfinite().all():
                    raise _Broken(f"{name}: not finite")
                if off := _off(result, plain, exact, use.dtype):
                    return f"{name}: {off}"
    return None


def _off(got: Tensor, plain: Tensor, exact: Tensor, dtype: torch.dtype) -> str | None:
    """By how much, if by more than `fault` allows."""
    rounding = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
    for kind, order in (("error", 2), ("largest error", float("inf"))):
        vectors = got - exact, plain - exact, exact
        error, of_plain, size = (torch.linalg.vector_norm(vector, order).item() for vector in vectors)
        allowed = 2 * of_plain + rounding * size + 1e-6
        if not error <= allowed:  # NaN is not
            return f"{kind} {error:.2g}, allowed {allowed:.2g}"
    return None


def _results(use: Use, number: int) -> list[tuple[Tensor, ...] | None]:
    """Each result (exact, by "packed" in the dtype, by the plan, by the plan again), None where it is not wanted."""
    operands, grad_y = _draw(use, number)
    exact: tuple[Tensor | None, ...]
    plain: tuple[Tensor | None, ...]
    launch: Callable[..., tuple[Tensor | None, ...]]
    wanted: tuple[bool, ...]
    if use.direction == "forward":
        exact, plain = packed.forward(*_in_float64(operands)), packed.forward(*operands)
        launch = partial(triton.run_forward, use.geometry, use.plans[0], *operands)
        wanted = True, True, use.geometry.routed
    else:
        inputs = _backward_inputs(use, operands, grad_y)
        exact = packed.backward(*_backward_inputs(use, _in_float64(operands), grad_y.double()))
        plain = packed.backward(*inputs)
        launch = partial(triton.run_backward, use.geometry, use.plans[0], use.plans[1], *inputs)
        wanted = use.wanted
    # The second time with so few programs that each has several tasks, as in a large call.
    got = [_launched(launch, plain, use.device, processors) for processors in (None, 2)]
    parts = zip(exact, plain, *got, strict=True)
    return [part if is_wanted else None for part, is_wanted in zip(parts, wanted, strict=True)]


def _launched(
    launch: Callable[..., tuple[Tensor | None, ...]],
    plain: tuple[Tensor | None, ...],
    device: torch.device,
    processors: int | None,
) -> tuple[Tensor | None, ...]:
    """What the plan returns. Raises _Broken; what has to do with memory as it is."""
    poison = [torch.full_like(tensor, float("nan")) for tensor in plain if tensor is not None for _ in range(4)]
    _synchronize(device)  # so that what others did wrong before is not laid to the plan
    del poison  # the launch is likely to get this memory, so that what it leaves unwritten shows
    try:
        got = launch(processors=processors)
        _synchronize(device)
        if flags(1, device).any():
            raise _Broken("counters that are not 0 after the launch")
        return got
    except _Broken:
        raise
    except Exception as error:
        if is_about_memory(error):
            raise
        words = str(error).strip().splitlines() or [""]
        raise _Broken(f"{type(error).__name__}: {words[0][:200]}") from error


def is_about_memory(error: Exception) -> bool:
    """Whether it came for want of memory, torch's or (by its message, since it has no type) Triton's own."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "out of memory" in str(error).lower()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def _in_float64(operands: ForwardOperands) -> ForwardOperands:
    # The type checker sees no order in what a generator gives.
    return tuple(v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for v in operands)  # type: ignore[return-value]


def _backward_inputs(use: Use, operands: ForwardOperands, grad_y: Tensor) -> BackwardOperands:
    """`backward`'s, with what "packed" keeps of the forward pass."""
    x, weight, _, lora_A, lora_B, diag, gates, router_weight, columns, _, scaling, dropout, seed = operands
    _, low_rank, routed = packed.forward(*operands)
    gates = routed if gates is None else gates
    saved = grad_y, x, weight, lora_A, lora_B, diag, gates, router_weight, columns, low_rank
    return *saved, scaling, dropout, seed, list(use.wanted)


def _draw(use: Use, number: int) -> tuple[ForwardOperands, Tensor]:
    """`forward`'s operands and the gradient of y, from a generator of its own."""
    g, device, dtype = use.geometry, use.device, use.dtype
    adapter = torch.float32 if g.master else dtype
    generator = torch.Generator(device).manual_seed(number)
    s, e, r = g.splits, g.experts, g.max_rank
    rows = _rows(use)

    def normal(*shape: int, dtype: torch.dtype = dtype, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype, device=device).mul_(scale)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float32, device=device)

    weight, lora_A = normal(g.n, g.k, scale=g.k**-0.5), normal(s, e, r, g.k, dtype=adapter, scale=g.k**-0.5)
    lora_B = normal(s, e, g.split_n, r, dtype=adapter)
    bias = normal(g.n) if use.direction == "forward" and use.wanted[0] else None
    router_weight = normal(s * e, g.k, dtype=adapter, scale=g.k**-0.5) if g.routed else None
    gates = None if g.routed else uniform(rows, s, e)
    diag = (uniform(s, e) + 1) * (r / 2) if g.ranks else uniform(s, e, r)
    columns = _columns(uniform(s, e * r), g.columns) if g.compact else None
    dropout, seed = (0.3, torch.tensor(1 << 40 | number, device=device)) if g.dropout else (0.0, None)
    top_k = max(1, e // 2) if g.top_k else 0
    x, grad_y = normal(rows, g.k), normal(rows, g.n)
    if top_k and router_weight is not None:
        factor = dropout_scale(x, dropout, seed) if dropout else 1
        x = _decided(normal(_CANDIDATES, rows, g.k), factor, router_weight, s, top_k)
    if not g.aligned:
        weight, x, grad_y = (_off_by_one(tensor) for tensor in (weight, x, grad_y))
    return (x, weight, bias, lora_A, lora_B, diag, gates, router_weight, columns, top_k, 0.75, dropout, seed), grad_y


def _rows(use: Use) -> int:
    """Whole tiles and a ragged one, also of the token axis where it is split."""
    whole = 2 * use.plans[0].bm
    return 13 + (whole if use.direction == "forward" else max(whole, 4 * use.plans[1].bk))


def _columns(order: Tensor, width: int) -> Tensor:
    """A table (S, width) of active columns out of `order`'s (S, E*R), the last place of the last split padded."""
    chosen = order.argsort(dim=1)[:, :width].sort(dim=1).values
    table = order.new_full((order.shape[0], width), -1, dtype=torch.int32)
    table[:, : chosen.shape[1]] = chosen
    if width > 1:
        table[-1, -1] = -1
    return table


def _decided(x: Tensor, factor: Tensor | float, router_weight: Tensor, splits: int, top_k: int) -> Tensor:
    """Of x (candidates, M, K), for each row the one whose `top_k` gates are the least in doubt: (M, K)."""
    logits = ((x * factor).float() @ router_weight.float().T).unflatten(-1, (splits, -1))
    ordered = logits.sort(dim=-1, descending=True).values
    margin = (ordered[..., top_k - 1] - ordered[..., top_k]).amin(-1)  # (candidates, M)
    return x[margin.argmax(0), torch.arange(x.shape[1], device=x.device)]


def _off_by_one(tensor: Tensor) -> Tensor:
    """The same, no longer at a multiple of 16 bytes."""
    return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view_as(tensor)
