"""What the files of adapters hold, read and checked against a model's layers without a change to them."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from ctypes import c_char
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import _checks, _files
from ._wrappers import gathered, plain_names
from .diagonal import INTERPOLATIONS
from .layer import RAMoELinear

CHECKSUM = "sha256"  # key in the metadata of the file of numbers
_FORMAT = 1
_STATE = ("lora_A", "lora_B", "rank", "rank_frozen", "router.weight")
_SHAPE = ("in_features", "out_features", "num_experts", "max_rank", "splits", "router_kind", "top_k", "scaling")
_LATER = ("dropout", "interpolation", "rank_window")  # what the first releases did not write: all or none are there
_KINDS = {torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32"}
_KINDS[torch.int64] = "I64"
_FLOATS = ("F16", "BF16", "F32", "F64")

Layers = Mapping[str, RAMoELinear]


def state(layer: RAMoELinear) -> dict[str, Tensor]:
    """The tensors of a layer that are its adapters, as they are: sharded perhaps."""
    return {key: value for key, value in layer.state_dict().items() if key in _STATE}


def whole_state(layer: RAMoELinear) -> dict[str, Tensor]:
    """`state`, shards gathered (a call in all processes that have some)."""
    return {key: gathered(value).contiguous() for key, value in state(layer).items()}


def description(layers: Layers, also: Iterable[str]) -> dict[str, Any]:
    """What the tensors belong to; ``also``: names of those that are no adapters."""
    described = {"format": _FORMAT, "layers": {name: _described(layer) for name, layer in layers.items()}}
    return {**described, "also": list(also)} if also else described


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        if value.numel():
            value = value.contiguous()
            digest.update((c_char * value.nbytes).from_address(value.data_ptr()))  # its bytes, without numpy or a copy
    return digest.hexdigest()


def shape_fault(layer: RAMoELinear) -> str | None:
    """What is wrong with the shape of a tensor, as of one that a wrapper has flattened; None if nothing."""
    units, columns = sum(layer.units), (layer.splits, layer.num_experts)
    shapes = {
        "lora_A": (*columns, layer.max_rank, layer.in_features),
        "lora_B": (units, layer.num_experts, layer.out_features // units, layer.max_rank),
        "rank": columns,
        "rank_frozen": (),
        "router.weight": (layer.splits * layer.num_experts, layer.in_features),
    }
    for key, value in state(layer).items():
        if value.shape != shapes[key]:
            return f"{key} has shape {tuple(value.shape)}, expected {shapes[key]}: whole, not flattened or cut"
    return None


def number_fault(name: str, value: Tensor, mine: Tensor) -> str | None:
    """What is wrong with these numbers in the place of ``mine`` in the model."""
    if mine.is_meta or value.is_meta:
        return f"{name} is on the meta device, expected a tensor with numbers"
    value = value.to(mine.dtype)
    right = value.isfinite() if value.is_floating_point() else torch.ones_like(value, dtype=torch.bool)
    return _checks.element_fault(name, value, right, f"a finite number in {mine.dtype}")


def fault(layer: RAMoELinear, tensors: Mapping[str, Tensor]) -> str | None:
    """What is wrong with these numbers as the layer's adapters (of right names, kinds, shapes); None if nothing."""
    for key, mine in state(layer).items():
        if found := number_fault(key, tensors[key], mine):
            return found
    return _checks.rank_fault(tensors["rank"], layer.max_rank, whole=bool(tensors["rank_frozen"]))


@dataclass(frozen=True)
class Description:
    """What a file says of its tensors."""

    names: dict[str, str]  # of the model's layers -> in the file, which a wrapped model may have written
    also: list[str]  # tensors that are no adapters
    layers: dict[str, dict[str, Any]]  # name in the model -> options that decide what the numbers mean


def read_description(file: Path, layers: Layers, others: Mapping[str, Tensor]) -> Description:
    """Raises ValueError naming the file, the layer and the entry unless ``file`` describes adapters of these layers;
    tensors that it has beside them have to be among ``others``, by name."""
    where, content = _checks.path(file), _files.read_json(file, "a description of adapters")
    _check_keys(where, content, ("format", "layers"), optional=("also",))
    if content["format"] != _FORMAT or type(content["format"]) is not int:
        later = type(content["format"]) is int and content["format"] > _FORMAT
        reason = f"of a later release, this one reads {_FORMAT}" if later else f"expected {_FORMAT}"
        raise ValueError(f"{where}: format is {_checks.shown(content['format'])}, {reason}")
    saved, also = content["layers"], content.get("also", [])
    if not isinstance(saved, dict):
        raise ValueError(f"{where}: layers is {_checks.shown(saved)}, expected an object")
    try:
        names = plain_names(saved, layers)
    except ValueError as error:
        raise ValueError(f"{where}: layer {error}") from None
    for name in sorted(names.keys() ^ layers.keys()):
        place = "the file but not the model" if name in names else "the model but not the file"
        raise ValueError(f"{where}: layer {_checks.shown(name)} is in {place}")
    found = {name: saved[names[name]] for name in layers}
    for name, layer in layers.items():
        _check_options(f"{where}: layer {name!r}", found[name], layer)
    if not isinstance(also, list) or not all(isinstance(name, str) for name in also) or len(set(also)) < len(also):
        raise ValueError(f"{where}: also is {_checks.shown(also)}, expected a list of names, each once")
    for name in also:
        if name not in others:
            raise ValueError(f"{where}: also has {_checks.shown(name)}, expected tensors of the model but adapters")
    return Description(names, also, found)


