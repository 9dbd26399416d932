"""Linear layers that read the same input (queries, keys and values, say) as one RA-MoE layer, called as before."""

import threading
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Self

import torch
from torch import Tensor, nn

from . import _checks, ops
from .layer import RAMoELinear


class RAMoEFusedLinear(RAMoELinear):
    """Linear layers of one input, side by side: one weight, one call (on a CPU one for each run of equal widths), a
    split with adapters of its own for each.

    `adapt` puts it beside the layers, in whose place it puts a `RAMoEPart` each. While ``parent``, the module around
    them, runs, the first of them that is called computes all, and the others take their parts of it if they are called
    with the very same tensor, not written since, in the same mode. In all other cases, with another input, outside of
    the parent, under a compiler, a function transform or inference_mode, each computes its own part alone. Nothing is
    held when the parent is through.
    """

    @classmethod
    def joining(cls, linears: Sequence[nn.Linear], **options: Any) -> Self:
        """Of these layers, in this order, with a copy of their weights, which is frozen; ``options`` as of
        `RAMoELinear.from_linear`, but ``splits``. Raises ValueError or TypeError naming what is wrong."""
        if "splits" in options:
            raise ValueError(f"splits: got {_checks.shown(options['splits'])}, expected none: each layer is one")
        weights = [linear.weight.detach() for linear in linears]
        for name, first in (("dtype", weights[0].dtype), ("device", weights[0].device)):
            for weight in weights:
                if getattr(weight, name) != first:
                    raise ValueError(f"fuse: got weights of {first} and {getattr(weight, name)}, expected the same")
        if len(features := sorted({linear.in_features for linear in linears})) > 1:
            raise ValueError(f"fuse: got layers of {features[0]} and {features[1]} features, expected the same input")
        widths = [linear.out_features for linear in linears]
        joined = nn.Linear(features[0], sum(widths), device="meta")
        joined.weight = nn.Parameter(torch.cat(weights), requires_grad=False)
        joined.bias = None  # type: ignore[assignment] # torch allows it
        if any(linear.bias is not None for linear in linears):
            biases = (_bias(linear) for linear in linears)
            joined.bias = nn.Parameter(torch.cat(list(biases)), requires_grad=False)
        return cls.sharing(joined.train(linears[0].training), **options, splits=widths)

    def part(self, x: Tensor, index: int) -> Tensor:
        """The output of layer ``index`` for ``x (..., in)``."""
        shared = _running.now.get(self) if ops.is_eager((x,)) else None
        if shared is not None and type(x) in (Tensor, nn.Parameter) and not x.is_inference():
            mode = (*_mode(), self.training, self.adapters_on, self.merged)
            if shared.is_of(x, mode) and index in shared.parts:
                return shared.taken(index)
            if not shared.parts and mode[0] == shared.hooks:
                shared.fill(x, mode, self._parts(x))
                return shared.taken(index)
        own: Tensor = self(x, part=(index, index + 1))
        return own

    def _parts(self, x: Tensor) -> list[Tensor]:
        """The outputs of all layers. One call; but splits of several widths are computed unit by unit, the low-rank
        product of each anew, which on a CPU costs more than a call: there one for each run of equal widths."""
        if x.device.type != "cpu" or len(set(self.widths)) == 1:
            return list(_in_parts(self(x), self.widths))
        parts: list[Tensor] = []
        for _, run in groupby(self.widths):
            widths, first = list(run), len(parts)
            parts += _in_parts(self(x, part=(first, first + len(widths))), widths)
        return parts

    def begin(self, parent: nn.Module, *_: Any) -> None:
        """The parent begins to run: a hook of it."""
        if ops.is_eager(()):
            _running.now[self] = _Shared()

    def end(self, parent: nn.Module, *_: Any) -> None:
        """The parent is through, or has failed: a hook of it."""
        if ops.is_eager(()):
            _running.now.pop(self, None)


