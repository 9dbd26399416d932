"""Checks of arguments. Each returns the value or raises: one line, "name: got this, expected that"."""

import math
import reprlib
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from numbers import Integral, Real
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LONGEST = 200  # characters of a value in a message

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 120  # room for a path or a layer's name


def whole(name: str, value: Any, fits: Callable[[int], bool], expected: str) -> int:
    """A whole number that ``fits``; TypeError for floats, bools and all else, ValueError for one that does not."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: got {shown(value)}, expected a whole number, {expected}")
    number = int(value)
    if not fits(number):
        raise ValueError(f"{name}: got {shown(value)}, expected {expected}")
    return number


def number(name: str, value: Any, fits: Callable[[float], bool], expected: str) -> float:
    """A finite number that ``fits``; TypeError for bools and what is no number, ValueError for one that does not."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: got {shown(value)}, expected a number, {expected}")
    try:
        converted = float(value)
    except OverflowError:  # a whole number beyond 1e308
        converted = math.inf
    if not (math.isfinite(converted) and fits(converted)):
        raise ValueError(f"{name}: got {shown(value)}, expected {expected}")
    return converted


def size(name: str, value: Any, least: int = 1) -> int:
    """A size of the layer: the kernels count columns in 32 bits."""
    value = whole(name, value, lambda n: n >= least, f"at least {least}")
    return whole(name, value, lambda n: n < 2**31, "below 2^31")


def elements(name: str, *shape: int, most: int = 2**40) -> None:
    """That a tensor of this shape can be had at all."""
    if math.prod(shape) > most:
        raise ValueError(f"{name}: got {shape}, expected at most 2^{most.bit_length() - 1} elements")


def scaling(value: Any) -> float:
    """The argument ``scaling``, finite in float32."""
    largest = torch.finfo(torch.float32).max
    return number("scaling", value, lambda s: abs(s) <= largest, "a finite number, also in float32")


def factory(device: Any, dtype: Any) -> dict[str, Any]:
    """The arguments ``device`` and ``dtype`` of a module's constructor, tried."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype in FLOATS):
        raise TypeError(f"dtype: got {shown(dtype)}, expected one of {FLOATS}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device: got {shown(device)}, expected a device that works here ({reason})") from None
    return {"device": device, "dtype": dtype}


@overload
def one_of(name: str, value: Any, choices: Iterable[str]) -> str: ...
@overload
def one_of(name: str, value: Any, choices: Iterable[str | None]) -> str | None: ...
def one_of(name: str, value: Any, choices: Iterable[str | None]) -> str | None:
    """One of these strings (or None); ValueError names the nearest."""
    choices = tuple(choices)
    if not (isinstance(value, str) or value is None) or value not in choices:
        near = get_close_matches(value, filter(None, choices), 1) if isinstance(value, str) else []
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name}: got {shown(value)}, expected one of {choices}{hint}")
    return value


def instance(name: str, value: Any, kind: type | tuple[type, ...], expected: str) -> Any:
    """An instance of ``kind``; TypeError else."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: got {shown(value)}, expected {expected}")
    return value


def model(value: Any) -> nn.Module:
    """The argument ``model``."""
    module: nn.Module = instance("model", value, nn.Module, "an nn.Module")
    return module


def rank_fault(ranks: Tensor, max_rank: int, whole: bool) -> str | None:
    """What is wrong with the first of these ranks that no layer can have: not in [0, max_rank], NaN, or to be ``whole``
    and not so. None if all are right."""
    right = (ranks >= 0) & (ranks <= max_rank)
    if whole:
        right &= ranks == ranks.round()
    expected = f"{'a whole number, ' if whole else ''}0 to max_rank = {max_rank}"
    return element_fault("rank", ranks, right, expected)


def element_fault(name: str, values: Tensor, right: Tensor, expected: str) -> str | None:
    """ "name[1, 2] is nan, expected ..." for the first element that is not ``right``, None if all are."""
    if values.is_meta:
        return f"{name} is on the meta device, expected {expected}"
    if bool(right.all()):
        return None
    at = (~right).nonzero()[0].tolist()
    return f"{name}{at} is {values[tuple(at)].item()}, expected {expected}"


def path(file: Path) -> str:
    """A path for a message: as it is, or quoted if it would break the line."""
    text = str(file)
    return text if text.isprintable() else repr(text)


def shown(value: Any) -> str:
    """``value`` for a message: one short line, whatever it is."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, nn.Module):
        return f"a {type(value).__name__}"
    try:
        text = " ".join(_repr.repr(value).split())
    except Exception:  # a repr that fails, or a whole number of more digits than Python prints
        text = f"an object of type {type(value).__name__}"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
