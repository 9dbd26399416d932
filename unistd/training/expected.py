"""What a value that was read must be: all of it is compared before any of it is used.

An *expected* value is a dict of expected values (the same keys, but those that may be missing), a list of them, a
tensor (the same dtype and shape, finite), a function that says of a value what was expected in its place (None: it is
right), or a plain value, which is the only right one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unistd.messages import shown
from unistd.training.checkpoint import CheckpointError


@dataclass(frozen=True)
class Maybe:
    """A value whose key may be missing."""

    expected: Any


def compare(found: Any, expected: Any, key: str, where: str, others: bool = False) -> None:
    """Raises CheckpointError that begins with `where` and names the first key, below `key`, whose value is wrong.

    others: keys beside the expected ones are passed over; not so below them.
    """

    def wrong(words: str) -> CheckpointError:
        return CheckpointError(f"{where}, {key!r}: {words}")

    if isinstance(expected, dict | list):
        if type(found) is not type(expected) and not (isinstance(found, dict) and isinstance(expected, dict)):
            raise wrong(f"expected a {type(expected).__name__}, found {described(found)}")
        if isinstance(expected, list):
            if len(found) != len(expected):
                raise wrong(f"expected {len(expected)} values, found {len(found)}")
            found, expected = dict(enumerate(found)), dict(enumerate(expected))
        for name, value in expected.items():
            below = f"{key}.{name}".lstrip(".")
            if name in found:
                compare(found[name], value.expected if isinstance(value, Maybe) else value, below, where)
            elif not isinstance(value, Maybe):
                raise CheckpointError(f"{where}, it has no {below!r}")
        if not others and (unknown := [name for name in found if name not in expected]):
            below = f"{key}.{unknown[0]}".lstrip(".")
            raise CheckpointError(f"{where}, unknown key {below[:200]!r}")
        return
    if isinstance(expected, Tensor):
        words = tensor_fault(found, expected)
    elif callable(expected):
        words = expected(found)
    else:
        words = None if type(found) is type(expected) and found == expected else repr(expected)
    if words is not None:
        raise wrong(f"expected {words}, found {described(found)}")


def whole(least: int, most: int) -> Callable[[Any], str | None]:
    """Expects a whole number within bounds."""

    def fault(value: Any) -> str | None:
        return None if type(value) is int and least <= value <= most else f"a whole number, {least} to {most}"

    return fault


def number(zero: bool) -> Callable[[Any], str | None]:
    """Expects a finite number above 0, or also `zero` itself."""

    def fault(value: Any) -> str | None:
        right = type(value) is float and math.isfinite(value) and (value > 0 or (zero and value == 0))
        return None if right else f"a finite number {'of at least' if zero else 'above'} 0"

    return fault


def finite(value: Any) -> str | None:
    """Expects a finite number."""
    return None if type(value) is float and math.isfinite(value) else "a finite number"


def close(expected: float) -> Callable[[Any], str | None]:
    """Expects a number up to rounding: the cosine of another machine may differ in its last bit."""
    return lambda value: (
        None if type(value) is float and math.isclose(value, expected, rel_tol=1e-9) else repr(expected)
    )


def tensor_fault(found: Any, expected: Tensor, least: float = -math.inf) -> str | None:
    """What was expected in the place of `found`, if that is not finite and like `expected`; None if it is.

    Tensors of whole numbers or truth values must be equal to `expected`. least: what no element is below.
    """
    words = f"{described(expected)}, finite" + (f" and at least {least:g}" if least > -math.inf else "")
    if not isinstance(found, Tensor) or found.layout != torch.strided or found.device.type != "cpu":
        return words
    if (found.dtype, found.shape) != (expected.dtype, expected.shape):
        return words
    if not found.is_floating_point():
        return None if torch.equal(found, expected.cpu()) else f"{expected.tolist()}"
    return None if bool((found.isfinite() & (found >= least)).all()) else words


def described(value: Any) -> str:
    """A value in a few words."""
    if not isinstance(value, Tensor):
        return shown(value)
    kind = f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    plain = value.layout == torch.strided and value.device.type == "cpu" and value.is_floating_point()
    held = plain and value.untyped_storage().nbytes() >= value.nbytes  # not one number expanded to terabytes
    return kind if not held or bool(value.isfinite().all()) else f"{kind} with NaN or Inf in it"
