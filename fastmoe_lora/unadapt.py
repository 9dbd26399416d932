"""The way back from `adapt`, and the model without its adapters for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from . import _carried, _checks, _fusing
from .fused import RAMoEFusedLinear
from .layer import RAMoELinear
from .ranks import named_layers


def unadapt(model: nn.Module, merged: bool = False) -> nn.Module:
    """Takes all adapters out, in place, and returns the model as it was before `adapt`, bit for bit.

    ``merged=True`` keeps the weights that `merge` made, of a model all of whose layers are merged.

    Modules, what learns, fused paths and hooks are what they were; modes are those that the model is in by now. A
    `RAMoELinear` that was not put there by `adapt` becomes an ``nn.Linear``; a model that is an adapted layer itself
    cannot be changed in place: what it stands in for is returned. Raises ValueError for a model without RA-MoE layers,
    one that is compiled or distributed, and for what was not put there by `adapt`, attention of yours or a layer of
    PEFT's; nothing is changed then.
    """
    layers = named_layers(model)
    _checks.instance("merged", merged, bool, "True or False")
    if merged and (missing := [name for name, layer in layers.items() if layer.merged is None]):
        raise ValueError(f"model: layer {missing[0]!r} is not merged, expected merge(model) before")
    _carried.check_wrapped(model, layers, "unadapt what is inside of it")
    originals: dict[nn.Module, nn.Module] = {}
    places = []
    closed: tuple[str, ...] = ()
    for name, module in model.named_modules(remove_duplicate=False):
        if name.startswith(closed) and closed:
            continue
        if isinstance(module, RAMoEFusedLinear):
            closed = (*closed, f"{name}.")
        elif _carried.record(module) or isinstance(module, RAMoELinear):
            places.append((name, module))
            closed = (*closed, f"{name}." if name else "")
        elif _carried.is_of_peft(module):
            raise ValueError(f"model: {name!r} is a layer of PEFT's, expected one put there by adapt: unload() it")
        elif type(module).__module__ == f"{__package__}.attention":
            raise ValueError(f"model: {name!r} is a {type(module).__name__} of yours, expected one put there by adapt")
    for layer in layers.values():
        if layer.merged is not None:
            weight = layer.merged.weight
            layer.merged.undo(layer)
            if merged:
                layer.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
    for _, module in places:
        if module not in originals:
            record = _carried.record(module)
            originals[module] = record.given_back(module) if record else _plain(module)
    for name, module in places:
        if name:
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, originals[module])
    model = originals.get(model, model)
    _fusing.take_out(model)
    _carried.restore(model)
    return model


@contextmanager
def disable_adapters(model: nn.Module) -> Iterator[None]:
    """In this context every RA-MoE layer computes what ``nn.Linear`` does with its weight, bit for bit.

    Raises ValueError for a model without RA-MoE layers. Not for use beside other threads that run the model.
    """
    layers = named_layers(model).values()
    former = [(layer, layer.adapters_on) for layer in layers]
    try:
        for layer in layers:
            layer.adapters_on = False
        yield
    finally:
        for layer, on in former:
            layer.adapters_on = on


def _plain(layer: RAMoELinear) -> nn.Linear:
    linear = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    linear.weight, linear.bias = layer.weight, layer.bias  # type: ignore[assignment] # torch allows None
    return linear.train(layer.training)
