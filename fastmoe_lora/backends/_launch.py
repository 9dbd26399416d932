"""What every launch needs: the device's name and size, the geometry, descriptors, dropout's integers, a launcher."""

import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ._plan import Geometry

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HIP = torch.version.hip is not None


@cache
def device_name(device: torch.device) -> str:
    """ "sm_90" and the like; in the interpreter a name that the plan table does not know."""
    if device.type != "cuda":
        return "interpreter"
    if HIP:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


@cache
def multiprocessors(device: torch.device) -> int:
    return 1 if device.type != "cuda" else torch.cuda.get_device_properties(device).multi_processor_count


def geometry_of(
    weight: Tensor,
    lora_A: Tensor,
    diag: Tensor,
    router_weight: Tensor | None,
    columns: Tensor | None,
    top_k: int,
    dropout: float,
    *streamed: Tensor,
) -> Geometry:
    """streamed: what a descriptor may be made of, besides the weight."""
    address = weight.data_ptr()
    for tensor in streamed:
        address |= tensor.data_ptr()
    n, k = weight.shape
    splits, experts, max_rank, _ = lora_A.shape
    return Geometry(
        k,
        n,
        splits,
        experts,
        max_rank,
        experts * max_rank if columns is None else columns.shape[1],
        router_weight is not None,
        diag.dim() == 2,
        top_k > 0,
        dropout > 0,
        columns is not None,
        weight.element_size() * 8,
        lora_A.dtype != weight.dtype,
        address % 16 == 0,
    )


def types_of(geometry: Geometry, x: Tensor, *others: Tensor | None) -> tuple[torch.device, torch.dtype] | None:
    """What decides, besides the geometry, on the types of a launch's arguments, for `Launcher`.

    others: all it gets but what is streamed and what was allocated for it. None where one of its arguments is not
    aligned to 16 bytes, which for Triton is part of the type.
    """
    address = 0
    for tensor in others:
        if tensor is not None:
            address |= tensor.data_ptr()
    return (x.device, x.dtype) if geometry.aligned and address % 16 == 0 else None


def check(x: Tensor) -> None:
    """Raises TypeError or ValueError for what the kernels cannot take."""
    if x.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise TypeError(f"x: got {x.dtype}, expected bfloat16, float16 or float32 for backend 'triton'")
    if INTERPRETED and x.dtype == torch.bfloat16:
        raise TypeError(
            "x: got torch.bfloat16, expected float16 or float32: Triton's interpreter multiplies bfloat16 wrongly"
        )
    if x.device.type != "cuda" and not INTERPRETED:
        raise ValueError(f"x: got a tensor on {x.device}, expected one on a GPU for backend 'triton'")


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device: makes it x's."""
    if x.device.type != "cuda" or x.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(x.device)


def described(tensor: Tensor, rows: int, columns: int, tma: bool) -> Any:
    """The tensor, or for TMA a descriptor of it with blocks (rows, columns)."""
    if not tma:
        return tensor
    from triton.tools.tensor_descriptor import TensorDescriptor  # type: ignore[import-untyped] # Triton has no types

    # Not tensor.stride(): a contiguous tensor of one row may have any stride between rows, also one that TMA refuses.
    return TensorDescriptor(tensor, list(tensor.shape), [tensor.shape[1], 1], [rows, columns])


class Launcher:
    """A kernel with its constants: ``launcher(programs, types, *arguments)`` launches that many programs of it.

    Triton looks at every argument of every launch to find the right compilation, which takes longer than all the rest.
    That is skipped from the second call on with the same types and the same arguments missing.
    """

    def __init__(self, kernel: Any, constants: dict[str, int | bool], options: dict[str, int]):
        self.kernel = kernel
        self.named = constants | options
        self.constants = tuple(constants[name] for name in kernel.arg_names if name in constants)
        self.compiled: dict[tuple[Any, ...], Any] = {}

    def __call__(self, programs: int, types: tuple[torch.device, torch.dtype] | None, *arguments: Any) -> None:
        """types: of `types_of`."""
        if HIP and any(_is_large(argument) for argument in arguments):
            types = None
        key = types, *[argument is None for argument in arguments]
        compiled = self.compiled.get(key)
        if compiled is not None:
            compiled[programs, 1, 1](*arguments, *self.constants)
            return
        compiled = self.kernel[(programs,)](*arguments, **self.named)
        if types is not None:
            # Under triton.AsyncCompileMode a promise of a compilation; in the interpreter None.
            self.compiled[key] = compiled.result() if hasattr(compiled, "result") else compiled


def _is_large(argument: object) -> bool:
    """Whether it is a tensor for whose addresses Triton does not let AMD's compiler calculate in 32 bits."""
    return isinstance(argument, Tensor) and argument.untyped_storage().nbytes() >= 2**31


def threshold_bits(p: float) -> int:
    """The 32 bits of floor(p 2^32) as a signed integer: the kernels' argument is then 32 bits wide for every p."""
    value = int(p * 2**32)
    return value - 2**32 if value >= 2**31 else value
