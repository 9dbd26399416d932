"""LoRA checkpoints as PEFT writes them, read and checked against a model without a change to it."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import _checks, _files, _lora_config
from ._carried import conv1d_class

TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."  # PEFT's, before the names of the model
_PICKLED = "adapter_model.bin"
_KEY = re.compile(r"(.+)\.(lora_[AB])\.weight")
_FLOATS = ("F16", "BF16", "F32", "F64")
_LARGEST_RANK = 4096  # or the module's features, if there are more of them
_ROOM = 1 << 30  # bytes, beside those that a model's own size allows


@dataclass(frozen=True)
class LowRank:
    """``scaling * B A``, with A (r, in) and B (out, r)."""

    A: Tensor
    B: Tensor
    scaling: float


@dataclass(frozen=True)
class LoraFile:
    """``modules``: name in the model -> what the checkpoint adds to it; ``left_out``: names of other tensors."""

    modules: dict[str, LowRank]
    left_out: list[str]


def read(folder: Path, model: nn.Module, leave_out: Iterable[str]) -> LoraFile:
    """The LoRA checkpoint in ``folder``, all of it but the tensors whose names match ``leave_out``. Raises OSError, or
    ValueError naming the file and the entry or tensor that is not right for ``model`` as it is."""
    config_file, file = folder / CONFIG, folder / TENSORS
    if not file.exists() and (folder / _PICKLED).exists():
        raise ValueError(
            f"{_checks.path(folder)}: got {_PICKLED}, expected {TENSORS} (PEFT loads the one and saves the other)"
        )
    config, where = _lora_config.read(config_file), _checks.path(file)
    most = _ROOM + 16 * sum(parameter.numel() for parameter in model.parameters())
    _files.check_regular(file, most, "a LoRA checkpoint of this model")
    with _files.tensors(file) as opened:
        keys = opened.keys()
        ours = {key.removeprefix(PREFIX): key for key in keys}
        left_out = [name for name in ours if any(fnmatchcase(name, pattern) for pattern in leave_out)]
        unchanged = [name for name, key in ours.items() if _is_of_base(name, model, opened, key)]
        pairs = _pairs(where, ours, {*left_out, *unchanged})
        _check_targets(where, config, model, {match[1] for match in map(_KEY.fullmatch, ours) if match})
        for name in pairs:
            try:
                _check_shapes(name, model, config.rank(name), lambda half: opened.get_slice(ours[half]))
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
        modules = {
            name: LowRank(opened.get_tensor(ours[a]), opened.get_tensor(ours[b]), config.scaling(name))
            for name, (a, b) in zip(pairs, map(_halves, pairs), strict=True)
        }
    for name, added in modules.items():
        for half, value in zip(_halves(name), (added.A, added.B), strict=True):
            if fault := _checks.element_fault(repr(half), value, value.isfinite(), "a finite number"):
                raise ValueError(f"{where}: {fault}")
    return LoraFile(modules, left_out)


def features(module: nn.Module) -> tuple[int, int]:
    """(in, out) of a module that LoRA can be moved from; ValueError for another one."""
    if conv1d_class(module):
        return module.nx, module.nf  # type: ignore[return-value] # a Conv1D's are numbers
    if not isinstance(module, nn.Linear):
        raise ValueError(f"is for a {type(module).__name__} of the model, expected an nn.Linear or Conv1D")
    return module.in_features, module.out_features


def _is_of_base(name: str, model: nn.Module, opened: Any, key: str) -> bool:
    """Whether a tensor is one of the model's own, to the bit: PEFT writes embeddings beside the adapters on them."""
    owner, _, attribute = name.rpartition(".")
    try:
        mine = model.get_parameter(f"{owner.removesuffix('.base_layer')}.{attribute}")
    except AttributeError:
        return False
    if tuple(opened.get_slice(key).get_shape()) != mine.shape or mine.is_meta:
        return False
    saved = opened.get_tensor(key)
    return saved.dtype == mine.dtype and torch.equal(saved, mine.detach().to(saved.device))


def _halves(name: str) -> tuple[str, str]:
    return f"{name}.lora_A.weight", f"{name}.lora_B.weight"


def _pairs(where: str, ours: dict[str, str], others: set[str]) -> list[str]:
    """Names of the modules that have both halves."""
    pairs: dict[str, None] = {}
    for name, key in ours.items():
        if name in others:
            continue
        match = _KEY.fullmatch(name)
        if match is None or not key.startswith(PREFIX):
            expected = f"{PREFIX}(name).lora_A.weight or .lora_B.weight, or a weight that the model has"
            raise ValueError(f"{where}: got {_checks.shown(key)}, expected {expected} (leave_out=[patterns] drops it)")
        pairs[match[1]] = None
    for name in pairs:
        for half in _halves(name):
            if half not in ours or half in others:
                raise ValueError(f"{where}: {_checks.shown(half)} is missing, expected both halves of a module")
    return list(pairs)


def _check_targets(where: str, config: _lora_config.LoraConfig, model: nn.Module, found: set[str]) -> None:
    """That the modules in the file are those of the model that the config names."""
    names = {name for name, _ in model.named_modules() if name}
    for name in sorted(found - names):
        raise ValueError(f"{where}: {_checks.shown(name)} is no module of the model, a {type(model).__name__}")
    wanted = found if config.values["target_modules"] == "all-linear" else set(filter(config.targets, names))
    for name in sorted(found ^ wanted):
        verdict = f"is a target of {CONFIG}, but has no tensors"
        if name in found:
            verdict = f"has tensors, but is no target of {CONFIG}"
        raise ValueError(f"{where}: {_checks.shown(name)} {verdict} ({len(found ^ wanted)} such modules)")
    if not found:
        raise ValueError(f"{where}: got no tensors of modules, expected at least one")


def _check_shapes(name: str, model: nn.Module, rank: int, slice_of: Callable[[str], Any]) -> None:
    for around in _around(name):
        module = model.get_submodule(around)
        if isinstance(module, nn.MultiheadAttention):
            raise ValueError(f"{name!r} is for a part of {around!r}, an nn.MultiheadAttention, which never calls it")
    try:
        inputs, outputs = features(model.get_submodule(name))
    except ValueError as error:
        raise ValueError(f"{name!r} {error}") from None
    if rank > (most := max(inputs, outputs, _LARGEST_RANK)):
        raise ValueError(f"{name!r} has rank {_checks.shown(rank)} by {CONFIG}, expected at most {most}")
    for half, expected in zip(_halves(name), ((rank, inputs), (outputs, rank)), strict=True):
        saved = slice_of(half)
        kind, shape = saved.get_dtype(), tuple(saved.get_shape())
        if kind not in _FLOATS:
            raise ValueError(f"{half!r} is of {kind}, expected one of {_FLOATS}")
        if shape != expected:
            raise ValueError(
                f"{half!r} has shape {_checks.shown(shape)}, expected {expected}, of rank {rank} by {CONFIG}"
            )


def _around(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:depth]) for depth in range(1, len(parts)))
