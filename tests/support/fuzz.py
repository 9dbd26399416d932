"""Random calls of the layer's functions, right and wrong, and how they must end: right, or refused by name."""

import os
import re
import time
from collections import Counter
from collections.abc import Callable

import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from torch import Tensor

SECONDS = float(os.environ.get("FUZZ_SECONDS", 0))  # of each test; 0: the same few hundred cases every time
counts: Counter[str] = Counter()


class Arguments(dict):
    """Arguments by name that print in a line each."""

    def __repr__(self) -> str:
        return "".join(f"\n  {name}: {self._line(value)}" for name, value in self.items())

    @staticmethod
    def _line(value: object) -> str:
        if not isinstance(value, Tensor):
            return repr(value)
        strides = value.stride() if value.layout is torch.strided else value.layout
        if value.numel() <= 8 and value.layout is torch.strided and not value.is_meta:
            return f"{value.tolist()} {value.dtype} {value.device}"
        return f"{tuple(value.shape)} {value.dtype} {value.device} strides {strides}"


def fuzzed(*, cases: int) -> Callable:
    """A decorator over hypothesis' tests: `cases` of them, always the same; or as many new ones as SECONDS hold."""
    common = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
    if not SECONDS:
        return settings(max_examples=cases, derandomize=True, **common)

    def decorate(test: Callable) -> Callable:
        some = settings(max_examples=200, phases=(Phase.generate, Phase.shrink), **common)(test)

        def repeated() -> None:
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                some()
            print(f"{test.__name__}: {dict(counts)}")

        repeated.__name__ = test.__name__
        return repeated

    return decorate


def outcome(function: Callable, names: tuple[str, ...]) -> list[Tensor] | str:
    """What it returns, or the message where it refuses: ValueError or TypeError, one line that begins with an
    argument's name.

    The schema of a registered operator is checked by torch, in torch's words.
    """
    try:
        result = function()
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        message = str(error)
        if re.match(r"\w+::\w+\(\) Expected a value|only integer tensors of|int too big", message):
            counts["schema"] += 1
            return message
        if isinstance(error, (RuntimeError, OverflowError)):
            raise
        assert "\n" not in message, message
        named = message.split(":")[0].split(", ")
        assert set(named) <= set(names), message
        counts["refused"] += 1
        return message
    counts["computed"] += 1
    return result


def assert_close(got: list[Tensor], plain: list[Tensor], exact: list[Tensor], sizes: list[Tensor]) -> None:
    """Each within a few times plain torch's own error from `exact` (float64), or a few roundings of the result or of
    what is added up to it (`sizes`: the results for the operands' absolute values); no number where there is NaN, an
    infinity, or what the type cannot hold.
    """
    for i, (found, ordinary, wanted, size) in enumerate(zip(got, plain, exact, sizes, strict=True)):
        assert found.shape == wanted.shape, f"result {i}: {found.shape}, expected {wanted.shape}"
        assert found.device == ordinary.device
        if found.is_meta:
            continue
        assert found.dtype == ordinary.dtype, f"result {i}: {found.dtype}, expected {ordinary.dtype}"
        found, ordinary = found.double(), ordinary.double()
        here = wanted.abs() <= 2 * torch.finfo(got[i].dtype).max  # a gradient of ranks is float32 beside 16-bit results
        if not (here & ordinary.isfinite()).all():  # too large for the type, at the end or on plain torch's way
            assert not (found.isfinite() & ~here).any()
            continue
        if wanted.numel() == 0:
            continue
        epsilon = torch.finfo(got[0].dtype).eps
        bound = 4 * (ordinary - wanted).norm() + epsilon * (8 * wanted.norm() + 2 * size.norm()) + 1e-6
        error = (found - wanted).norm()
        assert error <= bound, f"result {i}: error {error:.3e}, allowed {bound:.3e}"


@st.composite
def laid_out(draw, tensor: Tensor) -> Tensor:
    """The same numbers with other strides, or at another address."""
    how = draw(st.sampled_from(["as it is", "as it is", "transposed", "strided", "offset", "negative"]))
    if tensor.dim() == 0 or tensor.is_meta or tensor.layout is not torch.strided or how == "as it is":
        return tensor
    if how == "transposed":
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if how == "strided":
        return torch.stack([tensor, torch.full_like(tensor, 99)], -1)[..., 0]
    if how == "offset":
        return torch.cat([torch.full_like(tensor.flatten()[:1], 99), tensor.flatten()])[1:].view(tensor.shape)
    return torch._neg_view(-tensor) if tensor.dtype in _FLOATS else tensor


@st.composite
def damaged(draw, value: object) -> object:
    """Something else in an argument's place."""
    if isinstance(value, Tensor):
        return draw(damaged_tensor(value))
    return draw(
        st.sampled_from([None, True, -1, 0, 1, 2, 3, 7, 10**20, 0.5, 1.0, -0.1, 1e-300, float("nan"), float("inf")])
        | st.sampled_from(["text", [1.0], torch.ones(3, 1, dtype=torch.int64)])
    )


@st.composite
def damaged_tensor(draw, tensor: Tensor) -> object:
    if tensor.layout is not torch.strided or tensor.is_meta:
        return tensor
    dimension = draw(st.integers(0, max(tensor.dim() - 1, 0)))
    kind = draw(st.sampled_from(_KINDS))
    tensor = tensor.detach()
    if kind == "size" and tensor.dim():
        size = draw(st.sampled_from([0, 1, tensor.shape[dimension] + 1, max(tensor.shape[dimension] - 1, 0), 1 << 10]))
        return tensor.narrow(dimension, 0, min(1, tensor.shape[dimension])).expand(
            *(size if i == dimension else n for i, n in enumerate(tensor.shape))
        ) if tensor.numel() else tensor.new_zeros([2] * tensor.dim())  # fmt: skip
    if kind == "dimensions":
        return draw(
            st.sampled_from([tensor.unsqueeze(0), tensor.unsqueeze(-1), tensor.flatten(), tensor.new_zeros(())])
        )
    if kind == "dtype":
        return tensor.to(draw(st.sampled_from(_DTYPES)))
    if kind == "numbers":
        return _with_numbers(tensor, draw(st.sampled_from([-1, 0, -2, 1 << 20, 2**31 - 1, -(2**31)])))
    if kind == "meta":
        return tensor.to("meta")
    if kind == "sparse" and tensor.dtype != torch.float8_e4m3fn:
        return tensor.to_sparse()
    return draw(st.sampled_from([None, 1, 0.5, "text", [[1.0]], ()]))


def _with_numbers(tensor: Tensor, number: int) -> Tensor:
    tensor = tensor.clone()
    if tensor.numel() and not tensor.is_floating_point() and tensor.dtype is not torch.bool:
        tensor.view(-1)[-1] = max(min(number, torch.iinfo(tensor.dtype).max), torch.iinfo(tensor.dtype).min)
    return tensor


_KINDS = ("size", "size", "dimensions", "dtype", "numbers", "numbers", "meta", "sparse", "other")
_FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
_DTYPES = (
    *(*_FLOATS, torch.complex64, torch.float8_e4m3fn),
    *(torch.int8, torch.int32, torch.int64, torch.bool),
)