class RAMoEPart(nn.Module):
    """What stands in for one of the layers that a `RAMoEFusedLinear` has joined: ``(..., in) -> (..., out)``.

    Its weight and bias are parts of the joined ones, and no parameters: the state dict has them as the joined layer's.
    Where a state dict has them under this one's name, as that of a model that is not adapted, they are loaded.
    """

    other_form = ("weight", "bias")  # see `original_parameter`

    def __init__(self, layer: RAMoEFusedLinear, index: int, linear: nn.Linear):
        super().__init__()
        self._joined = (layer,)  # not a child: it is one of the parent's
        self.index, self._biased = index, linear.bias is not None
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.train(linear.training)

    @property
    def layer(self) -> RAMoEFusedLinear:
        return self._joined[0]

    @property
    def weight(self) -> Tensor:
        return self._rows(self.layer.weight)

    @property
    def bias(self) -> Tensor | None:
        return self._rows(self.layer.bias) if self._biased and self.layer.bias is not None else None

    def _rows(self, whole: Tensor) -> Tensor:
        first = sum(self.layer.widths[: self.index])
        return whole[first : first + self.out_features]

    def forward(self, x: Tensor) -> Tensor:
        return self.layer.part(x, self.index)

    def original_parameter(self, name: str) -> nn.Parameter:
        """What a parameter of the layer that this stands in for is by now, which here has another form."""
        return nn.Parameter(getattr(self, name).detach().clone(), requires_grad=False)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for name in ("weight", "bias"):
            mine = getattr(self, name)
            if mine is None or prefix + name not in state_dict:
                continue
            value = state_dict.pop(prefix + name)
            if fault := _fault(value, mine):
                error_msgs.append(f"{prefix}{name} is {fault}.")
                continue
            with torch.no_grad():
                mine.copy_(value)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self._biased}"


class _Shared:
    """What has been computed for all layers while the parent runs, and of which tensor."""

    x: Tensor | None
    version: int
    mode: tuple[Any, ...]
    parts: dict[int, Tensor]

    def __init__(self) -> None:
        self.hooks = _saving_hooks()
        self._clear()

    def _clear(self) -> None:
        self.x, self.version, self.mode, self.parts = None, 0, (), {}

    def is_of(self, x: Tensor, mode: tuple[Any, ...]) -> bool:
        return x is self.x and x._version == self.version and mode == self.mode

    def fill(self, x: Tensor, mode: tuple[Any, ...], parts: Sequence[Tensor]) -> None:
        self.x, self.version, self.mode, self.parts = x, x._version, mode, dict(enumerate(parts))

    def taken(self, index: int) -> Tensor:
        part = self.parts.pop(index)
        if not self.parts:
            self._clear()
        return part


class _Running(threading.local):
    """The parents that run in this thread: the layer -> what they share."""

    def __init__(self) -> None:
        self.now: dict[RAMoEFusedLinear, _Shared] = {}


_running = _Running()


def _saving_hooks() -> Any:
    """What is done to tensors that are saved for the backward pass: another thing in a checkpoint, for one."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


def _mode() -> tuple[Any, ...]:
    """What else decides what a call computes and records."""
    autocast = torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
    dtypes = tuple(torch.get_autocast_dtype(kind) for kind, on in zip(("cpu", "cuda"), autocast, strict=True) if on)
    return _saving_hooks(), torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast, dtypes


def _in_parts(y: Tensor, widths: Sequence[int]) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...]
    if not y.numel():
        parts = y.split(widths, -1)
    else:
        cut = _Parts.apply if y.requires_grad else _Parts.cut
        parts = cut(y, widths)
    return parts


class _Parts(torch.autograd.Function):
    """The columns of y as tensors of their own in its memory, which may be written one by one, as outputs of layers
    that were called apart may be; views of one tensor may not. The gradient is one concatenation."""

    @staticmethod
    def cut(y: Tensor, widths: Sequence[int]) -> tuple[Tensor, ...]:
        storage, strides, at = y.untyped_storage(), y.stride(), y.storage_offset()
        firsts = [at + sum(widths[:i]) for i in range(len(widths))]
        shapes = [(*y.shape[:-1], width) for width in widths]
        return tuple(
            y.new_empty(0).set_(storage, first, shape, strides) for first, shape in zip(firsts, shapes, strict=True)
        )

    @staticmethod
    def forward(ctx: Any, y: Tensor, widths: Sequence[int]) -> tuple[Tensor, ...]:
        return _Parts.cut(y, widths)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return torch.cat(grads, -1), None


def _bias(linear: nn.Linear) -> Tensor:
    return linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach()


def _fault(value: Any, mine: Tensor) -> str | None:
    """What is wrong with an entry of a state dict for a part of a weight."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape != mine.shape:
        return f"{_checks.shown(value)}, expected {tuple(mine.shape)} of floating-point numbers"
    if value.is_meta != mine.is_meta:
        return "on the meta device, or the model's is, expected both to have numbers"
    return None
