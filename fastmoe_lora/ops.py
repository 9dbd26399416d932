"""The registered operators, one per direction: opaque to torch.compile, known to autograd.

Shapes: M tokens, K = in_features, N = out_features, S splits, E experts, R maximal rank, P computed columns a split.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.overrides import has_torch_function

from . import _operands, backends
from ._signature import BackwardInputs, ForwardInputs, ForwardResults

_LIBRARY = torch.library.Library("fastmoe_lora", "DEF")
_LIBRARY.define(
    "ramoe_forward(Tensor x, Tensor weight, Tensor? bias, Tensor lora_A, Tensor lora_B, Tensor diag, Tensor? gates, "
    "Tensor? router_weight, Tensor? columns, int top_k, float scaling, float dropout, Tensor? seed, str backend) "
    "-> (Tensor y, Tensor low_rank, Tensor gates_out)"
)
_LIBRARY.define(
    "ramoe_backward(Tensor grad_y, Tensor x, Tensor weight, Tensor lora_A, Tensor lora_B, Tensor diag, Tensor gates, "
    "Tensor? router_weight, Tensor? columns, Tensor low_rank, float scaling, float dropout, Tensor? seed, "
    "bool[] needs, str backend) -> Tensor[]"
)
# ramoe_forward's inputs, and the first of them that have gradients: x ... router_weight.
_INPUTS: Final = 14
_DIFFERENTIABLE: Final = 8
_ORDINARY = (Tensor, Parameter, type(None))
_OF_COMPILERS = ("FakeTensor", "FunctionalTensor")  # tensor subclasses that stand for ordinary tensors


def linear(*inputs: *ForwardInputs) -> Tensor:
    """y of the operator, its arguments as of ``ramoe_forward``.

    Ordinary tensors in eager mode do not go through the dispatcher, which would only call back what is called here: a
    way through it costs as much as a launch, and several times that where a large product has just emptied the caches.
    """
    if not _is_ordinary(inputs):
        y: Tensor = ramoe_forward(*inputs)[0]
        return y
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs[:_DIFFERENTIABLE]):
        y = _apply(_forward, *inputs)[0]  # type: ignore[no-untyped-call] # of torch
        return y
    return _forward(*inputs)[0]


def is_eager(tensors: tuple[Any, ...]) -> bool:
    """Whether nobody needs to see the operator: no compiler, no mode, and nothing of what `decomposes` looks for."""
    return (
        not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_tracing_state() is None
        and forward_ad._current_level < 0
        and not has_torch_function(tensors)
    )


def decomposes(*tensors: Tensor | None) -> bool:
    """Whether PyTorch's own operations are wanted, none of ours: by what writes them down (torch.export,
    torch.jit.trace), transforms them (torch.func), differentiates them forward, or gives them a meaning of its own (a
    tensor subclass)."""
    return (
        _is_exported_or_transformed()
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call] # torch has it without types
        or forward_ad._current_level >= 0
        or any(type(t) not in _ORDINARY and type(t).__name__ not in _OF_COMPILERS for t in tensors)
    )


def _is_exported_or_transformed() -> bool:
    """Whether torch.export is at work, or this is the body of a function that torch.func transforms."""
    return torch.compiler.is_exporting() or torch._C._functorch.peek_interpreter_stack() is not None


# The answer at the time of tracing; torch.compile guards the transforms. The compiler of torch 2.11, asked itself, says
# that it exports whenever it compiles.
_is_exported_or_transformed._dynamo_marked_constant = True  # type: ignore[attr-defined] # how torch marks them


def is_autocast(device_type: str) -> bool:
    """Whether autocast is on for a kind of device; there are kinds (meta) that it does not know."""
    return device_type != "meta" and torch.is_autocast_enabled(device_type)


def _is_ordinary(inputs: tuple[Any, ...]) -> bool:
    """Whether, besides, no argument is a tensor subclass."""
    tensors = inputs[:_DIFFERENTIABLE]
    return is_eager(tensors) and all(type(t) in _ORDINARY for t in tensors)


def _forward(*inputs: *ForwardInputs) -> ForwardResults:
    results: ForwardResults = _module(inputs[-1], inputs[1]).forward(*inputs[:-1])
    return results


def _backward(*inputs: *BackwardInputs) -> list[Tensor]:
    """Gradients in the order of the forward's inputs; an empty tensor where ``needs`` is False."""
    operands, backend = inputs[:-1], inputs[-1]
    _operands.check_backward(operands, masters=backend == "cpu")  # a saved tensor may have been given other data
    gradients = _module(backend, operands[2]).backward(*operands)
    grad_y, needs = operands[0], operands[-1]
    return [g.contiguous() if need else grad_y.new_empty(0) for g, need in zip(gradients, needs, strict=True)]


