"""Whether a model uses its adapters: code that reads a layer's weight instead of calling the layer passes them by."""

import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .fused import RAMoEPart
from .ranks import named_layers


def check_adapters(model: nn.Module, *args: Any, **kwargs: Any) -> list[str]:
    """Runs ``model(*args, **kwargs)`` and its backward pass once; returns the names of its adapters, all reached.

    An adapter is reached if a gradient comes back to it from the outputs (tensors, or what holds them: tuples, lists,
    mappings, dataclasses, objects), be it zero. Raises ValueError naming those that are not: the model reads their
    ``weight`` instead of calling them, leaves them out, or cuts their gradients off; also for outputs without tensors
    and a model without RA-MoE layers. Of fused layers each has to be reached. The model runs in the mode that it is in;
    where that skips layers at random, call it in ``eval()``. Parameters, gradients, buffers, attributes, inputs and
    random numbers are left as they were, also after an error.
    """
    layers = named_layers(model)
    inner = model.module if isinstance(model, DistributedDataParallel) else model  # no talk between processes
    with _left_as_it_was(inner, (args, kwargs)), ExitStack() as stack:
        for layer in layers.values():
            layer.lora_B.requires_grad_(True)
        parts = _followed(stack, inner)
        outputs = list(_tensors(inner(*args, **kwargs)))
        if not outputs:
            raise ValueError(f"model: the output of {type(inner).__name__} holds no tensor, expected at least one")
        ends = {id(tensor): tensor for tensor in outputs if tensor.requires_grad}.values()
        torch.autograd.backward(list(ends), [torch.ones_like(tensor) for tensor in ends])
        missed = [name for name, layer in layers.items() if layer.lora_B.grad is None]
        missed += [name for name, reached in parts.items() if not reached]
    if missed:
        count, names = len(layers) + len(parts), ", ".join(map(repr, missed))
        raise ValueError(
            f"model: {len(missed)} of {count} adapters were never reached: {names}: "
            f"{type(inner).__name__} reads their weight instead of calling them, leaves them out or cuts gradients off"
        )
    return list(layers)


def _followed(stack: ExitStack, model: nn.Module) -> dict[str, list[bool]]:
    """Name -> True in a list once a gradient comes back to what that layer of a fused one has computed."""
    reached: dict[str, list[bool]] = {}
    for name, module in model.named_modules():
        if isinstance(module, RAMoEPart):
            marks = reached[name] = []

            def follow(module: nn.Module, inputs: Any, output: Tensor, marks: list[bool] = marks) -> None:
                if output.requires_grad:
                    output.register_hook(lambda grad: marks.append(True))

            handle = module.register_forward_hook(follow)
            stack.callback(handle.remove)
    return reached


def _tensors(value: Any, seen: set[int] | None = None) -> Iterator[Tensor]:
    """The tensors that ``value`` is or holds, at any depth; each object is looked at once."""
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, (nn.Module, type, str, bytes)):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
        return
    parts: list[Any] = []
    if isinstance(value, Mapping):
        parts += value.values()
    elif isinstance(value, (tuple, list, set, frozenset)):
        parts += value
    parts += getattr(value, "__dict__", {}).values()
    parts += (getattr(value, name, None) for name in getattr(type(value), "__slots__", ()))
    for part in parts:
        yield from _tensors(part, seen)


@contextmanager
def _left_as_it_was(model: nn.Module, inputs: Any) -> Iterator[None]:
    """A frame with gradients in which ``model`` may run: afterwards it and its inputs are what they were."""
    given = list(_tensors(inputs))
    leaves = [*model.parameters(), *(tensor for tensor in given if tensor.is_leaf)]
    grads = [(leaf, leaf.requires_grad, leaf.grad) for leaf in leaves]
    # They may change the model: an optimizer that steps in the backward pass, for one.
    hooks = [(held, dict(held)) for leaf in leaves if (held := leaf._post_accumulate_grad_hooks)]
    numbers = [(tensor, tensor.detach().clone()) for tensor in (*model.buffers(), *given)]
    attributes = [(module, dict(vars(module))) for module in model.modules()]
    entries = [(held, dict(held)) for module in model.modules() for held in (module._buffers, module._parameters)]
    devices = {tensor.device.index for tensor in (*leaves, *given) if tensor.device.type == "cuda"}
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=sorted(devices)))
        stack.callback(random.setstate, random.getstate())
        if "numpy" in sys.modules:
            numpy = sys.modules["numpy"]
            stack.callback(numpy.random.set_state, numpy.random.get_state())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        try:
            for leaf in leaves:
                leaf.grad = None
            for held, _ in hooks:
                held.clear()
            yield
        finally:
            for module, attribute in attributes:
                vars(module).clear()
                vars(module).update(attribute)
            for held, former in (*entries, *hooks):
                held.clear()
                held.update(former)
            with torch.no_grad():
                for tensor, number in numbers:
                    if not torch.equal(tensor, number):
                        tensor.copy_(number)
            for leaf, learns, grad in grads:
                leaf.requires_grad_(learns)
                leaf.grad = grad
