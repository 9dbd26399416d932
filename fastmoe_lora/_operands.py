"""What operands must be before a kernel reads them: one list for every way in that passes through Python.

`check_call` is for arguments as a caller hands them in: any leading shape and strides, autocast. `check_forward` and
`check_backward` are for the registered operators, whose operands are matrices, contiguous and of settled types; their
fake kernels check the same. (kernels/cpu/check.h is the list for what is entered in C++.) Each raises ValueError or
TypeError, one line that begins with the argument's name and says what it got and what was expected.

Shapes: M tokens, K = in_features, N = out_features, S splits, E experts, R maximal rank, P computed columns a split.
"""

import sys
from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils.weak import WeakIdKeyDictionary

from . import _checks
from ._signature import BackwardOperands, ForwardOperands
from ._tracing import untraced

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
CASTABLE = DTYPES[:3]  # what autocast casts
_LARGEST = sys.float_info.max
_NUMBERS = (int, float, torch.SymInt, torch.SymFloat)
_known_columns = WeakIdKeyDictionary()  # table -> (its version, E * R) that its numbers were looked through for


@untraced
def check_call(operands: tuple[Any, ...], autocast: bool) -> None:
    """Arguments of `ramoe_linear`, whatever they are. ``autocast``: x and all parameters will be cast."""
    x, weight, bias, lora_A, lora_B, diag, gates, router_weight, columns, top_k, scaling, dropout, seed = operands
    _check_numbers(top_k, scaling, dropout)
    _check_shapes(x, weight, bias, lora_A, lora_B, diag, router_weight, columns)
    splits, experts, max_rank, _ = lora_A.shape
    if autocast:
        for name, tensor in (("x", x), ("weight", weight), ("bias", bias), ("lora_A", lora_A)):
            if tensor is not None and tensor.dtype not in CASTABLE:
                raise TypeError(f"{name}: got {tensor.dtype}, expected one of {CASTABLE} under autocast")
    else:
        _check_dtypes(x, weight, bias, lora_A, masters=False)
    _check_dtypes_alike(lora_A, lora_B, router_weight)
    _check_choice(gates, router_weight)
    if gates is not None:
        _check_place("gates", gates, x)
        check_dense("gates", gates)
        full = (*x.shape[:-1], splits, experts)
        if not expandable(gates.shape, full):
            raise ValueError(f"gates: got shape {tuple(gates.shape)}, expected one broadcastable to {full}")
    for name, tensor in (("diag", diag), ("gates", gates)):
        if tensor is not None and not tensor.is_floating_point():
            raise TypeError(f"{name}: got {tensor.dtype}, expected a floating-point dtype")
    if top_k is not None and not 1 <= top_k <= experts:
        raise ValueError(f"top_k: got {top_k}, expected 1 to {experts} (the number of experts)")
    _check_randomness(dropout, seed, x)
    _check_columns(columns, experts * max_rank)


def check_forward(operands: ForwardOperands, masters: bool) -> None:
    """Operands of ``ramoe_forward``. ``masters``: weight and bias may be float32 whatever x is."""
    x, _, _, lora_A, _, _, gates, router_weight, _, top_k, scaling, dropout, _ = operands
    _check_matrix("x", x)
    _check_operands(operands, masters)
    _check_numbers(top_k or None, scaling, dropout)
    _check_choice(gates, router_weight)
    experts = lora_A.shape[1]
    if not 0 <= top_k <= experts:
        raise ValueError(f"top_k: got {top_k}, expected 0 (all) to {experts} (the number of experts)")


