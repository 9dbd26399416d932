"""The implementations of the one operator, and which of them runs where."""

import os
import warnings
from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch.utils._python_dispatch import _disable_current_modes

from .._checks import shown
from .._tracing import untraced

NAMES = ("reference", "packed", "triton", "cpu")
# Which the registered operators take: PyTorch differentiates the reference itself, "checked" is "auto" on GPUs.
OPERATORS = (*NAMES[1:], "checked")


def backends() -> dict[str, bool | str]:
    """Backend name -> True where it works on this machine, else the reason why it does not.

    "cpu" keeps packed copies of frozen weights. They follow what torch's operations write; of what is written past
    those, through ``weight.data`` or numpy, only whole rows and columns (`fastmoe_lora.backends.cpu`).
    """
    return {name: _availability(name) for name in NAMES}


def load(name: str) -> ModuleType:
    """The module of an operator backend, with its ``forward`` and ``backward``."""
    module: ModuleType = _load(name)
    return module


def check_operator(name: str) -> None:
    """Raises ValueError where a registered operator is asked for a backend that there is not."""
    if name not in OPERATORS:
        raise ValueError(f"backend: got {shown(name)}, expected one of {OPERATORS}")


def resolve(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """The backend to run: ``FASTMOE_LORA_BACKEND`` if set, else ``name``, where "auto" picks by device and dtype.

    What it picks on a GPU is "checked": "triton", each plan of which has to agree with "packed" at its first use;
    ``FASTMOE_LORA_SELF_CHECK=0``, read at the first call, leaves that out.
    Raises ValueError for an unknown backend or one that does not work here, with the reason; TypeError for no name.
    """
    if not isinstance(name, str):
        raise TypeError(f"backend: got {shown(name)}, expected 'auto' or one of {NAMES}")
    return _resolve(os.environ.get("FASTMOE_LORA_BACKEND") or name, device.type, dtype)


# torch.compile takes the answer as a constant. This is all that torch.compiler.assume_constant_result does, but for
# the import of the whole compiler, which costs over a second.
resolve._dynamo_marked_constant = True  # type: ignore[attr-defined] # how torch marks them


@cache
@untraced
def _load(name: str) -> ModuleType:
    with _disable_current_modes():  # what a backend asks its library is no part of a graph
        return import_module(f"{__name__}.{name}")


@cache
@untraced
def _availability(name: str) -> bool | str:
    try:
        with _disable_current_modes():
            available: bool | str = _load(name).available()
            return available
    except ImportError as error:
        return f"{type(error).__name__}: {error}"


@cache
def _resolve(name: str, device_type: str, dtype: torch.dtype) -> str:
    if name == "auto":
        fastest = {"cpu": "cpu", "cuda": "triton"}.get(device_type)
        if fastest is None or dtype == torch.float64:  # the compiled kernels are for float32 and the 16-bit types
            return "packed"
        reason = _availability(fastest)
        if reason is True:
            unchecked = fastest != "triton" or os.environ.get("FASTMOE_LORA_SELF_CHECK") == "0"
            return fastest if unchecked else "checked"
        warnings.warn(f"backend {fastest!r} is not available ({reason}); using 'packed'", stacklevel=4)
        return "packed"
    if name not in NAMES:
        raise ValueError(f"backend: got {name!r}, expected 'auto' or one of {NAMES}")
    reason = _availability(name)
    if reason is not True:
        raise ValueError(f"backend: {name!r} is not available here: {reason}")
    return name
