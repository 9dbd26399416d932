"""Adapters added to the weights that they adapt, and taken off again."""

from collections.abc import Sequence

from torch import Tensor, nn

from . import _carried
from ._merged import Merged, check_unmerged
from .fixed_gates import chosen_gates
from .ranks import named_layers


def merge(model: nn.Module, *, expert: int | None = None, gates: Sequence[float] | Tensor | None = None) -> nn.Module:
    """Every RA-MoE layer computes with one weight, that of its linear layer plus its experts, mixed by ``gates`` (see
    `fixed_gates`) or one ``expert`` alone; returns the model. It costs what ``nn.Linear`` does.

    Of layers with a single expert neither argument is needed. The sum is made in float32 (float64 where the weight is)
    and rounded once, to the weight's dtype. It lies beside the weight and the adapters, which stay as they are: state
    dicts and files of adapters are those of the model that is not merged, ``unmerge(model)`` gives that back bit for
    bit, and ``unadapt(model, merged=True)`` makes plain layers of it.

    Meanwhile nothing of these layers learns: a call in training mode, with gradients on, raises ValueError, and so do
    numbers loaded, gates handed in that are others, and a call after weight, adapters or ranks were changed (but by
    ``.data``). Raises TypeError or ValueError naming the layer, before anything is changed: for a router's gates, which
    depend on the input; for layers that are merged, sharded or PEFT's; for numbers that are not finite, also where the
    sum is beyond the weight's dtype.
    """
    layers = named_layers(model)
    check_unmerged(layers)
    for name, layer in layers.items():
        if _carried.is_of_peft(layer):
            raise ValueError(f"model: layer {name!r} is PEFT's, expected one of adapt's: merge_adapter() merges it")
        if hasattr(layer.weight, "full_tensor"):
            raise ValueError(f"model: layer {name!r} is sharded, expected a whole one: merge first, shard then")
    instead = "which no weight does (a mixture that is merged stands in for them until unmerge)"
    mixtures = {name: chosen_gates(name, layer, expert, gates, instead) for name, layer in layers.items()}
    merged = {name: Merged(name, layer, mixtures[name]) for name, layer in layers.items()}
    for name, layer in layers.items():
        merged[name].do(layer)
    return model


def unmerge(model: nn.Module) -> nn.Module:
    """The way back from `merge`: weights, adapters and what learns are what they were; returns the model.

    Raises ValueError for a model of which no layer is merged.
    """
    layers = [layer for layer in named_layers(model).values() if layer.merged is not None]
    if not layers:
        raise ValueError("model: no layer is merged, expected merge(model) before")
    for layer in layers:
        if layer.merged is not None:
            layer.merged.undo(layer)
    return model
