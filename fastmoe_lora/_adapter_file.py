"""What the files of adapters hold, read and checked against a model's layers without a change to them."""

import hashlib
import json
import stat
from collections.abc import Mapping
from ctypes import c_char
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import _checks
from .layer import RAMoELinear

CHECKSUM = "sha256"  # key in the metadata of the file of numbers
_FORMAT = 1
_STATE = ("lora_A", "lora_B", "rank", "rank_frozen", "router.weight")
_SHAPE = ("in_features", "out_features", "num_experts", "max_rank", "splits", "router_kind", "top_k", "scaling")
_LARGEST = 8 << 20  # bytes of a description or a header: room for thirty thousand layers
_FLOATS = ("F16", "BF16", "F32", "F64")

Layers = Mapping[str, RAMoELinear]


def state(layer: RAMoELinear) -> dict[str, Tensor]:
    """The tensors of a layer that are its adapters."""
    return {key: value.contiguous() for key, value in layer.state_dict().items() if key in _STATE}


def description(layers: Layers) -> dict[str, Any]:
    """What the tensors belong to."""
    return {"format": _FORMAT, "layers": {name: _described(layer) for name, layer in layers.items()}}


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        if value.numel():
            value = value.contiguous()
            digest.update((c_char * value.nbytes).from_address(value.data_ptr()))  # its bytes, without numpy or a copy
    return digest.hexdigest()


def fault(layer: RAMoELinear, tensors: Mapping[str, Tensor]) -> str | None:
    """What is wrong with these numbers as the layer's adapters (of right names, kinds, shapes); None if nothing."""
    for key, mine in state(layer).items():
        if mine.is_meta:
            return f"{key} is on the meta device, expected a tensor with numbers"
        value = tensors[key].to(mine.dtype)
        if found := _checks.element_fault(key, value, value.isfinite(), f"a finite number in {mine.dtype}"):
            return found
    return _checks.rank_fault(tensors["rank"], layer.max_rank, whole=bool(tensors["rank_frozen"]))


def check_description(file: Path, layers: Layers) -> None:
    """Raises ValueError naming the file, the layer and the entry unless ``file`` describes adapters of these layers."""
    where, content = _checks.path(file), _read(file)
    _check_keys(where, content, ("format", "layers"))
    if content["format"] != _FORMAT or type(content["format"]) is not int:
        raise ValueError(f"{where}: format is {_checks.shown(content['format'])}, expected {_FORMAT}")
    saved = content["layers"]
    if not isinstance(saved, dict):
        raise ValueError(f"{where}: layers is {_checks.shown(saved)}, expected an object")
    for name in sorted(saved.keys() ^ layers.keys()):
        place = "the file but not the model" if name in saved else "the model but not the file"
        raise ValueError(f"{where}: layer {_checks.shown(name)} is in {place}")
    for name, layer in layers.items():
        mine = _described(layer)
        _check_keys(f"{where}: layer {name!r}", saved[name], mine)
        for key, value in mine.items():
            if not _same(saved[name][key], value):
                got = _checks.shown(saved[name][key])
                raise ValueError(f"{where}: layer {name!r} has {key} = {got}, the model has {value!r}")


def read_states(file: Path, layers: Layers) -> dict[str, dict[str, Tensor]]:
    """The adapters of each layer. Raises ValueError naming the file and the tensor that is wrong; nothing larger than
    the layers' own tensors is read."""
    from safetensors import SafetensorError, safe_open

    where = _checks.path(file)
    mine = {f"{name}.{key}": value for name, layer in layers.items() for key, value in state(layer).items()}
    _check_regular(file, _LARGEST + sum(8 * value.numel() for value in mine.values()))  # its header, and float64
    try:
        with safe_open(file, "pt") as opened:
            _check_names(where, set(opened.keys()), set(mine))
            for name, value in mine.items():
                _check_kind(f"{where}: {name!r}", opened.get_slice(name), value)
            tensors = {name: opened.get_tensor(name) for name in mine}
            expected = (opened.metadata() or {}).get(CHECKSUM)
    except SafetensorError as error:
        raise ValueError(f"{where}: not a whole safetensors file ({_first_line(error)})") from None
    if expected is not None and expected != (found := checksum(tensors)):
        raise ValueError(
            f"{where}: not the numbers that were saved: their {CHECKSUM} is {found}, expected {_checks.shown(expected)}"
        )
    states = {name: {key: tensors[f"{name}.{key}"] for key in state(layer)} for name, layer in layers.items()}
    for name, layer in layers.items():
        if found := fault(layer, states[name]):
            raise ValueError(f"{where}: layer {name!r}: {found}")
    return states


def _described(layer: RAMoELinear) -> dict[str, Any]:
    return {name: getattr(layer, name) for name in _SHAPE}


def _same(saved: Any, mine: Any) -> bool:
    """Equal and of one kind: 1 is no true, and no 1.0 unless a number that need not be whole is meant."""
    if isinstance(mine, float):
        return type(saved) in (int, float) and saved == mine
    return type(saved) is type(mine) and saved == mine


def _read(file: Path) -> Any:
    _check_regular(file, _LARGEST)
    try:
        text = file.read_bytes().decode("utf-8")
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:  # no JSON or UTF-8, or a whole number of thousands of digits
        raise ValueError(f"{_checks.path(file)}: not a description of adapters ({_first_line(error)})") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{_checks.shown(key)} is there twice")
        found[key] = value
    return found


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _check_keys(where: str, content: Any, expected: Any) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{where}: got {_checks.shown(content)}, not a description of adapters (expected an object)")
    for key in expected:
        if key not in content:
            raise ValueError(f"{where}: {key!r} is missing")
    for key in content:
        if key not in expected:
            raise ValueError(f"{where}: {_checks.shown(key)} is unknown, expected {', '.join(expected)} alone")


def _check_regular(file: Path, most: int) -> None:
    """OSError for what is not there or a loop of links, ValueError for what is no file (a pipe would never end), or one
    of more than ``most`` bytes."""
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{_checks.path(file)}: got a folder, pipe, socket or device, expected a file")
    if found.st_size > most:
        raise ValueError(f"{_checks.path(file)}: got {found.st_size} bytes, expected at most {most} for these adapters")


def _check_names(where: str, saved: set[str], expected: set[str]) -> None:
    for difference, verdict in ((expected - saved, "missing"), (saved - expected, "not of this model")):
        if difference:
            raise ValueError(f"{where}: {_checks.shown(min(difference))} is {verdict} ({len(difference)} in all)")


def _check_kind(where: str, saved: Any, mine: Tensor) -> None:
    kind, shape = saved.get_dtype(), tuple(saved.get_shape())
    kinds = ("BOOL",) if mine.dtype == torch.bool else _FLOATS
    if kind not in kinds:
        raise ValueError(f"{where} is of {kind}, expected {' or '.join(kinds)}")
    if shape != mine.shape:
        raise ValueError(f"{where} has shape {_checks.shown(shape)}, expected {tuple(mine.shape)}")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200] or type(error).__name__
