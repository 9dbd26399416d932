"""Adapters on disk: safetensors for the numbers, JSON for what they belong to; never pickle."""

import json
import os
from pathlib import Path

from torch import nn

from . import _adapter_file as adapter_file
from . import _checks
from .ranks import named_layers, ramoe_layers

_TENSORS = "adapters.safetensors"
_CONFIG = "adapters.json"


def save_adapters(model: nn.Module, path: str | os.PathLike) -> None:
    """Writes the adapters of all RA-MoE layers, without the weights they adapt, into the folder ``path``.

    The file of numbers carries their checksum. Raises OSError, or TypeError or ValueError, before anything is written,
    for a model without RA-MoE layers and for adapters that `load_adapters` refuses: numbers that are NaN or infinite,
    ranks that no layer can have.
    """
    from safetensors.torch import save  # here, so that importing the package needs torch alone

    layers = named_layers(model)
    folder = _folder(path)
    for name, layer in layers.items():
        if fault := adapter_file.fault(layer, adapter_file.state(layer)):
            raise ValueError(f"model: layer {name!r}: {fault}")
    tensors = {
        f"{name}.{key}": value.cpu().clone()  # tensors that share storage cannot be saved
        for name, layer in layers.items()
        for key, value in adapter_file.state(layer).items()
    }
    config = json.dumps(adapter_file.description(layers), indent=2) + "\n"
    contents = {
        _TENSORS: save(tensors, metadata={adapter_file.CHECKSUM: adapter_file.checksum(tensors)}),
        _CONFIG: config.encode("utf-8"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    fresh = {folder / name: folder / f"{name}.new" for name in contents}
    try:  # Written beside and renamed, so that a crash leaves the former files whole.
        for file, content in zip(fresh.values(), contents.values(), strict=True):
            file.unlink(missing_ok=True)
            file.write_bytes(content)
        for target, file in fresh.items():
            os.replace(file, target)
    except BaseException:
        for file in fresh.values():
            file.unlink(missing_ok=True)
        raise


def load_adapters(model: nn.Module, path: str | os.PathLike) -> None:
    """Reads what `save_adapters` wrote into a model with the same RA-MoE layers; their frozen ranks included.

    Raises FileNotFoundError (or another OSError), or ValueError naming the file and the layer or tensor that is wrong,
    before anything is changed: files that are not whole or are no files, another format or architecture, tensors that
    are missing, superfluous, or of another shape or kind, numbers that are NaN or infinite in the layer's precision,
    ranks that no layer can have, and numbers that are not those that were saved (what earlier releases wrote carries no
    checksum, and loads).
    """
    layers = dict(ramoe_layers(model))
    folder = _folder(path)
    adapter_file.check_description(folder / _CONFIG, layers)
    states = adapter_file.read_states(folder / _TENSORS, layers)
    for name, layer in layers.items():
        layer.load_state_dict(states[name], strict=False)


def _folder(path: str | os.PathLike) -> Path:
    _checks.instance("path", path, (str, os.PathLike), "a path")
    folder = os.fspath(path)
    if not isinstance(folder, str) or not folder or "\0" in folder:
        raise ValueError(f"path: got {_checks.shown(folder)}, expected the name of a folder")
    return Path(folder)