def _module(backend: str, weight: Tensor) -> ModuleType:
    """The backend's, but "packed" for a weight without numbers, which is not worth a kernel."""
    return backends.load(backend if weight.numel() else "packed")


def _checked_forward(*inputs: *ForwardInputs) -> ForwardResults:
    _check_forward(*inputs)
    return _forward(*inputs)


def _checked_backward(*inputs: *BackwardInputs) -> list[Tensor]:
    backends.check_operator(inputs[-1])
    return _backward(*inputs)


def _check_forward(*inputs: *ForwardInputs) -> None:
    backends.check_operator(inputs[-1])
    _operands.check_forward(inputs[:-1], masters=inputs[-1] == "cpu")


def _forward_fake(*inputs: *ForwardInputs) -> ForwardResults:
    _check_forward(*inputs)
    x, weight, _, lora_A, _, diag, _, router_weight, columns, *_ = inputs
    splits, experts, max_rank, _ = lora_A.shape
    tokens = x.shape[0]
    width = experts * max_rank if columns is None else columns.shape[1]
    gates_out = diag.new_empty(0) if router_weight is None else diag.new_empty(tokens, splits, experts)
    return x.new_empty(tokens, weight.shape[0]), x.new_empty(tokens, splits, width), gates_out


def _backward_fake(*inputs: *BackwardInputs) -> list[Tensor]:
    backends.check_operator(inputs[-1])
    _operands.check_backward(inputs[:-1], masters=inputs[-1] == "cpu")
    grad_y, x, weight, lora_A, lora_B, diag, gates, router_weight, _, _, _, _, _, needs, _ = inputs
    bias = weight.new_empty(weight.shape[0])
    sources = (x, weight, bias, lora_A, lora_B, diag, gates, router_weight)
    return [
        source.new_empty(source.shape) if need and source is not None else grad_y.new_empty(0)
        for source, need in zip(sources, needs, strict=True)
    ]


class _Differentiable(torch.autograd.Function):
    """The forward operator with the backward operator as its gradient.

    Registered by hand below the autograd key: torch.library.register_autograd does the same for ten times the Python
    time per call, which at small token counts is more than the work itself.
    """

    @staticmethod
    def forward(ctx: Any, run: Callable[[*ForwardInputs], ForwardResults], *inputs: *ForwardInputs) -> ForwardResults:
        (x, weight, _, lora_A, lora_B, diag, gates, router_weight, columns, _, scaling, dropout, seed, backend) = inputs
        y, low_rank, gates_out = run(*inputs)
        ctx.mark_non_differentiable(low_rank, gates_out)
        ctx.set_materialize_grads(False)
        gates = gates_out if gates is None else gates
        ctx.save_for_backward(x, weight, lora_A, lora_B, diag, gates, router_weight, columns, low_rank, seed)
        ctx.scaling, ctx.dropout, ctx.backend = scaling, dropout, backend
        return y, low_rank, gates_out

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_y is None:
            return (None,) * (1 + _INPUTS)
        if torch.is_grad_enabled():
            raise NotImplementedError("create_graph=True: only backend 'reference' has second derivatives")
        *operands, low_rank, seed = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[1 : 1 + _DIFFERENTIABLE])
        options = (ctx.scaling, ctx.dropout, seed, needs, ctx.backend)
        inputs = (_operands.plain(grad_y), *operands, low_rank, *options)
        gradients = _backward(*inputs) if _is_ordinary(inputs) else _ramoe_backward(*inputs)
        gradients = [g if need else None for g, need in zip(gradients, needs, strict=True)]
        return (None, *gradients, *[None] * (_INPUTS - _DIFFERENTIABLE))


# What Function.apply does once it has looked through all arguments for function transforms; for calls without any.
_apply = super(torch.autograd.Function, _Differentiable).apply


def _below_autograd(*inputs: *ForwardInputs) -> ForwardResults:
    with torch._C._AutoDispatchBelowAutograd():
        results: ForwardResults = ramoe_forward(*inputs)
        return results


def _forward_autograd(*inputs: *ForwardInputs) -> ForwardResults:
    if not torch.is_grad_enabled():
        return _below_autograd(*inputs)
    results: ForwardResults = _Differentiable.apply(_below_autograd, *inputs)  # type: ignore[no-untyped-call] # of torch
    return results


for _name, _kernel, _fake in (
    ("ramoe_forward", _checked_forward, _forward_fake),
    ("ramoe_backward", _checked_backward, _backward_fake),
):
    _LIBRARY.impl(_name, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastmoe_lora::{_name}", _fake, lib=_LIBRARY)
_LIBRARY.impl("ramoe_forward", _forward_autograd, "Autograd")
ramoe_forward = torch.ops.fastmoe_lora.ramoe_forward.default
_ramoe_backward = torch.ops.fastmoe_lora.ramoe_backward.default
