"""FrozenLinear: an ``nn.Linear`` that is not trained, with its weight packed for the processor."""

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import _operands
from .backends import load, resolve
from .ops import decomposes, is_autocast, is_eager

_LIBRARY = torch.library.Library("fastmoe_lora", "FRAGMENT")
_LIBRARY.define("frozen_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
_LIBRARY.define("frozen_linear_backward(Tensor grad_y, Tensor weight) -> Tensor")


class FrozenLinear(nn.Linear):
    """Drop-in ``nn.Linear`` for layers that are not trained: ``(..., in_features) -> (..., out_features)``.

    While its parameters do not require gradients and it runs on a CPU that the "cpu" backend serves, it uses a packed
    copy of the weight, made once, for the output and for the gradient of the input (see `fastmoe_lora.backends.cpu` for
    its memory, the writes through ``.data`` or numpy that it follows, and how to do without). Under autocast the copy
    is in the autocast dtype, so the weight is not cast in every call. Everywhere else it is ``F.linear``.
    """

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> Self:
        """A layer that shares ``linear``'s weight and bias and freezes them."""
        layer = cls(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        layer.weight, layer.bias = linear.weight, linear.bias
        return layer.requires_grad_(False).train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        return frozen_linear(x, self.weight, self.bias)


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W^T + b`` for ``x (..., in)``, ``weight (out, in)`` and ``bias (out,)`` or None.

    The fast path is taken as `FrozenLinear` describes; else this is ``F.linear``, gradients of the weight included.
    Raises ValueError or TypeError naming the argument, what it got and what it wants.
    """
    _operands.check_tensor("x", x)
    device_type = x.device.type
    autocast = is_autocast(device_type) and x.dtype != torch.float64
    dtype = torch.get_autocast_dtype(device_type) if autocast else x.dtype
    on_cpu = device_type == "cpu" and dtype in _operands.CASTABLE and resolve("auto", x.device, dtype) == "cpu"
    if on_cpu and is_eager((x, weight, bias)):
        try:
            y = load("cpu").frozen_linear(x, dtype, autocast, weight, bias)
        except (RuntimeError, TypeError):
            _operands.check_linear(x, weight, bias, autocast)  # names an argument that is no tensor
            raise
        if y is not None:
            packed: Tensor = y
            return packed
    _operands.check_linear(x, weight, bias, autocast)
    frozen = not weight.requires_grad and (bias is None or not bias.requires_grad)
    if not (on_cpu and frozen and x.numel() and weight.numel()) or decomposes(x, weight, bias):
        return F.linear(x, weight, bias)
    rows = x.to(dtype).reshape(-1, x.shape[-1])
    if autocast:
        weight = weight if weight.dtype == torch.float32 else weight.to(dtype)
        bias = bias if bias is None or bias.dtype == torch.float32 else bias.to(dtype)
    plain = _operands.plain
    matrix: Tensor = torch.ops.fastmoe_lora.frozen_linear(plain(rows), plain(weight), plain(bias))
    return matrix.view(*x.shape[:-1], weight.shape[0])


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = load("cpu").linear(x, weight, bias)
    return y


def _backward(grad_y: Tensor, weight: Tensor) -> Tensor:
    grad_x: Tensor = load("cpu").linear_backward(grad_y, weight)
    return grad_x


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _autograd(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None, None]:
    (weight,) = ctx.saved_tensors
    return torch.ops.fastmoe_lora.frozen_linear_backward(_operands.plain(grad_y), weight), None, None


_LIBRARY.impl("frozen_linear", _forward, "CPU")
_LIBRARY.impl("frozen_linear_backward", _backward, "CPU")


def _forward_fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    _operands.check_linear(x, weight, bias, autocast=True)
    return x.new_empty(x.shape[0], weight.shape[0])


def _backward_fake(grad_y: Tensor, weight: Tensor) -> Tensor:
    _operands.check_linear_backward(grad_y, weight)
    return grad_y.new_empty(grad_y.shape[0], weight.shape[1])


torch.library.register_fake("fastmoe_lora::frozen_linear", _forward_fake, lib=_LIBRARY)
torch.library.register_fake("fastmoe_lora::frozen_linear_backward", _backward_fake, lib=_LIBRARY)
torch.library.register_autograd("fastmoe_lora::frozen_linear", _autograd, setup_context=_setup_context, lib=_LIBRARY)
