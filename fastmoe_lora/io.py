"""Adapters on disk: safetensors for the numbers, JSON for what they belong to; never pickle."""

import json
import os
import warnings
from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from . import _adapter_file as adapter_file
from . import _checks, _files
from ._merged import check_unmerged
from ._wrappers import gathered, plain_name, scattered, unwrapped, writes
from .layer import RAMoELinear
from .ranks import named_layers, ramoe_layers

_TENSORS = "adapters.safetensors"
_CONFIG = "adapters.json"


def save_adapters(model: nn.Module, path: str | os.PathLike[str], also: Iterable[str] | None = None) -> None:
    """Writes the adapters of all RA-MoE layers, without the weights they adapt, into the folder ``path``.

    ``also``: patterns (shell style: ``["head.*"]``) over the names of other parameters and buffers to write with them,
    a head that was trained, say. By default none; then a warning names the trained parameters that are left out, which
    ``also=()`` does without. A model that is compiled or wrapped (DDP, AveragedModel, ...) is saved as the one inside.
    Of one that is sharded (FSDP2) all processes call this; the first writes.

    The file of numbers carries their checksum. Raises OSError, or TypeError or ValueError, before anything is written,
    for a model without RA-MoE layers, patterns that match nothing, and adapters that `load_adapters` refuses: numbers
    that are NaN or infinite, ranks that no layer can have, tensors of another shape than their layer's.
    """
    from safetensors.torch import save  # here, so that importing the package needs torch alone

    layers, others = _parts(named_layers(_model(model)), model)
    folder = _files.folder("path", path)
    beside = _chosen(others, also)
    sources = [value for layer in layers.values() for value in adapter_file.state(layer).values()] + [*beside.values()]
    for name, layer in layers.items():
        if fault := adapter_file.shape_fault(layer):
            raise ValueError(f"model: layer {name!r}: {fault}")
    states = {name: adapter_file.whole_state(layer) for name, layer in layers.items()}
    beside = {name: gathered(value) for name, value in beside.items()}
    for name, layer in layers.items():
        if fault := adapter_file.fault(layer, states[name]):
            raise ValueError(f"model: layer {name!r}: {fault}")
    for name, value in beside.items():
        if fault := adapter_file.number_fault(name, value, value):
            raise ValueError(f"model: {fault}")
    if not writes(sources):
        return
    tensors = {f"{name}.{key}": value for name, state in states.items() for key, value in state.items()} | beside
    tensors = {name: value.cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    config = json.dumps(adapter_file.description(layers, beside), indent=2) + "\n"
    contents = {
        _TENSORS: save(tensors, metadata={adapter_file.CHECKSUM: adapter_file.checksum(tensors)}),
        _CONFIG: config.encode("utf-8"),
    }
    _files.write(folder, contents)


def load_adapters(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Reads what `save_adapters` wrote into a model with the same RA-MoE layers; their frozen ranks and the rank window
    included, and what was saved ``also``. The file or the model or both may be of a wrapped model.

    Raises FileNotFoundError (or another OSError), or ValueError naming the file and the layer or tensor that is wrong,
    before anything is changed: files that are not whole or are no files, another format or architecture, options that
    change what the numbers mean (router, top_k, scaling, dropout, and the interpolation of ranks that are not frozen),
    tensors that are missing, superfluous, or of another shape or kind, numbers that are NaN or infinite in the layer's
    precision, ranks that no layer can have, and numbers that are not those that were saved. What earlier releases wrote
    carries no checksum, dropout and interpolation, and loads.
    """
    layers, others = _parts(dict(ramoe_layers(_model(model))), model)
    check_unmerged(layers)
    folder = _files.folder("path", path)
    described = adapter_file.read_description(folder / _CONFIG, layers, others)
    states, beside = adapter_file.read_tensors(folder / _TENSORS, described, layers, others)
    adapter_file.check_interpolation(folder / _CONFIG, described, layers, states)
    for name, layer in layers.items():
        mine = adapter_file.state(layer)
        layer.load_state_dict({key: scattered(states[name][key], mine[key]) for key in mine}, strict=False)
        layer.rank_window = float(described.layers[name].get("rank_window", layer.rank_window))
    with torch.no_grad():
        for name, value in beside.items():
            others[name].copy_(scattered(value, others[name]))


def _model(model: nn.Module) -> nn.Module:
    return unwrapped(_checks.model(model))


def _parts(layers: dict[str, RAMoELinear], model: nn.Module) -> tuple[dict[str, RAMoELinear], dict[str, Tensor]]:
    """The layers by the names that they have without wrappers, and all that is saved of a model beside adapters."""
    adapters = {f"{name}.{key}".lstrip(".") for name, layer in layers.items() for key in adapter_file.state(layer)}
    inside = _model(model)
    saved = inside.state_dict(keep_vars=True)
    tensors = {**dict(inside.named_parameters(remove_duplicate=False)), **dict(inside.named_buffers())}
    others = {name: value for name, value in tensors.items() if name in saved and name not in adapters}
    return (
        {plain_name(name): layer for name, layer in layers.items()},
        {plain_name(name): value for name, value in others.items()},
    )


def _chosen(others: dict[str, Tensor], also: Iterable[str] | None) -> dict[str, Tensor]:
    """Those that ``also`` names; a warning for parameters that learn and that nobody spoke of."""
    if also is None:
        left = [name for name, value in others.items() if value.requires_grad]
        if left:
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            warnings.warn(
                f"save_adapters: trained but no adapters, so not saved: {', '.join(left[:3])}{more};"
                " also=[patterns of names] saves them, also=() leaves them out without a warning",
                stacklevel=3,
            )
        return {}
    if isinstance(also, str) or not isinstance(also, Iterable):
        raise TypeError(f"also: got {_checks.shown(also)}, expected a list of patterns over names")
    chosen: dict[str, Tensor] = {}
    for pattern in also:
        _checks.instance("also", pattern, str, "a pattern over names")
        matches = {name: value for name, value in others.items() if fnmatchcase(name, pattern)}
        if not matches:
            raise ValueError(f"also: {pattern!r} matches no parameter or buffer of the model but adapters")
        chosen |= matches
    return chosen
