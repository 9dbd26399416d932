"""What torch.jit.trace is not to see: its graph would hold what is decided in Python, and it warns of each decision."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

_P = ParamSpec("_P")
_R = TypeVar("_R")


@contextmanager
def paused() -> Iterator[None]:
    """Nothing in here is recorded by a trace that is going on."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined] # not among torch's stubs
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


def untraced(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """``function``, which a trace does not record."""

    @wraps(function)
    def call(*arguments: _P.args, **options: _P.kwargs) -> _R:
        if not torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call] # torch has it without types
            return function(*arguments, **options)
        with paused():
            return function(*arguments, **options)

    return call


@untraced
def sizes(tensor: Tensor) -> torch.Size:
    """Its shape in numbers, for decisions: a trace makes tensors of those of ``shape``."""
    return tensor.shape
