"""Counts what operators take while they run: memory that is alive, arithmetic, and bytes that are read and written."""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unistd.plan.flops import FORMULAS

_NO_WORK = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided"}
_DEVICE = torch.ops.prim.device.default
_CONVOLUTION_BACKWARD = torch.ops.aten.convolution_backward.default
_BLOCK = 16  # channels, of oneDNN on processors with AVX-512
WITHIN = "within an operator"


class Watch(TorchDispatchMode):
    """Inside `with`, follows every operator and all memory that operators make.

    Works for tensors with and without numbers. Of what operators allocate and free within
    themselves, the copies of a convolution's backward pass are counted, which are large where channels are few.

    Attributes:
        peaks: phase -> bytes alive in its fullest moment, by label or by the phase that made them.
        operators: (phase, is 16-bit, FLOPs, bytes) of each operator, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self._phase = "build"
        self.peaks: dict[str, dict[str, int]] = {}
        self.operators: list[tuple[str, bool, int, int]] = []
        self._labels: dict[int, tuple[str, int]] = {}  # storage -> (what it is, bytes)
        self._alive: Counter[str] = Counter()

    @property
    def phase(self) -> str:
        """What the step is doing now; memory that is made goes by it unless it is labelled."""
        return self._phase

    @phase.setter
    def phase(self, phase: str) -> None:
        self._phase = phase
        self._note()

    def begin(self, phase: str) -> None:
        """Counts from here on, in that phase; what is alive stays."""
        self.operators, self.peaks = [], {}
        self.phase = phase

    def label(self, tensors: Iterable[Tensor], what: str) -> None:
        """Says what tensors are; the memory of others goes by the phase that made it."""
        for tensor in tensors:
            self._hold(tensor.untyped_storage(), what)

    def __torch_dispatch__(self, function: Callable, types, args=(), kwargs=None):
        if function is _DEVICE:  # asked of every parameter, and no work
            return function(*args)
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        for tensor in made:
            if tensor.untyped_storage()._cdata not in self._labels:
                self._hold(tensor.untyped_storage(), self.phase)
        if function is _CONVOLUTION_BACKWARD:
            self._note(_in_blocks(args[0]) + _in_blocks(args[1]))
        self._count(function, args, kwargs, result, given, made)
        return result

    def _count(self, function, args, kwargs, result, given: list[Tensor], made: list[Tensor]) -> None:
        known = {tensor.untyped_storage()._cdata for tensor in given}
        is_view = all(tensor.untyped_storage()._cdata in known for tensor in made) and not function._schema.is_mutable
        if (is_view and given) or function._schema.name.partition("::")[2] in _NO_WORK:
            return
        formula = FORMULAS.get(function._overloadpacket)
        flops = 0 if formula is None else formula(*args, **kwargs, out_val=result)
        moved = sum(tensor.numel() * tensor.element_size() for tensor in (*given, *made))
        half = any(tensor.is_floating_point() and tensor.element_size() == 2 for tensor in made)
        self.operators.append((self.phase, half, int(flops), moved))

    def _hold(self, storage: torch.UntypedStorage, what: str) -> None:
        key = storage._cdata
        if key in self._labels:
            before, size = self._labels[key]
            self._alive[before] -= size
        else:
            size = storage.nbytes()
            weakref.finalize(storage, self._release, key).atexit = False
        self._labels[key] = (what, size)
        self._alive[what] += size
        self._note()

    def _release(self, key: int) -> None:
        what, size = self._labels.pop(key)
        self._alive[what] -= size

    def _note(self, within: int = 0) -> None:
        """Keeps this moment if it is the fullest of its phase; `within`: bytes that an operator has for itself."""
        if self._alive.total() + within > sum(self.peaks.get(self._phase, {}).values()):
            self.peaks[self._phase] = {what: size for what, size in self._alive.items() if size}
            if within:
                self.peaks[self._phase][WITHIN] = within


def _in_blocks(images: Tensor) -> int:
    """Bytes of (N, C, H, W) as libraries lay it out to convolve it, its channels in blocks."""
    samples, channels, *size = images.shape
    return samples * -(-channels // _BLOCK) * _BLOCK * math.prod(size) * images.element_size()