def read_tensors(
    file: Path, described: Description, layers: Layers, others: Mapping[str, Tensor]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """The adapters of each layer, and those of ``others`` that the file has. Raises ValueError naming the file and the
    tensor that is wrong; nothing larger than the model's own tensors is read."""
    where = _checks.path(file)
    states = {name: {key: f"{described.names[name]}.{key}" for key in state(layer)} for name, layer in layers.items()}
    mine = {name: others[name] for name in described.also}
    mine |= {states[name][key]: value for name, layer in layers.items() for key, value in state(layer).items()}
    most = _files.LARGEST + sum(8 * value.numel() for value in mine.values())  # its header, and float64
    _files.check_regular(file, most, "these adapters")
    with _files.tensors(file) as opened:
        _check_names(where, set(opened.keys()), set(mine))
        for name, value in mine.items():
            _check_kind(f"{where}: {name!r}", opened.get_slice(name), value)
        tensors = {name: opened.get_tensor(name) for name in mine}
        expected = (opened.metadata() or {}).get(CHECKSUM)
    if expected is not None and expected != (found := checksum(tensors)):
        raise ValueError(
            f"{where}: not the numbers that were saved: their {CHECKSUM} is {found}, expected {_checks.shown(expected)}"
        )
    states_found = {name: {key: tensors[stored] for key, stored in keys.items()} for name, keys in states.items()}
    for name, layer in layers.items():
        if wrong := fault(layer, states_found[name]):
            raise ValueError(f"{where}: layer {name!r}: {wrong}")
    beside = {name: tensors[name] for name in described.also}
    for name, value in beside.items():
        if wrong := number_fault(name, value, others[name]):
            raise ValueError(f"{where}: {wrong}")
    return states_found, beside


def check_interpolation(file: Path, described: Description, layers: Layers, states: Mapping[str, Any]) -> None:
    """Raises ValueError for ranks that learn, and mean something else in the model than where they were learned."""
    for name, layer in layers.items():
        saved = described.layers[name].get("interpolation", layer.interpolation)
        if saved != layer.interpolation and not bool(states[name]["rank_frozen"]):
            where = f"{_checks.path(file)}: layer {name!r}"
            raise ValueError(f"{where} has interpolation = {saved!r}, the model has {layer.interpolation!r}")


def _described(layer: RAMoELinear) -> dict[str, Any]:
    described = {name: getattr(layer, name) for name in (*_SHAPE, *_LATER)}
    return {**described, "widths": list(layer.widths)} if max(layer.units) > 1 else described


def _check_options(where: str, saved: Any, layer: RAMoELinear) -> None:
    later = isinstance(saved, dict) and any(key in saved for key in _LATER)
    widths = ("widths",) if max(layer.units) > 1 else ()
    _check_keys(where, saved, (*_SHAPE, *_LATER, *widths) if later else (*_SHAPE, *widths))
    for key, got in saved.items():
        mine = getattr(layer, key)
        if key == "interpolation":  # of frozen ranks any is right: judged with their numbers
            right, expected = isinstance(got, str) and got in INTERPOLATIONS, f"expected one of {INTERPOLATIONS}"
        elif key == "rank_window":  # loaded
            right = type(got) in (int, float) and 0 < got < math.inf
            expected = "expected a positive, finite number"
        elif key == "widths":
            right, expected = got == list(mine), f"the model has {list(mine)}"
        else:
            right, expected = _same(got, mine), f"the model has {mine!r}"
        if not right:
            raise ValueError(f"{where} has {key} = {_checks.shown(got)}, {expected}")


def _same(saved: Any, mine: Any) -> bool:
    """Equal and of one kind: 1 is no true, and no 1.0 unless a number that need not be whole is meant."""
    if isinstance(mine, float):
        return type(saved) in (int, float) and saved == mine
    return type(saved) is type(mine) and saved == mine


def _check_keys(where: str, content: Any, expected: Iterable[str], optional: Iterable[str] = ()) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{where}: got {_checks.shown(content)}, not a description of adapters (expected an object)")
    known = (*expected, *optional)
    for key in expected:
        if key not in content:
            raise ValueError(f"{where}: {key!r} is missing")
    for key in content:
        if key not in known:
            raise ValueError(f"{where}: {_checks.shown(key)} is unknown, expected {', '.join(known)} alone")


def _check_names(where: str, saved: set[str], expected: set[str]) -> None:
    for difference, verdict in ((expected - saved, "missing"), (saved - expected, "not of this model")):
        if difference:
            raise ValueError(f"{where}: {_checks.shown(min(difference))} is {verdict} ({len(difference)} in all)")


def _check_kind(where: str, saved: Any, mine: Tensor) -> None:
    kind, shape = saved.get_dtype(), tuple(saved.get_shape())
    kinds = _FLOATS if mine.is_floating_point() else (_KINDS.get(mine.dtype, "no kind"),)
    if kind not in kinds:
        raise ValueError(f"{where} is of {kind}, expected {' or '.join(kinds)}")
    if shape != mine.shape:
        raise ValueError(f"{where} has shape {_checks.shown(shape)}, expected {tuple(mine.shape)}")
