"""Adapters on disk: safetensors for the numbers, JSON for what they belong to; never pickle."""

import json
import os
from pathlib import Path

import torch
from torch import nn

from .layer import RAMoELinear
from .ranks import ramoe_layers

_TENSORS = "adapters.safetensors"
_CONFIG = "adapters.json"
_STATE = ("lora_A", "lora_B", "rank", "rank_frozen", "router.weight")
_SHAPE = ("in_features", "out_features", "num_experts", "max_rank", "splits", "router_kind", "top_k", "scaling")


def save_adapters(model: nn.Module, path: str | os.PathLike) -> None:
    """Writes the adapters of all RA-MoE layers, without the weights they adapt, into the folder ``path``."""
    from safetensors.torch import save_file  # here, so that importing the package needs torch alone

    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    layers = dict(ramoe_layers(model))
    tensors = {f"{name}.{key}": value for name, layer in layers.items() for key, value in _adapter_state(layer).items()}
    config = {"format": 1, "layers": {name: _describe(layer) for name, layer in layers.items()}}
    # Written beside and renamed, so that a crash leaves the former files whole.
    save_file(tensors, folder / f"{_TENSORS}.new")
    (folder / f"{_CONFIG}.new").write_text(json.dumps(config, indent=2) + "\n")
    for name in (_TENSORS, _CONFIG):
        os.replace(folder / f"{name}.new", folder / name)


def load_adapters(model: nn.Module, path: str | os.PathLike) -> None:
    """Reads what `save_adapters` wrote into a model with the same RA-MoE layers; their frozen ranks included.

    Raises FileNotFoundError, or ValueError naming the file or the layer that differs, before anything is changed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(path)
    try:
        config = json.loads((folder / _CONFIG).read_text())
        saved = config["layers"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / _CONFIG}: not a description of adapters ({error!r})") from None
    layers = dict(ramoe_layers(model))
    for name in sorted(saved.keys() ^ layers.keys()):
        where = "the file but not the model" if name in saved else "the model but not the file"
        raise ValueError(f"{folder}: layer {name!r} is in {where}")
    for name, layer in layers.items():
        here = _describe(layer)
        for key, value in here.items():
            if saved[name].get(key) != value:
                raise ValueError(f"{folder}: layer {name!r} has {key} = {saved[name].get(key)}, the model has {value}")
    try:
        tensors = load_file(folder / _TENSORS)
    except SafetensorError as error:
        raise ValueError(f"{folder / _TENSORS}: not a whole safetensors file ({error})") from None
    missing = [f"{name}.{key}" for name, layer in layers.items() for key in _adapter_state(layer)]
    missing = [name for name in missing if name not in tensors]
    if missing:
        raise ValueError(f"{folder / _TENSORS}: {missing[0]!r} is missing ({len(missing)} in all)")
    for name, layer in layers.items():
        state = {key: tensors[f"{name}.{key}"] for key in _adapter_state(layer)}
        layer.load_state_dict(state, strict=False)


def _adapter_state(layer: RAMoELinear) -> dict[str, torch.Tensor]:
    return {key: value.contiguous() for key, value in layer.state_dict().items() if key in _STATE}


def _describe(layer: RAMoELinear) -> dict[str, object]:
    return {name: getattr(layer, name) for name in _SHAPE}