def check_backward(operands: BackwardOperands, masters: bool) -> None:
    """Operands of ``ramoe_backward``."""
    grad_y, x, weight, lora_A, lora_B, diag, gates, router_weight, columns, low_rank = operands[:10]
    scaling, dropout, seed, needs = operands[10:]
    _check_matrix("x", x)
    _check_operands(
        (x, weight, None, lora_A, lora_B, diag, gates, router_weight, columns, 0, scaling, dropout, seed), masters
    )
    _check_numbers(None, scaling, dropout)
    splits, experts, max_rank, _ = lora_A.shape
    width = experts * max_rank if columns is None else columns.shape[1]
    _check_exact("grad_y", grad_y, (x.shape[0], weight.shape[0]), x.dtype, x)
    _check_exact("low_rank", low_rank, (x.shape[0], splits, width), x.dtype, x)
    if gates is None:
        raise ValueError("gates: got None, expected the gates of the forward pass")
    if len(needs) != 8:
        raise ValueError(f"needs: got {len(needs)} values, expected 8 (x, weight, bias, ..., router_weight)")
    if needs[7] and router_weight is None:
        raise ValueError("router_weight: got None, expected a tensor, since its gradient is asked for")


@untraced
def check_linear(x: Tensor, weight: Tensor, bias: Tensor | None, autocast: bool) -> None:
    """Arguments of `frozen_linear`: those of ``torch.nn.functional.linear`` for a weight of two dimensions."""
    check_dense("x", x)
    _check_place("weight", weight, x)
    check_dense("weight", weight)
    if weight.dim() != 2:
        raise ValueError(f"weight: got shape {tuple(weight.shape)}, expected (out_features, in_features)")
    if x.shape[-1:] != weight.shape[1:]:
        raise ValueError(
            f"x: got shape {tuple(x.shape)}, expected the last dimension to be {weight.shape[1]} (weight's)"
        )
    if bias is not None:
        _check_place("bias", bias, x)
        check_dense("bias", bias)
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"bias: got shape {tuple(bias.shape)}, expected ({weight.shape[0]},)")
    if x.dtype not in DTYPES and not x.is_complex():
        raise TypeError(f"x: got {x.dtype}, expected one of {DTYPES} or a complex dtype")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is None or tensor.dtype == x.dtype or (autocast and {tensor.dtype, x.dtype} <= set(CASTABLE)):
            continue
        raise TypeError(f"{name}: got {tensor.dtype}, expected x's {x.dtype}")


def check_linear_backward(grad_y: Tensor, weight: Tensor) -> None:
    """Operands of ``frozen_linear_backward``."""
    _check_matrix("grad_y", grad_y)
    _check_place("weight", weight, grad_y)
    _check_matrix("weight", weight)
    if grad_y.shape[1] != weight.shape[0]:
        raise ValueError(f"grad_y: got shape {tuple(grad_y.shape)}, expected {weight.shape[0]} columns (weight's rows)")


def check_tensor(name: str, tensor: object) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: got {_checks.shown(tensor)}, expected a tensor")


def check_undistributed(operands: tuple[Tensor | None, ...]) -> None:
    """Of the first six: raises TypeError for a DTensor, since what a layer makes beside its operands is not laid out
    over processes."""
    names = ("x", "weight", "bias", "lora_A", "lora_B", "rank")
    for name, tensor in zip(names, operands, strict=True):
        if hasattr(tensor, "device_mesh"):
            raise TypeError(f"{name}: got a DTensor, expected a plain tensor (FSDP2 gathers those of a layer it wraps)")


@overload
def plain(tensor: Tensor) -> Tensor: ...
@overload
def plain(tensor: None) -> None: ...
def plain(tensor: Tensor | None) -> Tensor | None:
    """As operators take it: contiguous, and written out where torch only notes a sign (of imaginary parts)."""
    return None if tensor is None else tensor.contiguous().resolve_neg()


def _check_numbers(top_k: Any, scaling: Any, dropout: Any) -> None:
    """That these are numbers, and in the range that does not depend on anything else."""
    if top_k is not None and (not isinstance(top_k, (int, torch.SymInt)) or isinstance(top_k, bool)):
        raise TypeError(f"top_k: got {_checks.shown(top_k)}, expected a whole number or None")
    for name, value in (("scaling", scaling), ("dropout", dropout)):
        if not isinstance(value, _NUMBERS) or isinstance(value, bool):
            raise TypeError(f"{name}: got {_checks.shown(value)}, expected a number")
    if type(scaling) in (int, float) and not -_LARGEST <= scaling <= _LARGEST:
        raise ValueError(f"scaling: got {scaling}, expected a finite number")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout: got {dropout}, expected 0 to below 1")


def _check_place(name: str, tensor: Any, x: Tensor) -> None:
    check_tensor(name, tensor)
    if tensor.device != x.device:
        raise ValueError(f"{name}: got a tensor on {tensor.device}, expected x's {x.device}")


def check_dense(name: str, tensor: Any) -> None:
    check_tensor(name, tensor)
    if tensor.layout is not torch.strided or tensor.is_nested:
        found = "a nested tensor" if tensor.is_nested else f"a tensor of layout {tensor.layout}"
        raise TypeError(f"{name}: got {found}, expected a dense one (torch.strided)")


def _check_shapes(
    x: Any, weight: Any, bias: Any, lora_A: Any, lora_B: Any, diag: Any, router_weight: Any, columns: Any
) -> None:
    check_dense("x", x)
    _check_place("weight", weight, x)
    _check_place("lora_A", lora_A, x)
    if weight.dim() != 2:
        raise ValueError(f"weight: got shape {tuple(weight.shape)}, expected (out_features, in_features)")
    if lora_A.dim() != 4 or 0 in lora_A.shape[:3]:
        expected = "(splits, experts, max_rank, in_features), the first three at least 1"
        raise ValueError(f"lora_A: got shape {tuple(lora_A.shape)}, expected {expected}")
    out_features, in_features = weight.shape
    splits, experts, max_rank, _ = lora_A.shape
    if x.shape[-1:] != (in_features,):
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected the last dimension to be {in_features} (weight's)")
    if out_features % splits:
        raise ValueError(f"weight: got {out_features} rows, expected a multiple of lora_A's {splits} splits")
    check_tensor("diag", diag)
    shapes = (
        ("weight", weight, weight.shape),
        ("lora_A", lora_A, (splits, experts, max_rank, in_features)),
        ("lora_B", lora_B, (splits, experts, out_features // splits, max_rank)),
        ("diag", diag, (splits, experts, max_rank)[: max(diag.dim(), 2)]),
        ("bias", bias, (out_features,)),
        ("router_weight", router_weight, (splits * experts, in_features)),
    )
    for name, tensor, shape in shapes:
        if tensor is None and name in ("bias", "router_weight"):
            continue
        _check_place(name, tensor, x)
        check_dense(name, tensor)
        if tensor.shape != shape:
            raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, expected {shape}")
    if columns is not None:
        _check_place("columns", columns, x)
        check_dense("columns", columns)
        if columns.dim() != 2 or columns.shape[0] != splits or columns.shape[1] == 0:
            expected = f"({splits}, active columns of a split, at least 1)"
            raise ValueError(f"columns: got shape {tuple(columns.shape)}, expected {expected}")
        if columns.dtype != torch.int32:
            raise TypeError(f"columns: got {columns.dtype}, expected torch.int32")


def _check_dtypes(x: Tensor, weight: Tensor, bias: Tensor | None, lora_A: Tensor, masters: bool) -> None:
    if x.dtype not in DTYPES:
        raise TypeError(f"x: got {x.dtype}, expected one of {DTYPES}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != x.dtype and not (masters and tensor.dtype == torch.float32):
            raise TypeError(f"{name}: got {tensor.dtype}, expected x's {x.dtype} (or use autocast)")
    if lora_A.dtype not in (x.dtype, torch.float32):
        raise TypeError(f"lora_A: got {lora_A.dtype}, expected x's {x.dtype} or torch.float32")


def _check_dtypes_alike(lora_A: Tensor, lora_B: Tensor, router_weight: Tensor | None) -> None:
    for name, tensor in (("lora_B", lora_B), ("router_weight", router_weight)):
        if tensor is not None and tensor.dtype != lora_A.dtype:
            raise TypeError(f"{name}: got {tensor.dtype}, expected lora_A's {lora_A.dtype}")


def _check_choice(gates: object, router_weight: object) -> None:
    if (gates is None) == (router_weight is None):
        got = "neither" if gates is None else "both"
        raise ValueError(f"gates, router_weight: got {got}, expected exactly one of them")


def _check_randomness(dropout: float, seed: Tensor | None, x: Tensor) -> None:
    if seed is not None:
        _check_place("seed", seed, x)
        check_dense("seed", seed)
    if dropout == 0:
        return
    if seed is None:
        raise ValueError("seed: got None, expected a 0-d int64 tensor since dropout > 0")
    if seed.dtype != torch.int64:
        raise TypeError(f"seed: got {seed.dtype}, expected torch.int64")
    if seed.dim() != 0:
        raise ValueError(f"seed: got shape {tuple(seed.shape)}, expected a 0-d tensor")


def _check_columns(columns: Tensor | None, width: int) -> None:
    """The numbers of a table, once, since they are read from the device. Where they cannot be (under a compiler, in a
    function transform, while a graph is captured) kernels on a GPU take numbers out of range for -1."""
    if columns is None or type(columns) not in (Tensor, Parameter) or columns.is_meta:
        return
    if columns.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return
    state = None if columns.is_inference() else columns._version, width
    if _known_columns.get(columns) == state and state[0] is not None:
        return
    for split, row in enumerate(columns.tolist()):
        for column in row:
            if not -1 <= column < width:
                expected = f"0 to {width - 1}, or -1 for none"
                raise ValueError(f"columns: got {column} in split {split}, expected {expected}")
        there = [column for column in row if column >= 0]
        if len(set(there)) < len(there):
            twice = next(column for column in there if there.count(column) > 1)
            raise ValueError(f"columns: got {twice} twice in split {split}, expected each column once")
    _known_columns[columns] = state


def _check_operands(operands: ForwardOperands, masters: bool) -> None:
    """What forward and backward have in common."""
    x, weight, bias, lora_A, lora_B, diag, gates, router_weight, columns, _, _, dropout, seed = operands
    _check_shapes(x, weight, bias, lora_A, lora_B, diag, router_weight, columns)
    _check_dtypes(x, weight, bias, lora_A, masters)
    _check_dtypes_alike(lora_A, lora_B, router_weight)
    splits, experts, max_rank, _ = lora_A.shape
    precision = torch.promote_types(x.dtype, torch.float32)
    _check_exact("diag", diag, diag.shape, precision, x)
    if gates is not None:
        _check_exact("gates", gates, (x.shape[0], splits, experts), precision, x)
    for name, tensor in (
        ("weight", weight), ("lora_A", lora_A), ("lora_B", lora_B), ("bias", bias), ("router_weight", router_weight),
        ("columns", columns),
    ):  # fmt: skip
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(f"{name}: got strides {tensor.stride()}, expected a contiguous tensor")
    _check_randomness(dropout, seed, x)
    _check_columns(columns, experts * max_rank)


def _check_matrix(name: str, tensor: Any) -> None:
    check_dense(name, tensor)
    if tensor.dim() != 2 or not tensor.is_contiguous():
        raise ValueError(
            f"{name}: got shape {tuple(tensor.shape)} and strides {tensor.stride()}, expected a contiguous matrix"
        )


def _check_exact(name: str, tensor: Any, shape: Sequence[int], dtype: torch.dtype, x: Tensor) -> None:
    _check_place(name, tensor, x)
    check_dense(name, tensor)
    if tensor.shape != shape:
        raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, expected {tuple(shape)}")
    if tensor.dtype != dtype:
        raise TypeError(f"{name}: got {tensor.dtype}, expected {dtype}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name}: got strides {tensor.stride()}, expected a contiguous tensor")


def expandable(shape: Sequence[int], full: Sequence[int]) -> bool:
    """Whether a tensor of ``shape`` can be broadcast to the shape ``full``."""
    missing = len(full) - len(shape)
    return missing >= 0 and all(a in (1, b) for a, b in zip(shape, full[missing:], strict=True))
